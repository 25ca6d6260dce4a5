"""Count instructions and cycles of a program with perf(1): all its processes, in user space and in the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

EVENTS = ("instructions", "cycles")


def count(command: Sequence[str]) -> tuple[str, list[float]]:
    """Run a command; return its output, and the number of each of EVENTS. Exits if perf cannot count here."""
    # On one CPU, so that waiting for a lock that another CPU holds is not counted.
    pinned = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0)))]
    measured = [*pinned, "perf", "stat", "-x,", "-e", ",".join(EVENTS), *command]
    done = subprocess.run(measured, capture_output=True, text=True, check=True)
    counted = [line.split(",")[0] for line in done.stderr.strip().splitlines()[-len(EVENTS) :]]
    if not all(number.isdecimal() for number in counted):
        sys.exit(f"perf cannot count {' and '.join(EVENTS)} here:\n{done.stderr}")
    return done.stdout, [float(number) for number in counted]
