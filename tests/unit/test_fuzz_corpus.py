"""The inputs that scripts/fuzz has kept, tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
from targets import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz/corpus"
INPUTS = sorted(path for folder in CORPUS.iterdir() for path in folder.iterdir())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name[:12]}")
def test_what_is_kept_breaks_nothing(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_each_target_has_a_corpus() -> None:
    assert {path.parent.name for path in INPUTS} >= TARGETS.keys() - {"btf"}
