"""The records of an answer as text. Servers choose what is in them, so nothing here trusts a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dnsprobe.model import Record
from dnsprobe.names.qclass import IN, qclass_name
from dnsprobe.names.qtype import qtype_name
from dnsprobe.text import shown

#: The most records that are kept of an answer, and the most characters of the data of one.
MAX_RECORDS, MAX_DATA = 32, 512
#: The most characters of all records of an answer: a short message may stand for many long names.
_MAX_TEXT = 8192
#: What a label counts in addition: dnspython takes as long for it as for this number of characters, or more.
_LABEL = 8
#: The types of class IN whose data is read. dnspython keeps each pair of class and type that it meets, and looks for a
#: module for it: a server could choose 2^32 pairs. A bitmap of types, as in NSEC, takes it milliseconds.
_READ = frozenset(
    (1, 2, 5, 6, 12, 13, 15, 16, 17, 28, 33, 35, 39, 43, 44, 46, 48, 52, 53, 59, 60, 61, 64, 65, 99, 256, 257)
)

_HEADER_SIZE = 12
#: Where the number of records in the answer section is: RFC 1035, section 4.1.1.
_COUNTS_AT = 4


@dataclass(frozen=True, slots=True)
class Records:
    """The first records of the answer section. ``whole`` is False if it has more, or some that cannot be read."""

    records: tuple[Record, ...] = ()
    whole: bool = True


def read_records(message: bytes) -> Records:
    """Return the records of the answer section. ``message`` may be cut off, or may be anything: it never raises."""
    from dns.wire import Parser  # noqa: PLC0415 - memory: without answers, nobody needs it

    if len(message) < _HEADER_SIZE:
        return Records(whole=False)
    parser = Parser(message, _COUNTS_AT)
    questions, answers, _authorities, _additional = parser.get_struct("!HHHH")
    found: list[Record] = []
    try:
        for _ in range(min(questions, 1)):
            parser.get_name()
            parser.get_struct("!HH")
        left = _MAX_TEXT
        while len(found) < min(answers, MAX_RECORDS) and questions <= 1 and left > 0:
            found.append(_read_record(parser))
            text = found[-1].name + found[-1].data
            left -= len(text) + _LABEL * text.count(".")
    except Exception:
        pass
    return Records(tuple(found), len(found) == answers)


def _read_record(parser: Any) -> Record:
    from dns.rdata import GenericRdata, from_wire_parser  # noqa: PLC0415 - as above

    owner = parser.get_name()
    rdtype, rdclass, ttl, length = parser.get_struct("!HHIH")
    with parser.restrict_to(length):
        read = from_wire_parser if rdclass == IN and rdtype in _READ else GenericRdata.from_wire_parser
        data = read(rdclass, rdtype, parser).to_text()
    return Record(
        shown(owner.to_text()),
        ttl,
        qclass_name(rdclass),
        qtype_name(rdtype),
        shown(data if len(data) <= MAX_DATA else f"{data[: MAX_DATA - 3]}..."),
    )
