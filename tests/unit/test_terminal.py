"""What a terminal can show, and how much room a text takes there."""

from __future__ import annotations

import io
import sys

import pytest

from dnsprobe.commands import doctor
from dnsprobe.terminal import Look, cells, cut, look_of


class Stream(io.TextIOWrapper):
    """A stream that is a terminal, or is not."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("locale.getencoding", lambda: "UTF-8")


def test_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_of(Stream()) == Look(colour=True, moves=True, width=80, unicode=True)
    monkeypatch.setenv("NO_COLOR", "")
    assert look_of(Stream()).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert look_of(Stream()) == Look(colour=False, moves=True, width=80, unicode=True)


@pytest.mark.parametrize("term", ["dumb", "", None])
def test_a_terminal_that_can_nothing(term: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM")
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert look_of(Stream()) == Look(colour=False, moves=False, width=80, unicode=True)


def test_a_pipe() -> None:
    assert look_of(Stream(terminal=False)) == Look(colour=False, moves=False, width=None, unicode=True)


def test_a_locale_without_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not look_of(Stream("ascii")).unicode
    monkeypatch.setattr("locale.getencoding", lambda: "ANSI_X3.4-1968")
    assert not look_of(Stream("utf-8")).unicode


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("abc", 3),
        ("漢字", 4),
        ("é", 1),
        ("e\u0301", 1),
        ("한", 2),
        ("\u1112\u1161\u11ab", 2),
        ("ｱ", 1),
        ("\uff21", 2),
    ],
)
def test_cells(text: str, columns: int) -> None:
    assert cells(text) == columns
    assert cut(text, columns, "…") == text


def test_cut() -> None:
    assert [cut("ab漢字", width, "…") for width in range(7)] == ["", "…", "a…", "ab…", "ab…", "ab漢…", "ab漢字"]
    assert [cut("abcdef", width, "...") for width in range(7)] == ["", ".", "..", "...", "a...", "ab...", "abcdef"]


def test_doctor_goes_on_below_the_detail(monkeypatch: pytest.MonkeyPatch) -> None:
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
