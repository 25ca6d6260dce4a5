"""A made-up standard output."""

from __future__ import annotations

import io

import pytest


class Stream(io.TextIOWrapper):
    """A stream that is a terminal or a pipe."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def set_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of a terminal with colours, 80 columns and UTF-8."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("locale.getencoding", lambda: "UTF-8")
