"""Measure what each late import costs: resident memory and time.

Usage: .venv/bin/python benchmarks/import_cost.py [ROUNDS]

Each statement runs in a new Python process that has imported the module on its left before, so that modules which both
need count once. Prints medians. CONTRIBUTING.md explains which imports are late.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

#: (module that is loaded before, statement that is measured).
_STATEMENTS = (
    ("dnsprobe.cli", "import dnsprobe.config.main"),
    ("dnsprobe.cli", "import dnsprobe.commands.tree"),
    ("dnsprobe.cli", "import dnsprobe.commands.watch"),
    ("dnsprobe.cli", "import dnsprobe.commands.run"),
    ("dnsprobe.commands.run", "import idna; idna.encode('b\u00fccher.example', uts46=True)"),
    ("dnsprobe.commands.run", "import bcrypt"),
    ("dnsprobe.commands.run", "import psutil"),
    ("dnsprobe.commands.run", "import systemd.daemon"),
    ("dnsprobe.commands.run", "import systemd.journal"),
    ("dnsprobe.kernel.loader", "import bcc"),
)

_MEASURE = """\
import importlib, re, sys, time
def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1])
importlib.import_module(sys.argv[1])
before, started = resident(), time.perf_counter()
exec(sys.argv[2])
print(time.perf_counter() - started, resident() - before)
"""


def _measure(loaded: str, statement: str, rounds: int) -> tuple[float, float]:
    """Return the medians of milliseconds and of MB."""
    command = [sys.executable, "-c", _MEASURE, loaded, statement]
    outputs = [subprocess.check_output(command, text=True).split() for _ in range(rounds)]
    seconds, kilobytes = ([float(output[at]) for output in outputs] for at in range(2))
    return median(seconds) * 1000, median(kilobytes) / 1024


def main() -> None:
    """Print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    print(f"{'loaded before':<24}{'statement':<64}{'ms':>8}{'MB':>8}")
    for loaded, statement in _STATEMENTS:
        milliseconds, megabytes = _measure(loaded, statement, rounds)
        print(f"{loaded:<24}{statement:<64}{milliseconds:8.1f}{megabytes:8.2f}")


if __name__ == "__main__":
    main()
