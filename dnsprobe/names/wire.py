r"""DNS names in wire format and in presentation form.

The wire format (RFC 1035, section 3.1) is what the kernel side reads and matches: labels, each behind its length byte,
up to the empty label of the root. The presentation form (RFC 1035, section 5.1; RFC 4343, section 2.1) is what people
read and write: labels joined by dots, with the escapes ``\X`` and ``\DDD`` for special bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from dnsprobe.text import printable

#: Limits in bytes (RFC 1035, section 2.3.4). The length of a name includes its length bytes and its root byte.
MAX_LABEL = 63
MAX_NAME = 255

ROOT = b"\0"

#: One character of the presentation form: ``\DDD``, ``\X``, or the character itself.
_TOKEN = re.compile(r"\\[0-9]{3}|\\[^0-9]|[^\\]", re.DOTALL)

#: The dot and the characters that IDNA treats as a dot (RFC 3490, section 3.1; UTS 46, section 4.5).
_DOTS = frozenset(".\u3002\uff0e\uff61")


def _escaped(byte: int) -> str:
    if chr(byte) in '.\\";':
        return f"\\{chr(byte)}"
    return chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03d}"


_ESCAPED = [_escaped(byte) for byte in range(256)]


def fold(wire: bytes) -> bytes:
    """Return a name in wire format with ASCII A-Z in lower case and all other bytes unchanged (RFC 4343, section 3).

    Length bytes do not change: the highest, 63, is below ``A``.
    """
    return wire.lower()


def to_labels(wire: bytes) -> tuple[bytes, ...]:
    """Return the labels of a name in wire format, without the root's empty label.

    Raises ValueError if ``wire`` is not exactly one name: for compression pointers, a missing root byte, bytes behind
    the root byte, and more than 255 bytes.
    """
    if len(wire) > MAX_NAME:
        raise ValueError(f"a name of {len(wire)} bytes, the limit is {MAX_NAME}")
    labels: list[bytes] = []
    at = 0
    while at < len(wire):
        length = wire[at]
        at += 1
        if length == 0:
            if at != len(wire):
                raise ValueError(f"{len(wire) - at} bytes behind the root byte")
            return tuple(labels)
        if length > MAX_LABEL:
            raise ValueError(f"a length byte of {length}, the limit is {MAX_LABEL}")
        labels.append(wire[at : at + length])
        at += length
    raise ValueError("a name without its root byte")


def from_labels(labels: Iterable[bytes]) -> bytes:
    """Return the name with these labels of 1 to 63 bytes in wire format; raise ValueError if it exceeds 255 bytes."""
    wire = b"".join(bytes((len(label),)) + label for label in labels) + ROOT
    if len(wire) > MAX_NAME:
        raise ValueError(f"a name of {len(wire)} bytes in wire format, the limit is {MAX_NAME}")
    return wire


def label_text(label: bytes) -> str:
    """Return one label in presentation form: printable ASCII, with each dot escaped, and different for each label."""
    return "".join([_ESCAPED[byte] for byte in label])


def to_text(wire: bytes) -> str:
    r"""Return the presentation form of a name in wire format: printable ASCII without trailing dot, ``.`` for the root.

    A dot inside a label, a backslash, ``"`` and ``;`` get a backslash before them. All bytes except 0x21 to 0x7e, so
    the space too, are written as ``\DDD`` in decimal. Case does not change. Raises ValueError like :func:`to_labels`.
    """
    return ".".join([label_text(label) for label in to_labels(wire)]) or "."


def split_labels(text: str) -> list[list[str]]:
    r"""Return the labels of a name in presentation form, each as a list of characters and escapes.

    An escape (``\X``, ``\DDD``) is one item. ``.`` has no label; a trailing dot adds no label. Raises ValueError for an
    empty name, an empty label, a bad escape, and a text that is too long for any name.
    """
    if not text:
        raise ValueError("an empty name")
    if len(text) > len("\\DDD") * MAX_NAME:
        raise ValueError(f"a name of {len(text)} characters, the limit is {MAX_NAME} bytes in wire format")
    labels: list[list[str]] = [[]]
    for token in _tokens(text) if "\\" in text else text:
        if token in _DOTS:
            labels.append([])
        else:
            labels[-1].append(token)
    if not labels[-1]:
        labels.pop()
    if labels == [[]]:
        return []
    if [] in labels:
        raise ValueError("an empty label: two dots in a row, or a dot at the start")
    return labels


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or (len(token[0]) == len("\\DDD") and token[0] > "\\255"):
            raise ValueError(
                f"a bad escape: {text[at : at + 4]!r} is neither \\DDD from 000 to 255 nor an escaped character"
            )
        at = token.end()
        yield token[0]


def token_byte(token: str) -> int:
    """Return the byte, in lower case, of one ASCII character or escape from :func:`split_labels`.

    Raises ValueError for characters that are not ASCII, and for spaces and control characters without ``\\DDD``.
    """
    if len(token) == len("\\DDD"):
        return fold(bytes((int(token[1:]),)))[0]
    char = token[-1]
    if not "!" <= char <= "~":
        raise ValueError(f"{char!r} in a label: write its bytes as \\DDD, in decimal")
    return ord(char.lower())


def encode_label(tokens: Sequence[str]) -> bytes:
    """Return the bytes, in lower case, of one label from :func:`split_labels`.

    An international label becomes its xn-- form (IDNA 2008). Raises ValueError for a label of more than 63 bytes, a
    label that is not valid in IDNA, and an unescaped space or control character.
    """
    text = "".join(tokens)
    label = bytes(map(token_byte, tokens)) if text.isascii() else _international(text)
    if len(label) > MAX_LABEL:
        raise ValueError(f"a label of {len(label)} bytes, the limit is {MAX_LABEL}")
    return label


def _international(label: str) -> bytes:
    import idna  # noqa: PLC0415 - its tables need more memory than the rest of this module, and few names need them

    if "\\" in label:
        raise ValueError(f"{label!r} has both escapes and characters that are not ASCII")
    try:
        encoded = idna.encode(label, uts46=True)
    except idna.IDNAError as error:
        raise ValueError(f"{label!r} is not a valid international label: {printable(str(error))}") from error
    if b"." in encoded:
        raise ValueError(f"{label!r} is not a valid international label: one of its characters stands for a dot")
    return encoded


def from_text(text: str) -> bytes:
    """Return the wire format, in lower case and with the root byte, of a name in presentation form.

    ``text`` may contain escapes, capital letters, underscores and international labels, and may end in a dot; ``.`` is
    the root. Raises ValueError, with the reason, for anything else.
    """
    return from_labels([encode_label(tokens) for tokens in split_labels(text)])
