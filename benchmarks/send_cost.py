"""What dnsprobe costs those who send: UDP packets and TCP writes, not attached and attached, by turns in one run.

Usage: .venv/bin/python benchmarks/send_cost.py [SENDS [ROUNDS]]

Compiles sends.c. What is compared is the CPU time of the sender: the least in all rounds, for what disturbs it only
adds. Each is sent to a port that is not watched, and to one that is, where each is a query that is counted.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from dnsprobe.kernel.abi import TrieEntry
from dnsprobe.kernel.probe import Probe, Sizes, Where


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _send(program: str, protocol: str, port: int, sends: int) -> float:
    """Return the nanoseconds that a send took."""
    return (
        int(subprocess.run([program, protocol, str(port), str(sends)], capture_output=True, check=True).stdout) / sends
    )


def _compare(program: str, port: int, sends: int, rounds: int) -> None:
    kinds = [(protocol, watched) for protocol in ("udp", "tcp") for watched in (False, True)]
    least: dict[tuple[str, bool, bool], float] = {}
    for _ in range(rounds):
        for attached in (False, True):
            probe = Probe(Where([port]), Sizes(1 << 20, 1024, 1024, 1024, 1024), 60 * 10**9) if attached else None
            if probe:
                probe.set_rules([TrieEntry(b"\0", 0, 1, 1)])
                probe.start(print)
            for protocol, watched in kinds:
                each = _send(program, protocol, port if watched else _free_port(), sends)
                key = (protocol, watched, attached)
                least[key] = min(each, least.get(key, each))
            if probe:
                counted = sum(queries for _, queries in probe.counts())
                assert counted == 2 * sends, f"{counted} of {2 * sends} counted"
                probe.close()
                probe.release()
    for protocol, watched in kinds:
        without, with_probe = least[protocol, watched, False], least[protocol, watched, True]
        what = "a query that is counted" if watched else "no watched port"
        print(
            f"{protocol}  {what:<24} {without:6.0f} ns, attached {with_probe:6.0f} ns: {with_probe / without:.2f} times"
        )


def main() -> None:
    """Print a table: nanoseconds per send."""
    sends = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/sends"
        source = Path(__file__).with_name("sends.c")
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", program, str(source)], check=True)
        _compare(program, _free_port(), sends, rounds)


if __name__ == "__main__":
    main()
