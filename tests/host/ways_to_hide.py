"""Ways to send a query that a program could choose so that nobody sees it: odd messages, and odd ways to send.

Each way asks the resolver on port 53 of this network namespace, over IPv4 and IPv6, and tells what it sent, and how
much of it was answered. The messages are for names below hidden.test.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from conftest import PATIENCE
from odd_messages import COOKIE, OPT
from real_resolvers import ADDRESSES, OTHER
from reference import message, pointer, wire
from ways_out import datagrams
from ways_out.place import padding, sender_to

NAME, OTHER_NAME = wire([b"www", b"hidden", b"test"]), wire([b"www", b"other", b"invalid"])
#: Response codes that say that the resolver did not read the question: FORMERR and NOTIMP.
NOT_READ = {1, 4}

_ZONE = wire([b"hidden", b"test"])
_QUESTION = struct.pack("!HH", 1, 1)


@dataclass(frozen=True)
class Told:
    """How many messages a way sent, and how many of them a resolver answered as queries."""

    sent: int
    answered: int

    def __add__(self, other: Told) -> Told:
        return Told(self.sent + other.sent, self.answered + other.answered)


def _chain(pointers: int) -> bytes:
    """Return a message with a pointer to a pointer, and so on; the last one points to the name."""
    first = 12 + 2 + len(_QUESTION)
    links = b"".join(pointer(first + 2 * number) for number in range(1, pointers))
    return message(pointer(first), behind=links + NAME)


def _of_length(octets: int) -> bytes:
    """Return a message for a name of so many octets."""
    labels, left = [b"hidden", b"test"], octets - len(_ZONE)
    while left:
        size = min(64, left if left < 66 else left - 2)
        labels.insert(0, b"x" * (size - 1))
        left -= size
    return message(wire(labels))


def _cases() -> Iterator[bytes]:
    for number in range(8):
        name = b"".join(
            bytes([octet]).upper() if at >> number % 4 & 1 else bytes([octet]) for at, octet in enumerate(NAME)
        )
        yield message(name)


def _opt(version: int = 0, options: bytes = b"", length: int | None = None, owner: bytes = b"\0") -> bytes:
    size = len(options) if length is None else length
    return owner + struct.pack("!HHBBHH", 41, 1232, 0, version, 0, size) + options


def _with(*records: bytes) -> bytes:
    return message(NAME, counts=(1, 0, 0, len(records)), behind=b"".join(records))


_RECORD = NAME + struct.pack("!HHIH", 1, 1, 60, 4) + bytes([192, 0, 2, 1])

#: Messages that any resolver answers, and that dnsprobe reads.
ORDINARY: dict[str, Sequence[bytes]] = {
    "plain": [message(NAME), message(NAME, 28), message(NAME, 16)],
    "mixed case": [*_cases()],
    "any octets in labels": [
        message(wire([bytes(range(start, start + 32)), b"hidden", b"test"])) for start in range(0, 256, 32)
    ],
    "EDNS": [_with(OPT), _with(COOKIE), _with(padding(300))],
    "255 octets": [_of_length(254), _of_length(255)],
}
#: Others. Some resolvers answer some of them.
ODD: dict[str, Sequence[bytes]] = {
    "broken EDNS": [
        *(_with(_opt(version=1)), _with(OPT, OPT), _with(_opt(owner=b"\1x\0")), _with(_opt(length=300))),
        *(
            _with(_opt(options=b"\0\x0a\xff\xff")),
            message(NAME, counts=(1, 0, 0, 1)),
            _with(_opt(options=b"\xff" * 40)),
        ),
    ],
    "pointer forward": [message(b"\3www" + pointer(22), behind=_ZONE), message(pointer(18), behind=NAME)],
    "pointer back": [message(NAME[:-1] + pointer(6)), message(NAME[:-1] + pointer(12 + len(NAME) - 2))],
    "chain of pointers": [_chain(2), _chain(5), _chain(100), _chain(180)],
    "endless chain of pointers": [_chain(250), _chain(1000), message(pointer(12)), message(b"\1x" + pointer(12))],
    "more than 255 octets": [_of_length(256), _of_length(257), _of_length(500), _of_length(1020), _of_length(1030)],
    "several questions": [
        message(first, counts=(count, 0, 0, 0), behind=(second + _QUESTION) * (count - 1))
        for count in (2, 3)
        for first, second in ((NAME, NAME), (NAME, OTHER_NAME), (OTHER_NAME, NAME))
    ],
    "wrong number of questions": [message(NAME, counts=(count, 0, 0, 0)) for count in (0, 2, 255, 256, 65535)],
    "OPCODE": [message(NAME, flags=0x0100 | opcode << 11) for opcode in range(1, 16)],
    "response": [message(NAME, flags=0x8100), message(NAME, flags=0x8580), message(NAME, flags=0xFFFF)],
    "flags": [message(NAME, flags=1 << bit) for bit in range(11)],
    "records": [
        message(NAME, counts=counts, behind=_RECORD * sum(counts[1:]))
        for counts in ((1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (1, 3, 3, 3))
    ],
    "wrong number of records": [
        message(NAME, counts=counts) for counts in ((1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 65535), (1, 65535, 65535, 0))
    ],
    "trailing octets": [
        message(NAME, behind=octets) for octets in (b"\0", b"\xff" * 7, message(OTHER_NAME), bytes(1000))
    ],
    "class": [message(NAME, qclass=number) for number in (0, 2, 3, 4, 254, 255, 0x8001, 65535)],
    "type": [message(NAME, number) for number in (0, 6, 41, 249, 250, 251, 252, 253, 254, 255, 256, 65280, 65535)],
    "unused types of labels": [message(first + NAME) for first in (b"\x40", b"\x41\x08\xff", b"\x80", b"\xbf\x0c")],
    "cut": [message(NAME)[:-cut] for cut in (1, 2, 3, 4, 5, 10)],
}
MESSAGES = {**ORDINARY, **ODD}


def _numbered(messages: Iterable[bytes]) -> list[bytes]:
    """Return the messages with ids of their own, by which their answers are told apart."""
    return [number.to_bytes(2, "big") + octets[2:] for number, octets in enumerate(messages, 1)]


def _answers(answer: bytes) -> bool:
    return len(answer) >= 12 and answer[2] & 0x80 != 0 and answer[3] & 0xF not in NOT_READ


def _await(sender: socket.socket) -> int:
    """Ask for another name, and return how many answers came before the one to that: to all sent before it."""
    sender.settimeout(PATIENCE)
    sender.send(OTHER)
    answered = set()
    while (answer := sender.recv(65535))[:2] != OTHER[:2]:
        if _answers(answer):
            answered.add(answer[:2])
    return len(answered)


def over_udp(
    messages: Sequence[bytes], way: datagrams.Way = datagrams.at_once, addresses: Sequence[str] = ADDRESSES
) -> Told:
    """Send each message in a way to each of the addresses."""
    told = Told(0, 0)
    for address in addresses:
        with sender_to(address) as sender:
            for octets in _numbered(messages):
                way(sender, octets)
            # What went to the resolver first was answered first.
            told += Told(len(messages), _await(sender))
    return told


def _segmented() -> Told:
    told = Told(0, 0)
    for address in ADDRESSES:
        with sender_to(address) as sender:
            datagrams.segmented(sender, *_numbered([message(NAME)] * 10))
            told += Told(10, _await(sender))
    return told


def _fragmented() -> Told:
    """Send queries that loopback does not take in one packet."""
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1280"], check=True)
    told = over_udp([_with(padding(1500))])
    subprocess.run(["ip", "link", "set", "lo", "mtu", "65536"], check=True)
    return told


def _connected_elsewhere(sender: socket.socket, octets: bytes) -> None:
    """Send to the resolver from a socket that is connected to another port of it, and connect it again."""
    server = sender.getpeername()
    sender.connect((server[0], 9))
    sender.sendto(octets, server)
    sender.connect(server)


def _with_option(level: int, option: int, value: bytes) -> datagrams.Way:
    def way(sender: socket.socket, octets: bytes) -> None:
        sender.setsockopt(level, option, value)
        sender.send(octets)

    return way


def framed(octets: bytes, length: int | None = None) -> bytes:
    """Return a message as TCP has it (RFC 1035, section 4.2.2), perhaps with a wrong length."""
    return (len(octets) if length is None else length).to_bytes(2, "big") + octets


def read_answers(sender: socket.socket) -> Iterator[bytes]:
    """Yield the answers on a connection, until it ends."""
    data = b""
    with suppress(ConnectionResetError):
        while more := sender.recv(65536):
            data += more
            while len(data) >= 2 and len(data) >= (end := 2 + int.from_bytes(data[:2], "big")):
                yield data[2:end]
                data = data[end:]


def _over_connection(address: str, writes: Iterable[bytes], messages: int) -> Told:
    """Open a connection, write, ask for another name, and read until that is answered or the server gives up."""
    answered = 0
    with socket.create_connection((address, 53), PATIENCE) as sender:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):  # the server has closed the connection
            for octets in writes:
                sender.sendall(octets)
            sender.sendall(framed(OTHER))
            sender.shutdown(socket.SHUT_WR)
        for answer in read_answers(sender):
            if answer[:2] == OTHER[:2]:
                break
            answered += _answers(answer)
    return Told(messages, answered)


def over_tcp(messages: Sequence[bytes]) -> Told:
    """Send each message over a connection of its own, to one of the addresses in turn."""
    told = Told(0, 0)
    for number, octets in enumerate(messages):
        told += _over_connection(ADDRESSES[number % 2], [framed(octets)], 1)
    return told


def over_both(messages: Sequence[bytes]) -> Told:
    return over_udp(messages) + over_tcp(messages)


def _each(writes: Iterable[bytes], messages: int) -> Told:
    """Write the same to a connection over IPv4, and to one over IPv6."""
    writes = [*writes]
    return _over_connection(ADDRESSES[0], writes, messages) + _over_connection(ADDRESSES[1], writes, messages)


_QUERY = message(NAME)
_QUERIES = framed(_QUERY) * 3
_UDP_WAYS: dict[str, Callable[[], Told]] = {
    "UDP_CORK": partial(over_udp, [_QUERY], datagrams.corked),
    "MSG_MORE": partial(over_udp, [_QUERY], datagrams.more(20)),
    "splice": partial(over_udp, [_QUERY], datagrams.spliced),
    "sendfile": partial(over_udp, [_QUERY], datagrams.from_file),
    "MSG_ZEROCOPY": partial(over_udp, [_with(padding(1000))], datagrams.zerocopy),
    "UDP_SEGMENT": _segmented,
    "fragments": _fragmented,
    "IPv4-mapped address": partial(over_udp, [_QUERY], addresses=["::ffff:127.0.0.1"]),
    "connected elsewhere": partial(over_udp, [_QUERY], _connected_elsewhere),
    "IP options": partial(
        over_udp, [_QUERY], _with_option(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([1] * 40)), [ADDRESSES[0]]
    ),
    # RFC 8200, section 4.2: the next header, no further 8 octets, and an option that only pads.
    "destination options": partial(
        over_udp,
        [_QUERY],
        _with_option(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0])),
        [ADDRESSES[1]],
    ),
}
#: TCP in ways that any resolver answers.
_TCP_WAYS: dict[str, Callable[[], Told]] = {
    "several queries in a packet": partial(_each, [_QUERIES], 3),
    "an octet at a time": partial(_each, [bytes([octet]) for octet in _QUERIES], 3),
    "cut in the length": partial(_each, [_QUERIES[:1], _QUERIES[1:]], 3),
    "a query within the length of another": partial(_each, [framed(_QUERY + _QUERIES)], 1),
    "the longest message": partial(_each, [framed(_QUERY.ljust(65535, b"\0"))], 1),
}
_ODD_TCP_WAYS: dict[str, Callable[[], Told]] = {
    "a length that is too large": partial(_each, [framed(_QUERY, len(_QUERY) + 60)], 2),
    "a length that is too small": partial(_each, [framed(_QUERY, len(_QUERY) - 1), _QUERIES], 5),
    "an empty message first": partial(_each, [framed(b"") + _QUERIES], 4),
    "a response first": partial(_each, [framed(message(NAME, flags=0x8100)) + _QUERIES], 4),
}
#: Ways that a resolver answers in full.
ANSWERED: dict[str, Callable[[], Told]] = {
    **{kind: partial(over_both, messages) for kind, messages in ORDINARY.items()},
    **_UDP_WAYS,
    **_TCP_WAYS,
}
WAYS: dict[str, Callable[[], Told]] = {
    **ANSWERED,
    **{kind: partial(over_both, messages) for kind, messages in ODD.items()},
    **_ODD_TCP_WAYS,
}
