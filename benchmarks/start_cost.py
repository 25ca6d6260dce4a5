"""Measure what a start of the service costs, with an empty cache of compiled programs and with a full one.

Usage, as root: .venv/bin/python benchmarks/start_cost.py [ROUNDS]

Starts of both kinds alternate. Prints processor seconds, including children, and the ratio of the medians.
"""

from __future__ import annotations

import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("dnsprobe")
ARGUMENTS = ("run", "--listen", "127.0.0.1:0", "--log-target", "console")
RULES = "domains: [start.invalid]\n"


def start(folder: Path, cache: Path) -> float:
    """Start dnsprobe, stop it as soon as it is ready, and return the processor seconds of both."""
    configuration = folder / "dnsprobe.yaml"
    configuration.write_text(RULES, encoding="utf-8")
    # As in the unit: otherwise the certificates of all authorities are read for nothing.
    environment = {**os.environ, "CACHE_DIRECTORY": str(cache), "SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [str(PROGRAM), *ARGUMENTS, "--config", str(configuration)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "ready after" in line:
                process.send_signal(signal.SIGTERM)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"dnsprobe ended with status {process.returncode}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    first: list[float] = []
    again: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = folder / "kept"
        kept.mkdir()
        start(folder, kept)
        for number in range(rounds):
            cache = folder / f"cache{number}"
            cache.mkdir()
            first.append(start(folder, cache))
            again.append(start(folder, kept))
    for what, seconds in (("compiled", first), ("cached", again)):
        print(f"{what:<10} median {statistics.median(seconds):.2f} s, from {min(seconds):.2f} to {max(seconds):.2f}")
    print(f"ratio {statistics.median(again) / statistics.median(first):.2f}")


if __name__ == "__main__":
    main()
