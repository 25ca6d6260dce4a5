"""Text that is safe to show.

Anyone on the host chooses process names, command lines and DNS names. They can contain control characters, or marks
that hide or reorder text. Before such bytes reach a terminal, a journal field, a metric label or the page, they go
through exactly one of two functions:

- :func:`printable` where the bytes enter: it escapes every input, the backslash too.
- :func:`shown` for a text that may already contain escapes: it leaves a printable text alone.
"""

from __future__ import annotations

#: The most characters of a value that a message shows.
_SHORT = 80


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as surrogateescape decodes it
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def number(count: int, what: str, many: str = "") -> str:
    """Return a number with its noun, in the plural unless it is 1: ``number(2, "query", "queries")``."""
    return f"{count} {what if count == 1 else many or what + 's'}"


def printable(raw: bytes | str, also: str = "") -> str:
    r"""Escape raw input: return printable text, a different one for each input.

    Use it once, on bytes or text from outside. Invalid UTF-8, control characters, line separators, and marks that
    reorder or hide text (general categories C and Z of Unicode, except the space) become ``\xNN``, ``\uNNNN`` or
    ``\UNNNNNNNN``, and the backslash becomes ``\\``. A second call would double the backslashes again. The characters
    in ``also`` are escaped too.
    """
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    if text.isprintable() and "\\" not in text and not any(char in text for char in also):
        return text
    return "".join(
        "\\\\" if char == "\\" else char if char.isprintable() and char not in also else _escape(char) for char in text
    )


def shown(text: str) -> str:
    r"""Return a finished text unchanged if it is printable; otherwise escape it like :func:`printable`.

    Use it where a text that has its escapes already (a tree, a rule's name, a label) reaches an output. A backslash
    stays single, so calling it twice does no harm. Raw input needs :func:`printable`: here ``\x1b`` as four
    characters and the control character ESC would look the same.
    """
    return text if text.isprintable() else printable(text)


def shorten(text: str) -> str:
    """Return a value that a user wrote, safe to show and at most 80 characters long, for a message about it."""
    escaped = printable(text).replace("\\\\", "\\")
    return escaped if len(escaped) <= _SHORT else escaped[: _SHORT - 3] + "..."
