"""What a terminal can show, and how many columns a text takes there."""

from __future__ import annotations

import pytest
from made_up_stream import Stream, set_terminal

from dnsprobe.terminal import Look, cells, cut, look_of


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_terminal(monkeypatch)


def test_a_terminal_has_colour_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_of(Stream()) == Look(colour=True, moves=True, width=80, unicode=True)
    monkeypatch.setenv("NO_COLOR", "")
    assert look_of(Stream()).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert look_of(Stream()) == Look(colour=False, moves=True, width=80, unicode=True)


@pytest.mark.parametrize("term", ["dumb", "", None])
def test_a_dumb_terminal_gets_no_sequences(term: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM")
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert look_of(Stream()) == Look(colour=False, moves=False, width=80, unicode=True)


def test_a_pipe_gets_plain_text_of_any_width() -> None:
    assert look_of(Stream(terminal=False)) == Look(colour=False, moves=False, width=None, unicode=True)


def test_a_locale_without_utf8_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_text_takes_its_columns(text: str, columns: int) -> None:
    assert cells(text) == columns
    assert cut(text, columns, "…") == text


def test_a_cut_text_fits_the_width() -> None:
    assert [cut("ab漢字", width, "…") for width in range(7)] == ["", "…", "a…", "ab…", "ab…", "ab漢…", "ab漢字"]
    assert [cut("abcdef", width, "...") for width in range(7)] == ["", ".", "..", "...", "a...", "ab...", "abcdef"]
