"""The kernel side agrees with the reference on what tests/fuzz/kernel_answers.py has kept, and on new answers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from conftest import PATIENCE

SEARCH = Path(__file__).parents[1] / "fuzz/kernel_answers.py"


def test_kept_and_new_answers_agree_with_the_reference() -> None:
    command = [sys.executable, str(SEARCH), "20000", "5000", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE * 5)
    assert done.returncode == 0, done.stderr
    tried = dict(re.findall(r"^(\w+): (\d+) (?:inputs|queries in)", done.stdout, re.MULTILINE))
    assert tried.keys() == {"corpus", "datagrams", "streams"}, done.stdout
    assert int(tried["corpus"]) > 100
    assert (int(tried["datagrams"]), int(tried["streams"])) == (20000, 5000)
    # Both parts have answers with each result among them.
    results = re.findall(r"^ +\d+ ([A-Z_]+)$", done.stdout, re.MULTILINE)
    assert len(results) == 2 * len({*results}) == 22
