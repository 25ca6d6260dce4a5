"""What following lineages costs those who fork: a storm of processes, not followed and followed, by turns in one run.

Usage: .venv/bin/python benchmarks/fork_cost.py [FAMILIES [ROUNDS]]

Compiles storm.c. ``leaf`` is fork and exit; ``job``, as in a build, fork, exec and exit; of ``orphan``, half are left
to another parent. What is compared are the instructions of the storm, user and kernel, as perf(1) counts them, and the
CPU time: of each the least in all rounds, for what disturbs it only adds. What a run of each program takes is measured
by the kernel (kernel.bpf_stats_enabled), its own cost included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dnsprobe.identity import ProcFS
from dnsprobe.kernel.bpf import program_runs
from dnsprobe.kernel.probe import Probe, Sizes, Where
from dnsprobe.lineage import Lineage

_SWITCH = Path("/proc/sys/kernel/bpf_stats_enabled")
_ENTRIES = 32768
_TRACEPOINTS = ("sched_process_exit", "task_rename", "sched_process_fork")


def _storm(program: str, kind: str, families: int) -> tuple[int, float, float]:
    """Return how many processes there were, the instructions that they took (0: no counter for them), CPU seconds."""
    # On one CPU, so that nobody's wait for a lock of another is counted.
    pinned = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0)))]
    command = [*pinned, "perf", "stat", "-x,", "-e", "instructions", program, kind, str(families), "2"]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    counted = done.stderr.strip().splitlines()[-1].split(",")[0]
    return int(done.stdout), float(counted) if counted.isdecimal() else 0.0, cpu


@contextmanager
def _followed() -> Iterator[tuple[Probe, Lineage]]:
    probe = Probe(Where([5], tcp_hook="none"), Sizes(4096, 16, 16, 16, 16, _ENTRIES), 0)
    lineage = Lineage(probe, _ENTRIES, ProcFS().alive)
    try:
        probe.set_rules([])
        probe.start(print, seed=lineage.seed)
        yield probe, lineage
    finally:
        probe.close()
        probe.release()


def _compare(program: str, kind: str, families: int, rounds: int) -> None:
    instructions: dict[bool, list[float]] = {False: [], True: []}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    lost = 0
    for _ in range(rounds):
        for attached in (False, True):
            with _followed() if attached else nullcontext() as following:
                made, counted, cpu = _storm(program, kind, families)
                instructions[attached].append(counted / made)
                seconds[attached].append(cpu / made)
                if following:
                    lost += following[0].lineage_full() + following[0].lineage_missed_runs()
    print(f"{kind:<7} {made} processes, {lost} lost; each takes")
    for what, unit, each in (("instructions", 1.0, instructions), ("us of CPU", 1e6, seconds)):
        without, followed = min(each[False]) * unit, min(each[True]) * unit
        if without:
            print(f"{kind:<7}   {without:9.1f} {what}, followed {followed:9.1f}: {followed / without:.3f} times")


def _measure_runs(program: str, kind: str, families: int) -> None:
    before = _SWITCH.read_text()
    with _followed() as (probe, lineage):
        there = sum(1 for _ in probe.ancestors())
        try:
            _SWITCH.write_text("1")
            _storm(program, kind, families)
        finally:
            _SWITCH.write_text(before)
        assert probe.lineage is not None
        for tracepoint, fd in zip(_TRACEPOINTS, probe.lineage.programs, strict=True):
            runs = program_runs(fd)
            print(
                f"{kind:<7} {tracepoint:<18} {runs.time_ns / max(runs.runs, 1):6.0f} ns a run, {runs.runs} runs, "
                f"{runs.verified} instructions verified"
            )
        print(f"{kind:<7} processes in the map: {there} before, {sum(1 for _ in probe.ancestors())} after")
        began = os.times()
        lineage.sweep()
        ended = os.times()
        print(f"{kind:<7} a sweep: {(ended.user + ended.system - began.user - began.system) * 1000:.0f} ms of CPU")


def main() -> None:
    """Print what a process takes, and what a run does."""
    families = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/storm"
        source = Path(__file__).with_name("storm.c")
        subprocess.run(["cc", "-O2", "-static", "-o", program, str(source)], check=True)
        for kind in ("leaf", "job", "orphan"):
            _compare(program, kind, families, rounds)
            _measure_runs(program, kind, families)


if __name__ == "__main__":
    main()
