"""Measure what lineage tracking costs processes that fork: without and with it, alternating in one run.

Usage: .venv/bin/python benchmarks/fork_cost.py [ROUNDS [FAMILIES]]

Compiles storm.c, which makes many processes. ``leaf`` is fork and exit; ``job`` is fork, exec and exit, as in a build;
half of the processes of ``orphan`` lose their parent. perf(1) counts instructions and cycles of all processes, in user
space and in the kernel. Prints their medians. The kernel measures the time of each BPF program
(kernel.bpf_stats_enabled), including the cost of measuring.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

from perf import EVENTS, count

from dnsprobe.kernel.attach import attach_tracepoint
from dnsprobe.kernel.hooks import LINEAGE_TRACEPOINTS
from dnsprobe.kernel.libbpf import program_runs
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.process.lineage import Lineage
from dnsprobe.process.procfs import ProcFS

_STATS_SWITCH = Path("/proc/sys/kernel/bpf_stats_enabled")
_ENTRIES = 32768


def _storm(program: str, kind: str, families: int) -> tuple[int, list[float]]:
    """Return the number of processes, and the total of each of EVENTS."""
    printed, counted = count([program, kind, str(families), "2"])
    return int(printed), counted


@contextmanager
def _attached(probe: Probe) -> Iterator[None]:
    """Track lineages in the body. Attaching again is faster than loading again."""
    assert probe.lineage_table.hook is not None
    links = [
        attach_tracepoint(program, tracepoint)
        for program, tracepoint in zip(probe.lineage_table.hook.programs, LINEAGE_TRACEPOINTS, strict=True)
    ]
    try:
        yield
    finally:
        for link in links:
            os.close(link)


def _compare(probe: Probe, program: str, kind: str, rounds: int, families: int) -> None:
    costs: dict[bool, list[list[float]]] = {False: [], True: []}
    made = 0
    for _ in range(rounds):
        for attached in (False, True):
            with _attached(probe) if attached else nullcontext():
                made, counted = _storm(program, kind, families)
            costs[attached].append([number / made for number in counted])
    print(f"{kind:<7} {rounds} times {made} processes; each needs")
    for at, event in enumerate(EVENTS):
        without, tracked = (median(numbers[at] for numbers in costs[attached]) for attached in (False, True))
        print(
            f"{kind:<7}   {without:8.0f} {event}, and {tracked - without:5.0f} more with tracking: "
            f"{tracked / without:.3f} times"
        )


def _entries(probe: Probe) -> int:
    """Return the number of processes in the map."""
    return sum(1 for _ in probe.lineage_table.ancestors())


def _measure_runs(probe: Probe, program: str, kind: str, families: int) -> None:
    assert probe.lineage_table.hook is not None
    before = _STATS_SWITCH.read_text()
    earlier = [program_runs(fd) for fd in probe.lineage_table.hook.programs]
    entries_before = _entries(probe)
    try:
        _STATS_SWITCH.write_text("1")
        with _attached(probe):
            _storm(program, kind, families)
    finally:
        _STATS_SWITCH.write_text(before)
    for tracepoint, fd, old in zip(LINEAGE_TRACEPOINTS, probe.lineage_table.hook.programs, earlier, strict=True):
        new = program_runs(fd)
        runs = new.runs - old.runs
        print(f"{kind:<7} {tracepoint:<18} {(new.time_ns - old.time_ns) / max(runs, 1):6.0f} ns a run, {runs} runs")
    print(f"{kind:<7} processes in the map: {entries_before} before, {_entries(probe)} after")


def main() -> None:
    """Print the cost of a process, and of a run of each program."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    families = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    probe = Probe(ProbeOptions([5], tcp_hook="none"), Sizes(4096, 16, 16, 16, 16, _ENTRIES), 0)
    try:
        probe.set_rules([])
        probe.start(print, seed=Lineage(probe.lineage_table, _ENTRIES, ProcFS()).seed)
        assert probe.lineage_table.hook is not None
        while probe.lineage_table.hook.links:
            os.close(probe.lineage_table.hook.links.pop())
        with tempfile.TemporaryDirectory() as folder:
            program = f"{folder}/storm"
            source = Path(__file__).with_name("storm.c")
            subprocess.run(["cc", "-O2", "-static", "-o", program, str(source)], check=True)
            for kind in ("leaf", "job", "orphan"):
                _compare(probe, program, kind, rounds, families)
                _measure_runs(probe, program, kind, families * 10)
        table = probe.lineage_table
        print(f"{table.full()} not tracked for want of room, {table.missed_runs()} runs missed")
    finally:
        probe.close()
        probe.release()


if __name__ == "__main__":
    main()
