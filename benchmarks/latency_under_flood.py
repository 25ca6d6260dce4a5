"""Measure how long /-/healthy and /metrics take while new names come in that only regular expressions can decide.

Usage: .venv/bin/python benchmarks/latency_under_flood.py [--seconds N] [--rate N] [--expressions N] [--slow N]
       [--other PROGRAM]

A sender in a network namespace of its own asks for made-up names below .test, each of them new, RATE of them a second.
SLOW of them in a second take an expression longer than it may. Prints the distribution of the times, and what was
counted. With --other, the same for another version: PROGRAM is its .venv/bin/dnsprobe.
"""

from __future__ import annotations

import argparse
import http.client
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from daemon import Daemon

#: Seconds between two requests for /-/healthy, and for /metrics.
_EVERY = {"/-/healthy": 0.02, "/metrics": 1.0}
#: Seconds after which a request has failed. It counts with this time.
_PATIENCE = 30.0

_SENDER = r"""
import socket, struct, sys, time
rate, seconds, slow = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def wire(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
head = struct.pack(">HHHHHH", 1, 0x100, 1, 0, 0, 0)
began, sent = time.monotonic(), 0
while (passed := time.monotonic() - began) < seconds:
    while sent < passed * rate:
        is_slow = sent * slow // rate != (sent - 1) * slow // rate
        name = f"{'a' * 40}_{sent}.slow.test" if is_slow else f"www{sent}.flood.test"
        try:
            sock.sendto(head + wire(name) + struct.pack(">HH", 1, 1), ("127.0.0.1", 53))
        except ConnectionRefusedError:
            continue
        sent += 1
    time.sleep(0.002)
print(sent)
"""


def _expressions(number: int) -> list[str]:
    """Return expressions as people write them. The first one is slow for some names below slow.test."""
    forms = (
        r"(^|\.)ads?[0-9]*\.n{}\.test$",
        r"^track(er|ing)?{}[a-z0-9-]*\.",
        r"(^|\.)(pixel|beacon|stat)s?{}\.",
        r"[0-9]+-{}\.cdn[0-9]*\.",
        r"^([a-z]+-)?metrics?{}\.[a-z]+\.",
    )
    return [r"^([a-z0-9]+-?)+\.slow\.test$", *(forms[at % len(forms)].format(at) for at in range(number - 1))]


class _Client(threading.Thread):
    """Requests a path again and again, and notes how long each answer takes."""

    def __init__(self, address: str, path: str, until: float) -> None:
        super().__init__(daemon=True)
        self._address, self._path, self._until = address, path, until
        self.times: list[float] = []

    def run(self) -> None:
        while time.monotonic() < self._until:
            began = time.monotonic()
            client = http.client.HTTPConnection(self._address, timeout=_PATIENCE)
            try:
                client.request("GET", self._path)
                client.getresponse().read()
                self.times.append(time.monotonic() - began)
            except OSError:
                self.times.append(_PATIENCE)
            finally:
                client.close()
            time.sleep(max(0.0, began + _EVERY[self._path] - time.monotonic()))


def _distribution(times: Sequence[float]) -> str:
    ordered = sorted(times)
    shares = (0.5, 0.9, 0.99, 1.0)
    values = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 for share in shares]
    return f"{len(ordered):5} answers; ms: " + ", ".join(
        f"{name} {value:.1f}" for name, value in zip(("median", "90 %", "99 %", "longest"), values, strict=True)
    )


def _measure(program: str, options: argparse.Namespace, folder: Path) -> None:
    quoted = ", ".join(f"'/{expression}/'" for expression in _expressions(options.expressions))
    daemon = Daemon([program], f"domains: [{quoted}]\n", folder)
    try:
        print(program)
        until = time.monotonic() + options.seconds
        clients = {path: _Client(daemon.address, path, until) for path in _EVERY}
        arguments = [str(options.rate), str(options.seconds), str(options.slow)]
        shell = 'ip link set lo up; exec "$@"'
        sender = subprocess.Popen(
            ["unshare", "--net", "sh", "-ec", shell, "sh", sys.executable, "-c", _SENDER, *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        for client in clients.values():
            client.start()
        sent, _ = sender.communicate()
        for path, client in clients.items():
            client.join()
            print(f"  {path:<11}{_distribution(client.times)}")
        text = daemon.metrics()
        facts = [
            f"{name} {found[1]}"
            for name, pattern in (
                ("names not decided", r"^dnsprobe_names_undecided_total (\S+)$"),
                ("no room for a name", r'^dnsprobe_events_lost_total\{reason="names_full"\} (\S+)$'),
            )
            if (found := re.search(pattern, text, re.MULTILINE))
        ]
        print(f"  {int(sent):,} names sent; {', '.join(facts)}")
    finally:
        daemon.close()


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rate", type=int, default=4000, help="new names a second")
    parser.add_argument("--expressions", type=int, default=200)
    parser.add_argument("--slow", type=int, default=0, help="of them, names a second that take an expression long")
    parser.add_argument("--other", help="the program of another version")
    options = parser.parse_args()
    ours = str(Path(sys.executable).with_name("dnsprobe"))
    for program in filter(None, (options.other, ours)):
        with tempfile.TemporaryDirectory() as folder:
            _measure(program, options, Path(folder))


if __name__ == "__main__":
    main()
