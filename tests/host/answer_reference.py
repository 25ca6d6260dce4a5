"""An independent parser of DNS answers, to compare the kernel side with: the rules of docs/metrics.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from reference import HEADER, POINTER, QR, QUESTION_TAIL, Question

from dnsprobe.kernel.abi import Result

TC = 0x0200
#: RFC 1035, section 3.2.2; RFC 6672; RFC 4034; RFC 6891, section 6.1.1; RFC 1035, section 3.2.3.
CNAME, DNAME, RRSIG, OPT, ANY = 5, 39, 46, 41, 255
#: RFC 1035, section 4.1.3: type, class, TTL and length of the data follow the name.
RECORD = struct.Struct("!HHIH")
#: Records of the answer section that are read.
RECORDS = 8
#: RFC 1035, section 4.1.1; RFC 6891, section 9; RFC 7873, section 8.
RCODES = {
    0: Result.NOERROR,
    1: Result.FORMERR,
    2: Result.SERVFAIL,
    3: Result.NXDOMAIN,
    4: Result.NOTIMP,
    5: Result.REFUSED,
    16: Result.BADVERS,
    23: Result.BADCOOKIE,
}


@dataclass(frozen=True)
class Answer:
    """An answer with one question that can be read: its id, its question in lower case, and what its query gets."""

    id: int
    question: Question
    result: Result


@dataclass(frozen=True)
class Bare:
    """An error without a question: it fits the only query of its socket that has its id."""

    id: int
    result: Result


class Unreadable:
    """An answer without exactly one question that can be read."""


def parse_answer(payload: bytes, visible: int | None = None) -> Answer | Bare | Unreadable | None:
    """Return what an answer says, None for an empty payload and for a message that is no answer.

    Of its records, the first ``visible`` octets of the payload are read: over TCP, the others are in a later segment.
    """
    if not payload:
        return None
    if len(payload) < HEADER.size:
        return Unreadable()
    id_, flags, questions, *_counts = HEADER.unpack_from(payload)
    if not flags & QR:
        return None
    seen = payload if visible is None else payload[:visible]
    if not questions and flags & 15:
        return Bare(id_, _result(seen, HEADER.size, 0))
    found = _question(payload) if questions == 1 else None
    if found is None:
        return Unreadable()
    question, behind = found
    return Answer(id_, question, _result(seen, behind, question.qtype))


def _question(payload: bytes) -> tuple[Question, int] | None:
    """Return the first question, whose name has no pointer, and where it ends."""
    at = HEADER.size
    qname = bytearray()
    while at < len(payload):
        length = payload[at]
        label = payload[at + 1 : at + 1 + length]
        # Section 2.3.4 of RFC 1035: 63 octets in a label, 255 in a name.
        if length > 63 or len(label) < length or len(qname) + 1 + length > 255:
            return None
        qname += bytes([length]) + label.lower()
        at += 1 + length
        if not length:
            break
    else:
        return None
    if len(payload) < at + QUESTION_TAIL.size:
        return None
    return Question(bytes(qname), *QUESTION_TAIL.unpack_from(payload, at)), at + QUESTION_TAIL.size


def _result(payload: bytes, records: int, qtype: int) -> Result:
    _id, flags, _questions, answers, authorities, additional = HEADER.unpack_from(payload)
    rcode = flags & 15
    # RFC 6891, section 6.1.3: the upper eight bits. They are read from an OPT record that is the first of all records.
    front = payload[records : records + 6]
    if not answers and not authorities and additional and len(front) == 6 and front[:3] == bytes((0, 0, OPT)):
        rcode |= front[5] << 4
    result = RCODES.get(rcode, Result.OTHER_RCODE)
    if result != Result.NOERROR or flags & TC:
        return result
    return Result.NOERROR if _has_data(payload, records, answers, qtype) else Result.NODATA


def _has_data(payload: bytes, at: int, answers: int, qtype: int) -> bool:
    """Return whether there is a record of what was asked. What cannot be read counts as such a record."""
    for number in range(RECORDS):
        if number == answers:
            return False
        if len(payload) < at + 2 + RECORD.size or payload[at] < POINTER:
            return True
        kind, _class, _ttl, length = RECORD.unpack_from(payload, at + 2)
        if qtype in (kind, ANY) or kind not in (CNAME, DNAME, RRSIG):
            return True
        at += 2 + RECORD.size + length
    return True
