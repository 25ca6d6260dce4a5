"""Bytes from strangers as text that is safe to show.

A comm, a command line and a name come from anyone on the host. What leaves dnsprobe as text, to a terminal, a
journal field, a metric label or a page, has gone through :func:`printable` first.
"""

from __future__ import annotations


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as surrogateescape carries it
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def number(count: int, what: str, many: str = "") -> str:
    """Return a number with its noun, in the plural where it takes one: ``number(2, "query", "queries")``."""
    return f"{count} {what if count == 1 else many or what + 's'}"


def printable(raw: bytes | str, also: str = "") -> str:
    r"""Return ``raw`` as printable text; whatever is not printable becomes a backslash escape.

    Invalid UTF-8, control characters, line separators, and marks that reorder or hide text (general categories C and Z
    of Unicode, except the space) are written ``\xNN`` or ``\uNNNN``; the backslash itself as ``\\``, so that no two
    inputs look the same. The characters in ``also`` are escaped too.
    """
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    if text.isprintable() and "\\" not in text and not any(char in text for char in also):
        return text
    return "".join(
        "\\\\" if char == "\\" else char if char.isprintable() and char not in also else _escape(char) for char in text
    )
