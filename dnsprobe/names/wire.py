r"""DNS names between their forms.

The wire format of a name (RFC 1035, section 3.1) is what the kernel side sees and matches: labels, each behind its
length byte, up to the empty label of the root. The presentation form (RFC 1035, section 5.1; RFC 4343, section 2.1) is
what people read and write: labels joined by dots, ``\X`` and ``\DDD`` for what a label cannot show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from dnsprobe.text import printable

#: Limits of RFC 1035, section 2.3.4, in bytes; a name is counted with its length bytes and its root byte.
MAX_LABEL = 63
MAX_NAME = 255

ROOT = b"\0"

#: One character of the presentation form: ``\DDD``, ``\X``, or itself.
_TOKEN = re.compile(r"\\[0-9]{3}|\\[^0-9]|[^\\]", re.DOTALL)

#: The dot and what stands for it in other scripts (RFC 3490, section 3.1; UTS 46, section 4.5).
_DOTS = frozenset(".\u3002\uff0e\uff61")


def _shown(byte: int) -> str:
    if chr(byte) in '.\\";':
        return f"\\{chr(byte)}"
    return chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03d}"


_SHOWN = [_shown(byte) for byte in range(256)]


def fold(wire: bytes) -> bytes:
    """Return a name in wire format with ASCII A-Z in lower case and all other bytes as they are (RFC 4343, section 3).

    Length bytes stay what they are: the longest, 63, is below ``A``.
    """
    return wire.lower()


def wire_labels(wire: bytes) -> tuple[bytes, ...]:
    """Return the labels of a name in wire format, the root's empty one left out.

    Raises ValueError for what is not one whole name: compression pointers, a missing root byte, bytes behind it, more
    than 255 bytes.
    """
    if len(wire) > MAX_NAME:
        raise ValueError(f"a name of {len(wire)} bytes: over {MAX_NAME}")
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
            raise ValueError(f"a length byte of {length}: over {MAX_LABEL}")
        labels.append(wire[at : at + length])
        at += length
    raise ValueError("a name without its root byte")


def join(labels: Iterable[bytes]) -> bytes:
    """Return the wire format of labels of 1 to 63 bytes each; raise ValueError for a name over 255 bytes."""
    wire = b"".join(bytes((len(label),)) + label for label in labels) + ROOT
    if len(wire) > MAX_NAME:
        raise ValueError(f"a name of {len(wire)} bytes in wire format: over {MAX_NAME}")
    return wire


def label_text(label: bytes) -> str:
    """Return one label in presentation form: printable ASCII, injective, no dot without a backslash before it."""
    return "".join([_SHOWN[byte] for byte in label])


def to_text(wire: bytes) -> str:
    r"""Return the presentation form of a name in wire format: printable ASCII without trailing dot, ``.`` for the root.

    The dot inside a label, the backslash, ``"`` and ``;`` get a backslash before them; what is not printable ASCII
    (0x21 to 0x7e, so the space too) is written ``\DDD``, in decimal. Case stays. Raises ValueError like
    :func:`wire_labels`.
    """
    return ".".join([label_text(label) for label in wire_labels(wire)]) or "."


def split(text: str) -> list[list[str]]:
    r"""Return the labels of a name in presentation form, each as its characters, escapes (``\X``, ``\DDD``) kept whole.

    ``.`` has no label; a trailing dot adds none. Raises ValueError for an empty name, an empty label, a bad escape, or
    more text than any name has.
    """
    if not text:
        raise ValueError("an empty name")
    if len(text) > len("\\DDD") * MAX_NAME:
        raise ValueError(f"a name of {len(text)} characters: over {MAX_NAME} bytes in wire format")
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
            raise ValueError(f"a bad escape: {text[at : at + 4]!r} is neither \\DDD from 000 to 255 nor a character")
        at = token.end()
        yield token[0]


def token_byte(token: str) -> int:
    """Return the byte, in lower case, that one ASCII character or escape from :func:`split` stands for.

    Raises ValueError for what is not ASCII, and for spaces and control characters that are not escaped.
    """
    if len(token) == len("\\DDD"):
        return fold(bytes((int(token[1:]),)))[0]
    char = token[-1]
    if not "!" <= char <= "~":
        raise ValueError(f"{char!r} in a label: its bytes have to be written as \\DDD, in decimal")
    return ord(char.lower())


def encode_label(tokens: Sequence[str]) -> bytes:
    """Return the bytes, in lower case, of one label from :func:`split`; an international one in its IDNA 2008 form.

    Raises ValueError for a label over 63 bytes, one that is not valid IDNA, or an unescaped space or control character.
    """
    text = "".join(tokens)
    label = bytes(map(token_byte, tokens)) if text.isascii() else _international(text)
    if len(label) > MAX_LABEL:
        raise ValueError(f"a label of {len(label)} bytes: over {MAX_LABEL}")
    return label


def _international(label: str) -> bytes:
    import idna  # noqa: PLC0415 - its tables cost more memory than all else here, and few names need them

    if "\\" in label:
        raise ValueError(f"{label!r} has both escapes and characters that are not ASCII")
    try:
        encoded = idna.encode(label, uts46=True)
    except idna.IDNAError as error:
        raise ValueError(f"{label!r} is not a valid international label: {printable(str(error))}") from error
    if b"." in encoded:
        raise ValueError(f"{label!r} is not a valid international label: a character of it stands for a dot")
    return encoded


def from_text(text: str) -> bytes:
    """Return the wire format, in lower case and with the root byte, of a name in presentation form.

    Takes escapes, a trailing dot, ``.`` for the root, any case, labels with underscores, and international names.
    Raises ValueError, with what is wrong, for anything else.
    """
    return join([encode_label(tokens) for tokens in split(text)])
