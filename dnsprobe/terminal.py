"""What a terminal can show, and how much room a text takes there."""

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

    ``colour`` allows SGR sequences; ``moves`` the sequences that move the cursor; ``width`` is that of the terminal in
    columns, None for no limit; without ``unicode`` all is ASCII.
    """

    colour: bool = False
    moves: bool = False
    width: int | None = None
    unicode: bool = True

    def paint(self, text: str, *codes: str) -> str:
        """Return ``text`` with SGR codes, where there is colour."""
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self.colour and text else text

    def plain(self, text: str) -> str:
        """Return ``text`` in the characters that can be shown: with escapes for the others."""
        return text if self.unicode else text.encode("ascii", "backslashreplace").decode("ascii")

    @property
    def ellipsis_mark(self) -> str:
        """What stands for a part that is left out."""
        return "…" if self.unicode else "..."


def look_of(output: TextIO) -> Look:
    """Return how to print to a stream: on a terminal, in a pipe, in this locale, with this environment."""
    terminal = output.isatty()
    smart = terminal and os.environ.get("TERM") not in {None, "", "dumb"}
    # Python writes UTF-8 in the C locale, too (PEP 540), where whoever reads does not expect it.
    encodings = {(output.encoding or "").lower().replace("-", ""), locale.getencoding().lower().replace("-", "")}
    return Look(
        # https://no-color.org: set and not empty
        colour=smart and not os.environ.get("NO_COLOR"),
        moves=smart,
        width=columns() if terminal else None,
        unicode=encodings == {"utf8"},
    )


def columns() -> int:
    """Return the width of the terminal, or what COLUMNS says."""
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
    """Return ``text``, or as much of its beginning as fits into ``width`` columns with the mark behind it.

    Where not even the mark fits, as much of that.
    """
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
