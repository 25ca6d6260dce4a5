"""The output of doctor on a terminal and in a pipe."""

from __future__ import annotations

import sys

import pytest
from made_up_stream import Stream, set_terminal

from dnsprobe.commands import doctor


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_terminal(monkeypatch)


def test_a_long_detail_is_wrapped_below_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(*, terminal: bool) -> str:
        stream = Stream(terminal=terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        doctor._print_line(False, "check", "word " * 20 + "\x1b[2J")
        stream.flush()
        text = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert "\x1b[2J" not in text
        assert text.endswith("\\x1b[2J\n")
        return str(text)

    monkeypatch.setenv("NO_COLOR", "1")
    first, second = printed(terminal=True).splitlines()
    assert first == "NO  check          " + "word " * 11 + "word"
    assert second.startswith(" " * 19 + "word")
    assert len(printed(terminal=False).splitlines()) == 1
    monkeypatch.delenv("NO_COLOR")
    assert printed(terminal=True).startswith("\x1b[31mNO\x1b[0m  check")
