"""On this kernel, each rung makes of each situation what docs/ways-out.md says of the virtual machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import HERE
from ways_out.observers import RUNGS, Players, observing, play
from ways_out.situations import TITLES
from ways_out_page import ABSENT, published

PAGE = published((HERE.parents[1] / "docs" / "ways-out.md").read_text("utf-8"))


@pytest.fixture(scope="module")
def found(sender: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return the verdicts by rung and situation, for the rungs that this kernel has."""
    players = Players(sender)
    try:
        with observing(RUNGS, tmp_path_factory.mktemp("ways-out")) as (observers, unavailable):
            verdicts, notes = play(players, observers, TITLES)
    finally:
        players.close()
    print(*unavailable.values(), *notes, sep="\n")
    assert verdicts
    return verdicts


@pytest.mark.parametrize("situation", TITLES)
def test_a_situation_has_the_verdicts_of_the_page(found: dict[str, dict[str, str]], situation: str) -> None:
    for rung, verdicts in found.items():
        # Kernels differ in a few cells. The newest kernel with what the situation needs comes last.
        on_page = [verdict for verdict in PAGE[rung][situation].values() if verdict != ABSENT]
        assert verdicts[situation] in {ABSENT, on_page[-1]}, rung
