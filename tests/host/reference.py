"""What a UDP payload asks, told independently of the kernel side: from RFC 1035, octet by octet.

Also the way back, from labels to messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Section 4.1.1: the id, the flags, and the numbers of questions, answers, authorities and additional records.
HEADER = struct.Struct("!HHHHHH")
#: Section 4.1.2: behind the name stand its type and its class.
QUESTION_TAIL = struct.Struct("!HH")

QR = 0x8000
OPCODE = 0x7800


@dataclass(frozen=True)
class Question:
    """The one question of a query: the name in wire format, lower case, root included, and the type."""

    qname: bytes
    qtype: int


@dataclass(frozen=True)
class Refusal:
    """Why a payload asks nothing. ``malformed``: it has the header of a query, but no whole question."""

    reason: str
    malformed: bool = False


def parse(payload: bytes) -> Question | Refusal:
    """Return what a payload asks, if it is a standard query with one question; what stands behind that is ignored."""
    if len(payload) < HEADER.size:
        return Refusal("no whole header")
    _id, flags, questions, _answers, _authorities, _additional = HEADER.unpack_from(payload)
    if flags & QR:
        return Refusal("a response")
    if flags & OPCODE:
        return Refusal("not a standard query")
    if questions != 1:
        return Refusal(f"{questions} questions")

    qname = bytearray()
    at = HEADER.size
    while True:
        if at == len(payload):
            return Refusal("no end of the name", malformed=True)
        length = payload[at]
        # Section 4.1.4: 11 in the first two bits is a pointer; 01 and 10 are reserved.
        if length & 0xC0:
            return Refusal(f"a length octet of {length}", malformed=True)
        label = payload[at + 1 : at + 1 + length]
        if len(label) < length:
            return Refusal("a label that is cut off", malformed=True)
        qname.append(length)
        # RFC 4343, section 3: case is that of A to Z alone.
        qname += bytes(octet | 0x20 if ord("A") <= octet <= ord("Z") else octet for octet in label)
        # Section 2.3.4: 255 octets, length octets and the root's included.
        if len(qname) > 255:
            return Refusal("a name that is too long", malformed=True)
        at += 1 + length
        if length == 0:
            break
    if len(payload) < at + QUESTION_TAIL.size:
        return Refusal("no whole type and class", malformed=True)
    qtype, _qclass = QUESTION_TAIL.unpack_from(payload, at)
    return Question(bytes(qname), qtype)


def wire(labels: Iterable[bytes]) -> bytes:
    """Return the wire format of labels, without asking whether they make a name."""
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def message(
    name: bytes,
    qtype: int = 1,
    qclass: int = 1,
    *,
    id_: int = 0x1234,
    flags: int = 0x0100,
    counts: Sequence[int] = (1, 0, 0, 0),
    behind: bytes = b"",
) -> bytes:
    """Return a message with one question for a name in wire format, and what stands behind it."""
    return HEADER.pack(id_, flags, *counts) + name + QUESTION_TAIL.pack(qtype, qclass) + behind
