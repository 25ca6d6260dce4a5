"""Overload: losses are counted, and the counters stay exact."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Service

Start = Callable[..., Service]
Scene = Callable[..., Any]

MILLION = 1_000_000


def usage(pid: int) -> tuple[float, int]:
    """Return the CPU seconds and the resident KiB of a process."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    resident = int(stat[21]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return cpu, resident


def run_flood(prefix: list[str], flood: Path, name: str, count: int, *, distinct: bool = False) -> int:
    command = [*prefix, str(flood), "127.0.0.1", "53", name, str(count), str(int(distinct)), "4"]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def test_a_million_queries(
    start: Start, in_namespace: list[str], flood: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = start("domains: [flood.test]")
    service.get("/metrics")
    before = usage(service.process.pid)
    matched = run_flood(in_namespace, flood, "www.flood.test", MILLION)
    between = usage(service.process.pid)
    unmatched = run_flood(in_namespace, flood, "www.flood.invalid", MILLION)
    after = usage(service.process.pid)
    assert (matched, unmatched) == (MILLION, MILLION)
    assert service.by("dnsprobe_queries_total", "domain") == {"flood.test": MILLION}
    assert service.by("dnsprobe_queries_total", "process") == {"flood": MILLION}
    assert service.value("dnsprobe_events_total") == 4
    with capsys.disabled():
        print(
            f"\n  1,000,000 matched: {between[0] - before[0]:.2f} s of CPU, {between[1] / 1024:.1f} MiB resident"
            f"\n  1,000,000 unmatched: {after[0] - between[0]:.2f} s, {after[1] / 1024:.1f} MiB"
        )


def test_ring_overflow_loses_events_and_no_count(start: Start, in_namespace: list[str], flood: Path) -> None:
    service = start("domains: [flood.test]\nprobe: {ring_size: 4KiB}")
    sent = run_flood(in_namespace, flood, "flood.test", 20_000, distinct=True)
    assert service.by("dnsprobe_queries_total", "domain") == {"flood.test": sent}
    lost = service.by("dnsprobe_events_lost_total", "reason")
    assert lost["ring_full"] > 0
    # Every name is new, so each query has an event or a lost event. The tree is known in both cases.
    assert service.value("dnsprobe_events_total") + lost["ring_full"] == sent
    assert set(service.by("dnsprobe_queries_total", "process")) == {"flood"}


def test_full_counters_keep_totals(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]\nprobe: {counters: 8}")
    sent = scene("many", 10, 13, 3, "www.watched.test")["sent"]
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": sent}
    affected = service.by("dnsprobe_queries_unattributed_total", "reason")["counters_full"]
    assert affected > 0
    assert service.by("dnsprobe_queries_total", "process")["(other)"] == affected


def test_full_processes_keep_totals(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]\nprobe: {processes: 2}")
    sent = scene("many", 20, 13, 1, "www.watched.test")["sent"]
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": sent}
    lost = service.by("dnsprobe_queries_unattributed_total", "reason")
    assert lost["processes_full"] > 0
    # Each of the 20 processes has 13 events.
    assert 0 < lost["identities_full"] <= 20


def test_series_limit_keeps_totals(start: Start, scene: Scene) -> None:
    service = start("domains: [oneshot.test]\nmetrics: {max_series: 80}")
    scene("oneshots", 200, 8)
    assert service.by("dnsprobe_queries_total", "domain") == {"oneshot.test": 200}
    trees = service.by("dnsprobe_queries_total", "tree")
    assert len(trees) <= 80
    assert trees["(other)"] == 200 - (len(trees) - 1)
    assert service.value("dnsprobe_series_folded_total") == trees["(other)"]
