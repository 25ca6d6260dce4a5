"""What each rung of the ladder makes of each situation in which queries leave a host: docs/ways-out.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import PATIENCE, SENDERS, keep, kernel
from running import Program
from ways_out.observers import RUNGS, Players, observing, play
from ways_out.situations import TITLES


@pytest.fixture
def players() -> Iterator[Players]:
    players = Players(SENDERS / "send")
    yield players
    players.close()


def test_nothing_is_counted_wrongly_in_any_situation(
    players: Players, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Program, "patience", PATIENCE)
    monkeypatch.setenv("CACHE_DIRECTORY", str(compiled))
    with observing(RUNGS, tmp_path) as (observers, unavailable):
        verdicts, notes = play(players, observers, TITLES)
    print(*unavailable.values(), *notes, sep="\n")
    keep("ways-out", {"kernel": kernel(), "rungs": verdicts})
    wrong = {
        f"{situation} at {rung}": found
        for rung, situations in verdicts.items()
        for situation, found in situations.items()
        if found.startswith("wrong")
    }
    assert wrong == {}
