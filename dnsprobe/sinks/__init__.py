"""Where queries go: the journal, the metrics, the terminal. A sink takes the model and knows no kernel."""
