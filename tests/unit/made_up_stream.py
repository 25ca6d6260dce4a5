"""A made-up standard output."""

from __future__ import annotations

import io


class Stream(io.TextIOWrapper):
    """A stream that is a terminal or a pipe."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal
