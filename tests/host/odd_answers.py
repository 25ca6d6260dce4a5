"""Makes answers that a careless, clever or hostile server could send. A seed repeats a run."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from answer_reference import ANY, CNAME, DNAME, OPT, RRSIG
from odd_messages import COUNTS, ODD_LENGTHS, labels
from reference import HEADER, QUESTION_TAIL, pointer, wire

#: Types that are asked for. Answers with another question have others.
QTYPES = (1, 2, CNAME, 15, 28, DNAME, RRSIG, 65, ANY)
OTHER_QTYPES = (3, 12, 16, 33)
#: Octets of an answer at most: it fits a packet of the loopback device over IPv6, too.
LONGEST = 65400

_FLAGS = (0x8180, 0x8180, 0x8180, 0x8580, 0x81A0)


class Query:
    """A query: its message, and the parts of it. Its id is even; no generated answer has another even one."""

    def __init__(self, number: int, qname: bytes, qtype: int) -> None:
        self.id = number * 2 & 0xFFFF
        self.qname, self.qtype = qname, qtype
        self.question = qname + QUESTION_TAIL.pack(qtype, 1)
        self.message = HEADER.pack(self.id, 0x0100, 1, 0, 0, 0) + self.question


def names(rng: random.Random, suffix: Sequence[bytes], number: int) -> list[bytes]:
    """Return names below a suffix, in wire format: short ones, long ones, with capitals and with odd octets."""
    longest = [b"l" * 63, b"l" * 63, b"l" * 63, b"l" * (61 - sum(map(len, suffix)) - len(suffix))]
    found = {wire(suffix), wire([*longest, *suffix])}
    while len(found) < number:
        name = labels(rng, suffix)
        # An octet 0 in a label is another case: such a query is untracked.
        found.add(wire([label.replace(b"\0", b".") for label in name]))
    return sorted(found)


class Answers:
    """Answers to a query, made from a generator. ``others`` are names that nobody asks for."""

    def __init__(self, rng: random.Random, others: Sequence[bytes]) -> None:
        self._rng, self._others = rng, others
        self._makers: tuple[Callable[[Query], bytes], ...] = (
            self.plain,
            self.chain,
            self.extended,
            self.false_counts,
            self.odd_flags,
            self.odd_records,
            self.long,
            self.other_question,
            self.several_questions,
            self.odd_name,
            self.truncated,
            self.mutated,
            self.mutated,
            self.noise,
        )

    def next(self, query: Query) -> bytes:
        """Return the next answer: any kind."""
        return self._rng.choice(self._makers)(query)[:LONGEST]

    def _made(
        self, query: Query, flags: int, sections: Sequence[Sequence[bytes]], counts: Sequence[int] | None = None
    ) -> bytes:
        """Return an answer with the records of the sections."""
        question = bytearray(query.question)
        if self._rng.random() < 0.2:
            question[: len(query.qname)] = bytes(
                octet ^ 0x20 if chr(octet).isalpha() and octet < 128 and self._rng.random() < 0.5 else octet
                for octet in query.qname
            )
            # A length octet of 65 or more is none, so only letters have changed.
        many = counts if counts is not None else [len(section) for section in sections]
        body = b"".join(record for section in sections for record in section)
        return HEADER.pack(query.id, flags, 1, *many) + bytes(question) + body

    def record(self, kind: int, owner: bytes | None = None, data: bytes | None = None) -> bytes:
        """Return a record; by default, it belongs to the name in the question."""
        rng = self._rng
        owner = pointer(HEADER.size) if owner is None else owner
        data = rng.randbytes(rng.choice((0, 4, 16, 40))) if data is None else data
        return owner + struct.pack("!HHIH", kind, rng.choice((1, 1, 3)), rng.randrange(1 << 32), len(data)) + data

    def opt(self, extended: int = 0) -> bytes:
        """Return an OPT record with the upper bits of a response code."""
        data = self._rng.choice((b"", b"\0\x0a\0\x08ABCDEFGH"))
        return b"\0" + struct.pack("!HHBBHH", OPT, 1232, extended, 0, self._rng.choice((0, 0x8000)), len(data)) + data

    def plain(self, query: Query) -> bytes:
        """Return an answer as a server sends it."""
        rng = self._rng
        rcode = rng.choice((0, 0, 0, 1, 2, 3, 4, 5, rng.randrange(16)))
        kind = rng.choice((query.qtype, query.qtype, CNAME, 6))
        answers = [self.record(kind) for _ in range(rng.choice((0, 1, 1, 2, 5)))]
        authority = [self.record(6)] if rng.random() < 0.3 else []
        additional = [self.opt()] if rng.random() < 0.5 else []
        return self._made(query, rng.choice(_FLAGS) | rcode, (answers, authority, additional))

    def chain(self, query: Query) -> bytes:
        """Return a chain of aliases, which leads to a record or to nothing."""
        rng = self._rng
        kinds = [rng.choice((CNAME, CNAME, DNAME, RRSIG)) for _ in range(rng.choice((1, 2, 6, 7, 8, 9, 40)))]
        if rng.random() < 0.5:
            kinds.append(query.qtype)
        answers = [self.record(kind, pointer(rng.randrange(1 << 14))) for kind in kinds]
        return self._made(query, 0x8180, (answers, (), [self.opt()] if rng.random() < 0.3 else ()))

    def extended(self, query: Query) -> bytes:
        """Return an extended response code; the OPT record may be at an odd place, or not be the only one."""
        rng = self._rng
        opts = [self.opt(rng.choice((0, 1, 1, 1, 2, 255))) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        others = [self.record(rng.choice((1, 6, 250)), rng.choice((b"\0", None))) for _ in range(rng.choice((0, 0, 1)))]
        records = [*opts, *others]
        if rng.random() < 0.3:
            rng.shuffle(records)
        place = rng.choice((2, 2, 2, 2, 0, 1))
        flags = 0x8180 | rng.choice((0, 0, 7, 7, rng.randrange(16)))
        return self._made(query, flags, [records if section == place else () for section in range(3)])

    def false_counts(self, query: Query) -> bytes:
        """Return more, or fewer, records than the header says."""
        rng = self._rng
        records = [
            self.record(rng.choice((query.qtype, CNAME, CNAME, RRSIG, 6))) for _ in range(rng.choice((0, 1, 2, 3)))
        ]
        if rng.random() < 0.4:
            records.insert(0, self.opt(rng.choice((0, 1))))
        counts = [rng.choice((0, *COUNTS)) for _ in range(3)]
        return self._made(query, 0x8180, (records, (), ()), counts)

    def odd_flags(self, query: Query) -> bytes:
        """Return any flags. Some say that it is no answer."""
        flags = self._rng.choice((0x8000, 0x8380, 0x8382, 0x8780, self._rng.randrange(65536)))
        answers = [self.record(query.qtype)] if self._rng.random() < 0.5 else []
        return self._made(query, flags, (answers, (), ()))

    def odd_records(self, query: Query) -> bytes:
        """Return records with odd names, false lengths, or less than their header."""
        rng = self._rng
        answers = []
        for _ in range(rng.choice((1, 2, 3))):
            kind = rng.choice((query.qtype, CNAME, RRSIG, DNAME))
            owner = rng.choice((None, None, b"\0", b"\x40", b"\xbf\xff", query.qname, rng.randbytes(2)))
            record = bytearray(self.record(kind, owner))
            if rng.random() < 0.4:
                at = (2 if owner is None else len(owner)) + 8
                record[at : at + 2] = struct.pack("!H", rng.choice((0, 1, 2, 11, 12, 13, 255, 65535)))
            answers.append(bytes(record[: rng.randrange(len(record))] if rng.random() < 0.2 else record))
        return self._made(query, 0x8180, (answers, (), ()))

    def long(self, query: Query) -> bytes:
        """Return an answer of more than 512 or 4096 octets, or nearly the longest one."""
        rng = self._rng
        wanted = rng.choice((513, 1233, 1473, 4097, 9000, 65000)) if rng.random() < 0.1 else 600
        kinds = [rng.choice((query.qtype, CNAME, RRSIG, 6)) for _ in range(3)]
        answers = [self.record(kind, data=bytes(wanted // 3)) for kind in kinds]
        return self._made(query, 0x8180, (answers, (), ()))

    def other_question(self, query: Query) -> bytes:
        """Return the answer to another question, or with another id."""
        rng = self._rng
        other = Query(0, query.qname, query.qtype)
        other.id = query.id
        kind = rng.randrange(4)
        if kind == 0:
            other.id = rng.randrange(65536) | 1
        elif kind == 1:
            other.question = query.qname + QUESTION_TAIL.pack(rng.choice(OTHER_QTYPES), 1)
        elif kind == 2:
            other.question = query.qname + QUESTION_TAIL.pack(query.qtype, rng.choice((0, 3, 255, 0x8001)))
        else:
            other.qname = rng.choice(self._others)
            other.question = other.qname + QUESTION_TAIL.pack(query.qtype, 1)
        return self._made(other, 0x8180, ([self.record(query.qtype)], (), ()))

    def several_questions(self, query: Query) -> bytes:
        """Return an answer with no question, or with several."""
        rng = self._rng
        number = rng.choice((0, 0, 2, 3, 256, 65535))
        there = rng.choice((0, 1, 2)) * query.question
        return HEADER.pack(query.id, 0x8180 | rng.randrange(6), number, 1, 0, 0) + there + self.record(query.qtype)

    def odd_name(self, query: Query) -> bytes:
        """Return a question with a pointer, a loop of them, a label of another kind, or a name that is too long."""
        rng = self._rng
        tail = query.question[len(query.qname) :]
        odd = rng.choice(
            (
                pointer(HEADER.size),
                pointer(HEADER.size + 6),
                b"\1a" + pointer(HEADER.size),
                pointer(rng.randrange(1 << 14)),
                query.qname[:-1] + pointer(rng.randrange(HEADER.size)),
                query.qname[:-1] + pointer(HEADER.size),
                query.qname[:-1] + bytes([rng.choice((0x40, 0x41, 0x80, 0xBF))]),
                b"\x3f" + b"n" * 63 + query.qname,
                4 * (b"\x3f" + b"n" * 63) + b"\0",
                3 * (b"\x3f" + b"n" * 63) + b"\x3d" + b"n" * 61 + b"\0",
                3 * (b"\x3f" + b"n" * 63) + b"\x3e" + b"n" * 62 + b"\0",
                b"\3a\0b" + query.qname,
                b"\1\0" + query.qname,
                b"\3a.b" + query.qname,
                query.qname[:-1],
                b"\0",
            )
        )
        behind = rng.choice((b"", query.question, self.record(query.qtype)))
        return HEADER.pack(query.id, 0x8180, 1, rng.choice((0, 1)), 0, 0) + odd + tail + behind

    def truncated(self, query: Query) -> bytes:
        """Return the beginning of an answer: from nothing to all but its last octet."""
        rng = self._rng
        whole = rng.choice((self.plain, self.chain, self.extended))(query)
        question = HEADER.size + len(query.question)
        ends = (len(whole) - 1, rng.randrange(len(whole)), 0, 1, 2, 11, 12, question - 1, question, question + 5)
        return whole[: rng.choice(ends)]

    def mutated(self, query: Query) -> bytes:
        """Return an answer with one to three octets changed, inserted or removed behind the id."""
        rng = self._rng
        changed = bytearray(rng.choice((self.plain, self.chain, self.extended, self.odd_records))(query))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(2, len(changed) + 1)
            if rng.random() < 0.7:
                at = min(at, rng.randrange(2, HEADER.size + len(query.question) + 30))
            kind = rng.randrange(4)
            if kind == 0 and at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            elif kind == 1 and at < len(changed):
                changed[at] = rng.choice(ODD_LENGTHS)
            elif kind == 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
            else:
                del changed[at : at + rng.randrange(1, 9)]
        return bytes(changed)

    def noise(self, query: Query) -> bytes:
        """Return random octets, most behind the header of an answer."""
        rng = self._rng
        noise = rng.randbytes(rng.randrange(80))
        return noise if rng.random() < 0.1 else HEADER.pack(query.id, 0x8180, 1, 1, 0, 1) + noise
