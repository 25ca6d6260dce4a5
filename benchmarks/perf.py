"""What perf(1) counts of a program, with all its processes, in user space and in the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

EVENTS = ("instructions", "cycles")


def count(command: Sequence[str]) -> tuple[str, list[float]]:
    """Run a command and return what it printed, and how many there were of each of EVENTS. Ends where perf cannot."""
    # On one CPU, so that nobody's wait for a lock of another is counted.
    pinned = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0)))]
    measured = [*pinned, "perf", "stat", "-x,", "-e", ",".join(EVENTS), *command]
    done = subprocess.run(measured, capture_output=True, text=True, check=True)
    counted = [line.split(",")[0] for line in done.stderr.strip().splitlines()[-len(EVENTS) :]]
    if not all(number.isdecimal() for number in counted):
        sys.exit(f"perf cannot count {' and '.join(EVENTS)} here:\n{done.stderr}")
    return done.stdout, [float(number) for number in counted]
