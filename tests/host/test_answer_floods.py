"""Queries that nobody answers, and forged answers, are counted exactly, and take nothing from others."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import HERE, PATIENCE

FLOODS = HERE.parents[1] / "benchmarks/answer_floods.py"


def test_floods_of_queries_and_answers_are_counted_exactly() -> None:
    # More than there are ids; with 1000000, it takes half a minute.
    command = [sys.executable, str(FLOODS), "70000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE * 5)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^silent: (\d+) queries by (\d) users", done.stdout, re.MULTILINE) == [
        ("70000", "1"),
        ("70000", "4"),
    ]
    assert "forged: 140000 answers" in done.stdout
    # One user has at most half of the room; the last query may be counted, but not yet untracked.
    (most,) = re.findall(r"by 1 users.* at most (\d+) waited", done.stdout)
    assert 0 < int(most) <= 32768 + 2
