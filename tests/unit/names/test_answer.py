"""Records of answers as text: those that dnspython makes, and octets that mean nothing."""

from __future__ import annotations

import random
import struct

import dns.message
import dns.rdata
import dns.rrset
import pytest

from dnsprobe.model import Record
from dnsprobe.names.answer import MAX_DATA, MAX_RECORDS, read_records

NAME = "www.example.test."


def message(*lines: str) -> bytes:
    """Return an answer with these records, as in zone files."""
    response = dns.message.make_response(dns.message.make_query(NAME, "A"))
    for line in lines:
        owner, ttl, rdclass, rdtype, data = line.split(" ", 4)
        response.answer.append(dns.rrset.from_text(owner, int(ttl), rdclass, rdtype, data))
    return response.to_wire()


def with_answers(octets: bytes, number: int, records: bytes = b"") -> bytes:
    return octets[:6] + struct.pack(">H", number) + octets[8:] + records


@pytest.mark.parametrize(
    "line",
    [
        "www.example.test. 300 IN A 192.0.2.7",
        "www.example.test. 0 IN AAAA 2001:db8::7",
        "www.example.test. 2147483647 IN CNAME b.example.test.",
        'www.example.test. 300 IN HTTPS 1 svc.example.test. alpn="h2,h3" ipv4hint="192.0.2.7"',
        "_dns.example.test. 300 IN SVCB 0 dns.example.test.",
        "www.example.test. 300 IN MX 10 mail.example.test.",
        'www.example.test. 300 IN TXT "a b" "\\"quoted\\""',
        "www.example.test. 300 IN PTR a\\.b.example.test.",
        "www.example.test. 300 IN TYPE65280 \\# 3 010203",
    ],
)
def test_a_record_has_the_form_of_zone_files(line: str) -> None:
    found = read_records(message(line))
    assert [str(record) for record in found.records] == [line]
    assert found.whole


def test_records_keep_their_order() -> None:
    lines = [
        f"{NAME} 60 IN CNAME b.example.test.",
        "b.example.test. 30 IN A 192.0.2.9",
        "b.example.test. 30 IN A 192.0.2.8",
    ]
    assert [str(record) for record in read_records(message(*lines)).records] == lines


def test_control_characters_are_escaped() -> None:
    (record,) = read_records(message(f'{NAME} 5 IN TXT "\\027[31m\\010\\226\\128\\174"')).records
    assert record == Record(NAME, 5, "IN", "TXT", '"\\027[31m\\010\\226\\128\\174"')
    raw = b"\3\x1b[2\4test\0" + struct.pack(">HHIH", 16, 1, 5, 3) + b"\2\r\n"
    (record,) = read_records(with_answers(message(), 1, raw)).records
    assert str(record).isprintable()


def test_long_data_is_cut() -> None:
    (record,) = read_records(message(f"{NAME} 5 IN TXT " + " ".join(['"' + "a" * 250 + '"'] * 4))).records
    assert len(record.data) == MAX_DATA
    assert record.data.endswith("...")


def test_the_number_of_records_is_limited() -> None:
    lines = [f"{NAME} 1 IN A 192.0.2.{number}" for number in range(MAX_RECORDS + 1)]
    found = read_records(message(*lines))
    assert (len(found.records), found.whole) == (MAX_RECORDS, False)
    assert read_records(message(*lines[1:])).whole


@pytest.mark.parametrize("kept", range(12, len(message(f"{NAME} 300 IN A 192.0.2.7", f"{NAME} 300 IN A 192.0.2.8"))))
def test_an_answer_that_is_cut_has_the_records_that_are_whole(kept: int) -> None:
    octets = message(f"{NAME} 300 IN A 192.0.2.7", f"{NAME} 300 IN A 192.0.2.8")
    found = read_records(octets[:kept])
    assert len(found.records) == int(kept >= len(octets) - 16)
    assert not found.whole


QUESTION_END = len(message())


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\0" * 11,
        b"\xff" * 512,
        with_answers(message(), 65535),
        # A name that points to itself, to what comes later, and between two.
        with_answers(message(), 1, struct.pack(">HHHIH", 0xC000 | QUESTION_END, 1, 1, 60, 4) + b"abcd"),
        with_answers(message(), 1, struct.pack(">HHHIH", 0xC000 | QUESTION_END + 12, 1, 1, 60, 4) + b"abcd"),
        with_answers(message(), 1, b"\1a" + struct.pack(">HHHIH", 0xC000 | QUESTION_END, 1, 1, 60, 4) + b"abcd"),
        # Data that is longer than the message, than its type admits, and shorter.
        with_answers(message(), 1, struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 65535) + b"abcd"),
        with_answers(message(), 1, struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 5) + b"abcde"),
        with_answers(message(), 1, struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 3) + b"abc"),
        # A label that is too long, and a kind of label that does not exist.
        with_answers(message(), 1, b"\x40" + b"a" * 64 + b"\0" + struct.pack(">HHIH", 1, 1, 60, 0)),
        with_answers(message(), 1, b"\x80\0" + struct.pack(">HHIH", 1, 1, 60, 0)),
        # Two questions.
        message()[:4] + b"\0\2" + with_answers(message(), 1)[6:],
    ],
)
def test_a_malformed_answer_has_no_records(octets: bytes) -> None:
    found = read_records(octets)
    assert found.records == ()
    assert not found.whole


def test_no_octets_raise_an_error() -> None:
    """Octets of good answers are changed, and records of many types have random data."""
    chance = random.Random(18)
    good = message(f"{NAME} 60 IN CNAME b.example.test.", 'b.example.test. 300 IN HTTPS 1 . alpn="h2"')
    for number in range(4000):
        octets = bytearray(good)
        for _ in range(chance.randrange(1, 8)):
            octets[chance.randrange(len(octets))] = chance.randrange(256)
        for record in read_records(bytes(octets)).records:
            assert str(record).isprintable()
        data = chance.randbytes(chance.randrange(40))
        made = with_answers(message(), 1, struct.pack(">HHHIH", 0xC00C, number % 300, 1, 60, len(data)) + data)
        for record in read_records(made).records:
            assert str(record).isprintable()


def test_types_that_a_server_makes_up_leave_nothing_behind() -> None:
    # dnspython keeps what it knows about each pair of class and type.
    kept = len(dns.rdata._rdata_classes)
    for rdclass in range(300, 320):
        records = b"".join(struct.pack(">BHHIH", 0, 40_000 + number, rdclass, 1, 1) + b"x" for number in range(32))
        assert len(read_records(with_answers(message(), 32, records)).records) == 32
    assert len(dns.rdata._rdata_classes) == kept


def test_long_names_in_a_short_message_do_not_fill_the_memory() -> None:
    # Each record has two pointers to a name of 255 octets.
    labels = b"".join(bytes([63]) + b"a" * 63 for _ in range(3)) + bytes([61]) + b"a" * 61 + b"\0"
    head = struct.pack(">HHHHHH", 0, 0x8180, 1, 32, 0, 0) + labels + struct.pack(">HH", 5, 1)
    records = (b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 1, 2) + b"\xc0\x0c") * 32
    found = read_records(head + records)
    assert sum(len(str(record)) for record in found.records) < 10_000
    assert not found.whole
