"""Askers that interrupt each other: every query is counted or counted as missed, and no event mixes two queries.

While they send, another program hammers its maps, and the rules change. benchmarks/exactness.py does the same with many
more queries. tests/vm does it on preemptible kernels.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import contention
import pytest
from conftest import HERE, PROGRAM, Program

from dnsprobe.config.main import Config
from dnsprobe.kernel.abi import Statistic
from dnsprobe.kernel.losses import Source
from dnsprobe.pipeline.session import Session

QUERIES = 400_000


@pytest.fixture(scope="session")
def senders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile ``contend`` and ``hammer``, and return their folder."""
    folder = tmp_path_factory.mktemp("contention")
    for name in ("contend", "hammer"):
        source = HERE.parent / "vm/guest/senders" / f"{name}.c"
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", folder / name, source], check=True)
    return folder


@pytest.mark.parametrize("probe", ["hook: auto", "tcp_hook: auto"])
def test_counted_and_missed_are_what_was_sent(probe: str, senders: Path, tmp_path: Path) -> None:
    with contention.Daemon(PROGRAM, tmp_path, probe) as daemon:
        result = daemon.contend(senders, QUERIES)
    assert result.reloads >= 1  # a storm waits until the rules have changed
    assert result.mistakes == []
    assert result.unaccounted == 0, result


def test_no_event_mixes_two_queries(start_watch: Callable[..., Program], senders: Path) -> None:
    watch = start_watch("--json", *contention.EVENT_RULES)
    with contention.hammering(senders / "hammer"):
        sent = contention.send(senders / "contend", QUERIES // 20, new_names=True)
    assert watch.stop() == 0
    shown, wrong = contention.wrong_events(watch.out.read_text().splitlines(), sent)
    assert wrong == []
    queries, events, lost = contention.totals_in(watch.err.read_text())
    assert (queries + lost, events) == (sent.total, shown)


def test_no_loss_decreases_if_a_packet_passes_between_two_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Config(), [("exact.test", "exact.test", 6)])
    try:
        statistics = dict.fromkeys(Statistic, 0)
        monkeypatch.setattr(session.probe, "statistics", lambda: statistics)
        monkeypatch.setattr(session.probe.prover, "missed_runs", lambda: 5)
        shown = []
        for taken in (0, 1, 0):
            statistics[Statistic.PARTS_TAKEN] = taken
            shown += [times for loss, times in session.losses().items() if loss.source is Source.MISSED_RUNS]
        assert shown == [5, 5, 5]
    finally:
        session.close()


def test_losses_are_read_in_order_and_are_all_there_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Config(), [("exact.test", "exact.test", 6)])
    read: list[str] = []

    def statistics() -> dict[Statistic, int]:
        read.append("statistics")
        return dict.fromkeys(Statistic, 0) | {Statistic.PARTS_LEFT: 2}

    def missed_runs() -> int:
        read.append("missed runs")
        return 0

    def lost() -> list[int]:
        return [times for loss, times in session.losses().items() if loss.source is Source.PARTS_LOST]

    try:
        monkeypatch.setattr(session.probe, "statistics", statistics)
        monkeypatch.setattr(session.probe.prover, "missed_runs", missed_runs)
        # They may be on their way to the hook at egress, until it is detached.
        assert lost() == [0]
        assert read == ["missed runs", "statistics"]
        session.detach()
        assert lost() == [2]
    finally:
        session.close()
