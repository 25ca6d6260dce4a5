"""What a terminal can show, and how many columns a text takes there."""

from __future__ import annotations

import locale
import os
import shutil
import unicodedata
from dataclasses import dataclass
from typing import TextIO

#: Select Graphic Rendition codes (ECMA-48, section 8.3.117).
BOLD, DIM, RED, GREEN, CYAN = "1", "2", "31", "32", "36"

#: Hangul vowels and final consonants: they share the cell pair of the consonant before them (Unicode, section 3.12).
_JOINING_JAMO = range(0x1160, 0x1200)


@dataclass(frozen=True, slots=True)
class Look:
    """How to print.

    ``colour`` allows SGR sequences, ``moves`` the sequences that move the cursor. ``width`` is the terminal's in
    columns, None for no limit. Without ``unicode``, all output is ASCII.
    """

    colour: bool = False
    moves: bool = False
    width: int | None = None
    unicode: bool = True

    def paint(self, text: str, *codes: str) -> str:
        """Return ``text`` with SGR codes if colour is allowed."""
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self.colour and text else text

    def plain(self, text: str) -> str:
        """Return ``text`` with escapes for the characters that cannot be shown."""
        return text if self.unicode else text.encode("ascii", "backslashreplace").decode("ascii")

    @property
    def ellipsis_mark(self) -> str:
        """The mark for a part that is left out."""
        return "…" if self.unicode else "..."


#: Text without colour, in any width.
PLAIN = Look()


def look_of(output: TextIO) -> Look:
    """Return how to print to a stream, by what it is (terminal or pipe), the locale and the environment."""
    terminal = output.isatty()
    smart = terminal and os.environ.get("TERM") not in {None, "", "dumb"}
    # In the C locale, Python writes UTF-8 too (PEP 540), but the terminal does not expect it.
    encodings = {(output.encoding or "").lower().replace("-", ""), locale.getencoding().lower().replace("-", "")}
    return Look(
        # https://no-color.org: set and not empty
        colour=smart and not os.environ.get("NO_COLOR"),
        moves=smart,
        width=columns() if terminal else None,
        unicode=encodings == {"utf8"},
    )


def columns() -> int:
    """Return the width of the terminal; the variable COLUMNS overrides it."""
    return shutil.get_terminal_size().columns


def cells(text: str) -> int:
    """Return how many columns a printable text takes (UAX #11; combining marks take none)."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"} or ord(char) in _JOINING_JAMO:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def cut(text: str, width: int, ellipsis_mark: str) -> str:
    """Return ``text``, or its beginning and the mark, cut to ``width`` columns. The mark is cut if it does not fit."""
    if cells(text) <= width:
        return text
    room = width - cells(ellipsis_mark)
    if room < 0:
        return ellipsis_mark[: max(width, 0)]
    kept = []
    for char in text:
        room -= _cells_of(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept) + ellipsis_mark
