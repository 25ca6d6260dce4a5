"""Makes DNS messages that a careless, clever or hostile program could send: valid ones, odd ones and broken ones.

All of them come from a random number generator, so that a seed repeats a run.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from reference import HEADER, QUESTION_TAIL, pointer, wire

HEADER_SIZE = HEADER.size
#: RFC 6891, section 6.1.2: an OPT record without options.
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
#: The same with a cookie of the client (RFC 7873, section 4).
COOKIE = b"\0\0\x29\x04\xd0\0\0\0\0\0\x0c\0\x0a\0\x08ABCDEFGH"
COUNTS = (0, 1, 1, 1, 1, 2, 3, 255, 256, 65535)
ODD_LENGTHS = (0, 1, 62, 63, 64, 65, 0x7F, 0x80, 0xBF, 0xC0, 0xC1, 0xFE, 0xFF)


def labels(rng: random.Random, suffix: Sequence[bytes]) -> list[bytes]:
    """Return a few labels and the suffix; most are short, some hold odd octets."""
    letters = b"abcXYZ019-_"
    many = rng.choice((0, 1, 1, 1, 2, 3, 8, 30))
    front = [bytes(rng.choices(letters, k=rng.choice((1, 2, 3, 8, 20, 63)))) for _ in range(many)]
    if front and rng.random() < 0.1:
        front[0] = rng.randbytes(rng.randrange(1, 64))
    while sum(map(len, front)) + len(front) > 240 - sum(map(len, suffix)) - len(suffix):
        front.pop()
    return [*front, *suffix]


class Messages:
    """Messages for names below ``suffix``, made from a generator."""

    def __init__(self, rng: random.Random, suffix: Sequence[bytes] = (b"fuzz", b"test")) -> None:
        self._rng, self._suffix = rng, suffix
        self._makers: tuple[Callable[[], bytes], ...] = (
            self.plain,
            self.odd_header,
            self.with_records,
            self.of_any_length,
            self.forward_pointer,
            self.pointer_to_header,
            self.chain_of_pointers,
            self.several_questions,
            self.odd_class,
            self.odd_label,
            self.truncated,
            self.mutated,
            self.mutated,
            self.noise,
        )

    def next(self) -> bytes:
        """Return the next message: any kind."""
        return self._rng.choice(self._makers)()

    def header(self, flags: int | None = None, counts: Sequence[int] = (1, 0, 0, 0)) -> bytes:
        """Return a header with a random id."""
        if flags is None:
            flags = self._rng.choice((0x0100, 0x0100, 0x0000, 0x0120, 0x0110))
        return HEADER.pack(self._rng.randrange(65536), flags, *counts)

    def tail(self) -> bytes:
        """Return the type and the class of a usual question."""
        return QUESTION_TAIL.pack(self._rng.choice((1, 1, 2, 5, 12, 15, 16, 28, 33, 65, 255)), 1)

    def name(self) -> bytes:
        """Return a name in wire format."""
        return wire(labels(self._rng, self._suffix))

    def plain(self) -> bytes:
        """Return a standard query, perhaps with EDNS."""
        if self._rng.random() < 0.5:
            return self.header(counts=(1, 0, 0, 1)) + self.name() + self.tail() + self._rng.choice((OPT, COOKIE))
        return self.header() + self.name() + self.tail()

    def odd_header(self) -> bytes:
        """Return a query with any flags, or with any counts."""
        rng = self._rng
        if rng.random() < 0.5:
            flags = rng.choice((1 << rng.randrange(16), 0x100 | 1 << rng.randrange(16), rng.randrange(65536)))
            return self.header(flags) + self.name() + self.tail()
        counts = [rng.choice(COUNTS) for _ in range(4)]
        if rng.random() < 0.5:
            counts[0] = 1
        return self.header(counts=counts) + self.name() + self.tail() + rng.choice((b"", OPT, rng.randbytes(20)))

    def record(self) -> bytes:
        """Return a resource record."""
        rng = self._rng
        data = rng.randbytes(rng.choice((0, 4, 16)))
        owner = rng.choice((b"\0", pointer(HEADER_SIZE), self.name()))
        return owner + struct.pack("!HHIH", rng.choice((1, 6, 16, 41, 250)), rng.choice((1, 255)), 0, len(data)) + data

    def with_records(self) -> bytes:
        """Return a query with records in any of the other sections, and perhaps octets behind them."""
        rng = self._rng
        counts = [1, *(rng.choice((0, 0, 1, 2)) for _ in range(3))]
        records = b"".join(self.record() for _ in range(sum(counts[1:])))
        behind = rng.choice((b"", b"", rng.randbytes(rng.randrange(1, 40))))
        return self.header(counts=counts) + self.name() + self.tail() + records + behind

    def of_any_length(self) -> bytes:
        """Return a query for a name of 1 to 257 octets."""
        rng = self._rng
        wanted = rng.choice((254, 255, 255, 256, 257, rng.randrange(3, 258)))
        parts = list(self._suffix)
        left = wanted - len(wire(parts))
        while left > 1:
            size = left if left <= 3 else rng.choice([at for at in range(2, min(left, 64) + 1) if left - at != 1])
            parts.insert(0, bytes(rng.choices(b"abcdefgh", k=size - 1)))
            left -= size
        return self.header() + wire(parts) + self.tail()

    def forward_pointer(self) -> bytes:
        """Return a query whose name ends behind the question: in an OPT record, another record or loose octets."""
        rng = self._rng
        first = wire(labels(rng, ()))[:-1]
        target = HEADER_SIZE + len(first) + 2 + QUESTION_TAIL.size
        rest = self.name()
        kind = rng.randrange(4)
        if kind == 0:
            return self.header() + first + pointer(target) + self.tail() + rest
        if kind == 1:
            option = struct.pack("!HH", 12, len(rest)) + rest
            opt = b"\0" + struct.pack("!HHIH", 41, 1232, 0, len(option)) + option
            return self.header(counts=(1, 0, 0, 1)) + first + pointer(target + 15) + self.tail() + opt
        if kind == 2:
            record = rest + struct.pack("!HHIH", 16, 1, 0, 0)
            return self.header(counts=(1, 0, 0, 1)) + first + pointer(target) + self.tail() + record
        gap = rng.randbytes(rng.choice((1, 200, 500, 1000)))
        behind = rng.choice((b"", rng.randbytes(30)))
        return self.header() + first + pointer(target + len(gap)) + self.tail() + gap + rest + behind

    def pointer_to_header(self) -> bytes:
        """Return a query whose name ends with a pointer into the header, or to itself."""
        rng = self._rng
        front = wire(labels(rng, self._suffix))[:-1]
        return self.header() + front + pointer(rng.randrange(0, HEADER_SIZE + len(front) + 8)) + self.tail()

    def chain_of_pointers(self) -> bytes:
        """Return a query whose name is in pieces, which pointers join in any order."""
        rng = self._rng
        count = rng.choice((1, 2, 3, 4, 5, 10, 20, 60, 127, 200))
        pieces = [bytes(rng.choices(b"abc", k=rng.choice((0, 0, 1, 2)))) for _ in range(count)]
        sizes = [(1 + len(piece) if piece else 0) + 2 for piece in pieces]
        start = HEADER_SIZE + rng.choice((2, 5)) + QUESTION_TAIL.size
        order = list(range(count))
        if rng.random() < 0.7:
            rng.shuffle(order)
        at, places = start, [0] * count
        for index in order:
            places[index] = at
            at += sizes[index]
        end = at
        if rng.random() < 0.2:
            end = rng.choice((4, places[-1], places[0], HEADER_SIZE))
        chunks = {
            index: (bytes([len(piece)]) + piece if piece else b"") + pointer((*places[1:], end)[index])
            for index, piece in enumerate(pieces)
        }
        body = b"".join(chunks[index] for index in order)
        first = pointer(places[0]) if start == HEADER_SIZE + 2 + QUESTION_TAIL.size else b"\2xy" + pointer(places[0])
        return self.header() + first + self.tail() + body + wire(self._suffix)

    def several_questions(self) -> bytes:
        """Return a message with none, two or three questions."""
        rng = self._rng
        number = rng.choice((0, 0, 2, 2, 3))
        questions = b"".join(self.name() + self.tail() for _ in range(number))
        more = rng.choice((b"", OPT, COOKIE))
        return self.header(counts=(number, 0, 0, 1 if more else 0)) + questions + more

    def odd_class(self) -> bytes:
        """Return a query with any type and class."""
        rng = self._rng
        qtype = rng.choice((0, 1, 41, 249, 250, 251, 252, 255, 256, rng.randrange(65536)))
        qclass = rng.choice((0, 1, 2, 3, 4, 254, 255, 0x8001, rng.randrange(65536)))
        return self.header() + self.name() + QUESTION_TAIL.pack(qtype, qclass)

    def odd_label(self) -> bytes:
        """Return a query with a label type that is not in use (01, 10), or with an empty label."""
        rng = self._rng
        odd = rng.choice((b"\x40", b"\x41\x08\xff", b"\x80", b"\xbf\x0c", b"\0", bytes([rng.randrange(64, 192)])))
        return self.header() + wire(labels(rng, ()))[:-1] + odd + wire(self._suffix) + self.tail()

    def truncated(self) -> bytes:
        """Return the beginning of a message: from nothing to all but its last octet."""
        whole = self._rng.choice((self.plain, self.forward_pointer, self.pointer_to_header))()
        end = self._rng.choice((len(whole) - 1, len(whole) - 2, self._rng.randrange(len(whole)), 12, 13, 16, 17))
        return whole[:end]

    def mutated(self) -> bytes:
        """Return a message with some octets changed, inserted, removed or repeated."""
        rng = self._rng
        whole = rng.choice((self.plain, self.forward_pointer, self.chain_of_pointers, self.with_records))
        message = bytearray(whole())
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(2, max(len(message), 3))
            kind = rng.randrange(5)
            if kind == 0:
                message[at : at + 1] = bytes([message[at] ^ 1 << rng.randrange(8)] if at < len(message) else [])
            elif kind == 1:
                message[at : at + 1] = bytes([rng.choice(ODD_LENGTHS)])
            elif kind == 2:
                message[at:at] = rng.randbytes(rng.randrange(1, 9))
            elif kind == 3:
                del message[at : at + rng.randrange(1, 9)]
            else:
                message[at:] = message[at:] + message[at:]
        return bytes(message[:2000])

    def noise(self) -> bytes:
        """Return random octets, most behind the header of a query."""
        rng = self._rng
        noise = rng.randbytes(rng.randrange(80))
        if rng.random() < 0.5:
            noise = bytes(rng.choice((0, 1, 1, 2, 3, 5, 0xC0, rng.randrange(256))) for _ in noise)
        return noise if rng.random() < 0.2 else self.header() + noise
