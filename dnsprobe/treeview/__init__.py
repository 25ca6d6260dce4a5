"""``dnsprobe tree``: the counters of a running dnsprobe, added up by process tree."""
