"""An independent parser of DNS queries, to compare the kernel side with: RFC 1035, octet by octet.

It follows compression pointers to any octet of the message, as dnsmasq does.

Also builds messages from labels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Section 4.1.1: the id, the flags, and the numbers of questions, answers, authorities and additional records.
HEADER = struct.Struct("!HHHHHH")
#: Section 4.1.2: type and class follow the name.
QUESTION_TAIL = struct.Struct("!HH")

QR = 0x8000
#: Section 4.1.4: the first octet of a compression pointer is this or above.
POINTER = 0xC0
#: Labels and pointers that are followed at most.
PIECES = 192
#: Section 4.2.2: over TCP, the length of the message comes first.
LENGTH = struct.Struct("!H")
#: Octets of a message over TCP that are read at most: the header, the longest name, type and class.
STREAM_PART = HEADER.size + 255 + QUESTION_TAIL.size
#: The kinds of messages (OPCODE) that have a reason of their own: NOTIFY of RFC 1996, UPDATE of RFC 2136, DSO of
#: RFC 8490.
OPCODES = {4: "notify", 5: "update", 6: "dso"}


@dataclass(frozen=True)
class Question:
    """The only question of a query: the name in wire format, in lower case, with the root; the type and the class."""

    qname: bytes
    qtype: int
    qclass: int


@dataclass(frozen=True)
class Refusal:
    """Why a payload is no query, and the reason under which it is counted.

    ``malformed``: it has no complete header, or the header of a query, but no complete question. Nothing counts an
    empty payload.
    """

    reason: str
    counted: str = ""


def parse(payload: bytes) -> Question | Refusal:
    """Return the question of a payload if it is a standard query with one question. The rest is ignored."""
    if len(payload) < HEADER.size:
        return Refusal("no whole header", "malformed" if payload else "")
    _id, flags, questions, _answers, _authorities, _additional = HEADER.unpack_from(payload)
    if flags & QR:
        return Refusal("a response", "response")
    if opcode := flags >> 11 & 0xF:
        return Refusal("not a standard query", OPCODES.get(opcode, "opcode"))
    if questions != 1:
        return Refusal(f"{questions} questions", "questions" if questions else "no_question")

    qname = bytearray()
    at, behind = HEADER.size, 0
    for _piece in range(PIECES):
        if at >= len(payload):
            return Refusal("no end of the name", "malformed")
        length = payload[at]
        # Section 4.1.4: 11 in the first two bits is a pointer; 01 and 10 are reserved.
        if length >= POINTER:
            if at + 1 == len(payload):
                return Refusal("half a pointer", "malformed")
            # Type and class follow the first pointer.
            behind = behind or at + 2
            at = (length - POINTER) * 256 + payload[at + 1]
            continue
        if length & 0xC0:
            return Refusal(f"a length octet of {length}", "malformed")
        label = payload[at + 1 : at + 1 + length]
        if len(label) < length:
            return Refusal("an incomplete label", "malformed")
        qname.append(length)
        # RFC 4343, section 3: only A to Z have a case. For lower() of octets, too.
        qname += label.lower()
        # Section 2.3.4: at most 255 octets, including the length octets and the root.
        if len(qname) > 255:
            return Refusal("a name that is too long", "malformed")
        at += 1 + length
        if length == 0:
            break
    else:
        return Refusal("too many pointers", "malformed")
    at = behind or at
    if len(payload) < at + QUESTION_TAIL.size:
        return Refusal("no whole type and class", "malformed")
    return Question(bytes(qname), *QUESTION_TAIL.unpack_from(payload, at))


def parse_stream(octets: bytes) -> list[tuple[int, Question | Refusal]]:
    """Return where each message of a TCP stream begins, and its outcome (RFC 1035, section 4.2.2).

    Of each message, the first STREAM_PART octets are read: they have the longest question that has no pointer. The last
    message may be incomplete. It has an outcome if the part that is there has one.
    """
    found: list[tuple[int, Question | Refusal]] = []
    at = 0
    while at + LENGTH.size <= len(octets):
        (length,) = LENGTH.unpack_from(octets, at)
        part = octets[at + LENGTH.size : at + LENGTH.size + min(length, STREAM_PART)]
        outcome = parse(part)
        if isinstance(outcome, Refusal) and outcome.counted in {"", "malformed"}:
            if len(part) < min(length, STREAM_PART):
                break
            # An empty message is none that a server answers.
            outcome = Refusal(outcome.reason, "malformed")
        found.append((at, outcome))
        at += LENGTH.size + length
    return found


def wire(labels: Iterable[bytes]) -> bytes:
    """Return the wire format of labels, without checking their lengths."""
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def pointer(target: int) -> bytes:
    """Return a compression pointer to an offset of the message (section 4.1.4)."""
    return bytes([POINTER | target >> 8 & 0x3F, target & 0xFF])


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
    """Return a message with one question for a name in wire format, followed by ``behind``."""
    return HEADER.pack(id_, flags, *counts) + name + QUESTION_TAIL.pack(qtype, qclass) + behind
