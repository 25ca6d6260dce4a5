"""The only package that knows BPF: type information, symbols, hooks, loading, maps, and the proof that hooks work."""
