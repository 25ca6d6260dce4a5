"""From the kernel's events and counters to queries and series."""
