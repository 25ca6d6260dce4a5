"""Query counts as a tree of processes: read from a running daemon, added up, and printed by ``dnsprobe tree``."""
