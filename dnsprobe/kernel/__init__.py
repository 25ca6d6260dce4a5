"""All that knows BPF: types, symbols, hooks, loading, maps, the ring buffer and the proof that it works."""
