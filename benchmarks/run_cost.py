"""Measure what a run of the BPF programs costs, by the result of the run, with 10 and with 10,000 rules.

Usage: .venv/bin/python benchmarks/run_cost.py [PACKETS]

The kernel measures it (kernel.bpf_stats_enabled), including the cost of measuring. Packets and writes to TCP sockets go
to ports of this program on loopback.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from dnsprobe.kernel.libbpf import ProgramRuns, program_runs
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.model import NO_RULE
from dnsprobe.names.ruleset import TrieEntry
from dnsprobe.names.wire import from_text

_STATS_SWITCH = Path("/proc/sys/kernel/bpf_stats_enabled")


def _entries(rules: int) -> Sequence[TrieEntry]:
    names = [f"name{index}.example.test" for index in range(rules - 1)] + ["wanted.test"]
    return [
        TrieEntry(from_text(name), name.count(".") + 1, index + 1, index + 1) for index, name in enumerate(names)
    ] + [TrieEntry(from_text("test"), 1, NO_RULE, NO_RULE)]


def _message(name: str) -> bytes:
    return bytes.fromhex("0001 0100 0001 0000 0000 0000") + from_text(name) + bytes([0, 1, 0, 1])


def _runs(probe: Probe, path: str) -> ProgramRuns:
    (program,) = {hook.programs[0] for hook in probe.prover.hooks if path in hook.paths}
    return program_runs(program)


def _per_run(before: ProgramRuns, after: ProgramRuns) -> float:
    return (after.time_ns - before.time_ns) / max(after.runs - before.runs, 1)


def _measure(probe: Probe, payload: bytes, port: int, packets: int) -> float:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        # The smallest buffer: the kernel drops the packets on arrival, so nothing has to read them.
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        receiver.bind(("127.0.0.1", port))
        sender.connect(receiver.getsockname())
        before = _runs(probe, "udp4")
        for _ in range(packets):
            sender.send(payload)
        return _per_run(before, _runs(probe, "udp4"))


def _measure_writes(probe: Probe, pieces: Sequence[bytes], port: int, writes: int) -> float:
    with socket.create_server(("127.0.0.1", port)) as listener, socket.socket() as sender:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender.connect(listener.getsockname())
        receiver = listener.accept()[0]
        thread = threading.Thread(target=lambda: all(iter(lambda: receiver.recv(1 << 20), b"")))
        thread.start()
        before = _runs(probe, "tcp4")
        for _ in range(writes // len(pieces)):
            for piece in pieces:
                sender.send(piece)
        after = _runs(probe, "tcp4")
        sender.close()
        thread.join()
        receiver.close()
    return _per_run(before, after)


def main() -> None:
    """Print a table: nanoseconds per run."""
    packets = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = _STATS_SWITCH.read_text()
    _STATS_SWITCH.write_text("1")
    probe = Probe(ProbeOptions([port]), Sizes(1 << 20, 1024, 1024, 1024, 1024), 60 * 10**9)
    try:
        probe.set_rules(_entries(10))
        probe.start(print)
        for path in probe.prover.served_paths:
            print(f"{path}: {_runs(probe, path).verified} instructions verified")
        for rules in (10, 10_000, 10, 10_000):
            probe.set_rules(_entries(rules))
            costs = {
                "not to a watched port": _measure(probe, _message("www.wanted.test"), 0, packets),
                "not a query": _measure(probe, b"\xff" * 64, port, packets),
                "no rule matches": _measure(probe, _message("www.other.test"), port, packets),
                "no rule, near misses": _measure(probe, _message("www.nam.example.test"), port, packets),
                "counted": _measure(probe, _message("www.wanted.test"), port, packets),
                "counted, deep": _measure(probe, _message("www.name7.example.test"), port, packets),
            }
            framed = b"\0" + bytes([len(_message("www.wanted.test"))]) + _message("www.wanted.test")
            other = b"\0" + bytes([len(_message("www.other.test"))]) + _message("www.other.test")
            costs |= {
                "tcp, no watched port": _measure_writes(probe, [framed], 0, packets),
                "tcp, no rule matches": _measure_writes(probe, [other], port, packets),
                "tcp, counted": _measure_writes(probe, [framed], port, packets),
                "tcp, counted, in two": _measure_writes(probe, [framed[:2], framed[2:]], port, packets),
            }
            for what, cost in costs.items():
                print(f"{rules:>6} rules  {what:<24} {cost:6.0f} ns")
    finally:
        _STATS_SWITCH.write_text(before)
        probe.close()
        probe.release()


if __name__ == "__main__":
    main()
