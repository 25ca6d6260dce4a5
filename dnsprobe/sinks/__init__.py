"""Outputs: the journal, the metrics, the terminal. They work on values of the model; they read no kernel map."""
