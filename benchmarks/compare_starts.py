"""Compare the start of two installations of dnsprobe: this one and another, for example that of an older commit.

Usage, as root: .venv/bin/python benchmarks/compare_starts.py OTHER/.venv/bin/dnsprobe [ROUNDS]

Starts of both alternate, without and with the compiled programs of an earlier start. Prints medians, and the median of
the ratios of this installation to the other in each round: processor seconds until ready (children included), seconds
until ready, and resident memory (KiB) one second later.
"""

from __future__ import annotations

import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

OURS = Path(sys.executable).with_name("dnsprobe")
RULES = "domains: [start.invalid]\n"
FIGURES = ("processor seconds", "seconds until ready", "KiB resident")


def resident(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))


def start(program: Path, configuration: Path, cache: Path) -> tuple[float, float, int]:
    """Start a program, stop it a second after it is ready, and return FIGURES."""
    command = [
        str(program),
        "run",
        "--listen",
        "127.0.0.1:0",
        "--log-target",
        "console",
        "--config",
        str(configuration),
    ]
    # As in the unit: otherwise the certificates of all authorities are read for nothing.
    environment = {**os.environ, "CACHE_DIRECTORY": str(cache), "SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    memory, waited = 0, 0.0
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "ready after" in line:
                waited = time.monotonic() - began
                time.sleep(1)
                memory = resident(process.pid)
                process.send_signal(signal.SIGTERM)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode or not memory:
        raise SystemExit(f"{program} ended with status {process.returncode} before it was ready")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, waited, memory


def main() -> None:
    """Print the table."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    other = Path(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    found: dict[tuple[str, Path], list[tuple[float, float, int]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configuration = folder / "dnsprobe.yaml"
        configuration.write_text(RULES, encoding="utf-8")
        warm = {program: folder / f"warm{at}" for at, program in enumerate((OURS, other))}
        for program, cache in warm.items():
            cache.mkdir()
            start(program, configuration, cache)
        for number in range(rounds):
            # The second of two may find a faster or slower processor, so they change places.
            order = list(warm.items())[:: 1 if number % 2 else -1]
            for program, cache in order:
                cold = folder / f"cold{number}-{cache.name}"
                cold.mkdir()
                found["compiled", program].append(start(program, configuration, cold))
                found["cached", program].append(start(program, configuration, cache))
    for way in ("compiled", "cached"):
        for at, what in enumerate(FIGURES):
            ours, theirs = ([figures[at] for figures in found[way, program]] for program in (OURS, other))
            ratio = statistics.median(one / another for one, another in zip(ours, theirs, strict=True))
            medians = f"this {statistics.median(ours):10.2f}   other {statistics.median(theirs):10.2f}"
            print(f"{way:<9} {what:<20} {medians}   ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
