"""Measure what dnsprobe costs senders: UDP packets and TCP writes, without and with hooks, alternating in one run.

Usage: .venv/bin/python benchmarks/send_cost.py [ROUNDS [SENDS]]

Compiles sends.c. It sends to a port that is not watched, and to a watched one, where each send is a counted query.
perf(1) counts instructions and cycles of sender and receiver, in user space and in the kernel. Prints the medians of
all rounds.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

from perf import EVENTS, count

from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.names.ruleset import TrieEntry

_KINDS = [(protocol, watched) for protocol in ("udp", "tcp") for watched in (False, True)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _send(program: str, protocol: str, port: int, sends: int) -> list[float]:
    """Return the number of each of EVENTS per send."""
    _, counted = count([program, protocol, str(port), str(sends)])
    return [number / sends for number in counted]


def _send_all(program: str, port: int, sends: int) -> dict[tuple[str, bool], list[float]]:
    return {
        (protocol, watched): _send(program, protocol, port if watched else _free_port(), sends)
        for protocol, watched in _KINDS
    }


def _send_attached(program: str, port: int, sends: int) -> dict[tuple[str, bool], list[float]]:
    probe = Probe(ProbeOptions([port]), Sizes(1 << 20, 1024, 1024, 1024, 1024), 60 * 10**9)
    try:
        probe.set_rules([TrieEntry(b"\0", 0, 1, 1)])
        probe.start(print)
        taken = _send_all(program, port, sends)
        counted = sum(queries for _, queries in probe.maps.counters.items())
        if counted != 2 * sends:
            sys.exit(f"{counted} of {2 * sends} counted")
        return taken
    finally:
        probe.close()
        probe.release()


def _compare(program: str, port: int, rounds: int, sends: int) -> None:
    without: dict[tuple[str, bool], list[list[float]]] = defaultdict(list)
    attached: dict[tuple[str, bool], list[list[float]]] = defaultdict(list)
    for _ in range(rounds):
        for numbers, send in ((without, _send_all), (attached, _send_attached)):
            for kind, taken in send(program, port, sends).items():
                numbers[kind].append(taken)
    for protocol, watched in _KINDS:
        what = "a query that counts" if watched else "port not watched"
        for at, event in enumerate(EVENTS):
            before, after = (median(taken[at] for taken in each[protocol, watched]) for each in (without, attached))
            print(
                f"{protocol}  {what:<24} {before:6.0f} {event:<12} and {after - before:5.0f} more with hooks: "
                f"{after / before:.3f} times"
            )


def main() -> None:
    """Print the cost of a send."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    sends = int(sys.argv[2]) if len(sys.argv) > 2 else 50_000
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/sends"
        source = Path(__file__).with_name("sends.c")
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", program, str(source)], check=True)
        _compare(program, _free_port(), rounds, sends)


if __name__ == "__main__":
    main()
