"""Run promtool, or skip the test if it is not installed."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def promtool(*arguments: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run promtool with ``text`` as its standard input."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed: apt install prometheus, or run scripts/test")
    return subprocess.run([tool, *arguments], input=text, capture_output=True, check=False)
