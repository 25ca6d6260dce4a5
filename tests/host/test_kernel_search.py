"""The kernel side agrees with the reference on what tests/fuzz/kernel_parser.py has kept, and on new inputs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from conftest import PATIENCE

SEARCH = Path(__file__).parents[1] / "fuzz/kernel_parser.py"


def test_kept_and_new_messages_and_streams_agree_with_the_reference() -> None:
    command = [sys.executable, str(SEARCH), "20000", "10000", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE * 5)
    assert done.returncode == 0, done.stderr
    tried = dict(re.findall(r"^(\w+): (\d+) (?:inputs|messages in)", done.stdout, re.MULTILINE))
    assert tried.keys() == {"corpus", "datagrams", "packets", "streams"}, done.stdout
    assert int(tried["corpus"]) > 100
    assert int(tried["datagrams"]) == 20000
    assert int(tried["streams"]) > 5000
    # All parts have queries among them.
    assert len(re.findall(r"^ +\d+ question$", done.stdout, re.MULTILINE)) == 3
