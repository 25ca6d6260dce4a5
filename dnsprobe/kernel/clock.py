"""The clock tick, in which ``/proc`` and lineage tracking count the time since boot."""

from __future__ import annotations

import os

#: Nanoseconds in a clock tick, the unit of ``ancestor_key.start_ticks`` and of the times in ``/proc/PID/stat``.
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
