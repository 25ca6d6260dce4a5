"""The parser of the kernel side agrees with the reference parser, payload by payload, over IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from odd_messages import Messages
from reference import HEADER, QUESTION_TAIL, Question, Refusal, message, parse, pointer, wire

from dnsprobe.kernel.abi import OTHER_QTYPE, UNREAD, Event, Kind, Statistic
from dnsprobe.kernel.canary import CanaryPort
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.names.qtype import QTYPES
from dnsprobe.names.ruleset import TrieEntry

RULE = 7
ALL_NAMES = TrieEntry(b"\0", 0, RULE, RULE)
ADDRESSES = {"udp4": "127.0.0.1", "udp6": "::1"}
FAMILIES = {"udp4": socket.AF_INET, "udp6": socket.AF_INET6}

#: include/uapi/linux/udp.h
UDP_SEGMENT = 103

#: Where the kernel counts what is no query, by the reasons of the reference parser.
STATISTICS = {
    "malformed": Statistic.UNPARSED_MALFORMED,
    "notify": Statistic.OTHER_NOTIFY,
    "update": Statistic.OTHER_UPDATE,
    "dso": Statistic.OTHER_DSO,
    "opcode": Statistic.OTHER_OPCODE,
    "no_question": Statistic.OTHER_NO_QUESTION,
    "questions": Statistic.OTHER_QUESTIONS,
    "response": Statistic.OTHER_RESPONSE,
}

GOOD = message(wire([b"wWw", b"eXample", b"tESt"]), 28)


@dataclass
class Seen:
    """The events that a payload caused, and by how much each statistic has grown."""

    events: list[Event]
    statistics: Counter[Statistic]


@dataclass
class Kernel:
    """A probe that watches one port, and the sockets that send to that port."""

    probe: Probe
    port: int
    senders: dict[str, socket.socket]
    asked: Counter[int] = field(default_factory=Counter)

    def watch(self, send: Callable[[], object]) -> Seen:
        """Return what a call of ``send`` caused. On loopback, a packet has passed the hook when the call returns."""
        before = self.probe.statistics()
        send()
        after = self.probe.statistics()
        differences = Counter({statistic: after[statistic] - before[statistic] for statistic in after})
        del differences[Statistic.COUNTERS_ADDED]
        events = []
        while more := self.probe.maps.events.read():
            events += more
        self.asked.update(event.qtype for event in events if event.kind == Kind.QUERY)
        return Seen(events, +differences)

    def ask(self, path: str, payload: bytes, sender: socket.socket | None = None) -> Seen:
        sender = sender or self.senders[path]
        return self.watch(lambda: sender.sendto(payload, (ADDRESSES[path], self.port)))


@contextlib.contextmanager
def running_kernel() -> Iterator[Kernel]:
    """Attach a probe that watches one port, by one rule for all names."""
    port = CanaryPort()
    probe = Probe(
        ProbeOptions([port.port], tcp_hook="none"),
        Sizes(ring=1 << 20, processes=64, counters=65536, names=1, recent=1),
        repeat_ns=0,
    )
    try:
        probe.set_rules([ALL_NAMES])
        probe.start()
        with contextlib.ExitStack() as stack:
            senders = {
                path: stack.enter_context(socket.socket(FAMILIES[path], socket.SOCK_DGRAM)) for path in port.paths
            }
            yield Kernel(probe, port.port, senders)
    finally:
        probe.close()
        probe.release()
        port.close()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with running_kernel() as kernel:
        yield kernel


def compare(kernel: Kernel, payloads: Sequence[bytes]) -> Counter[str]:
    """Send each payload down each path, and compare the outcome with the reference parser.

    Returns how often there was a question, and how often each reason for none. With these numbers, a test shows that
    its payloads reach the cases that it is about.
    """
    outcomes: Counter[str] = Counter()
    for payload in payloads:
        reference = parse(payload)
        outcomes["question" if isinstance(reference, Question) else reference.reason] += 1
        for path in kernel.senders:
            seen = kernel.ask(path, payload)
            where = f"{path} {payload.hex()} {reference}"
            if isinstance(reference, Question):
                check(kernel, path, reference, seen.events, where)
                assert seen.statistics == {Statistic.EVENTS: 1}, where
            else:
                check_unread(seen, reference, where)
    return outcomes


def check(kernel: Kernel, path: str, question: Question, events: Sequence[Event], where: str) -> None:
    assert len(events) == 1, where
    event = events[0]
    assert Question(event.name, event.qtype, event.qclass) == question, where
    assert (event.kind, event.rule, event.transport, event.repeats) == (Kind.QUERY, RULE, 0, 0), where
    assert (event.uid, event.gid) == (os.getuid(), os.getgid()), where
    assert (event.server, event.port) == (ip_address(ADDRESSES[path]).packed, kernel.port), where
    assert event.chain.processes[0].tgid == os.getpid(), where


def check_unread(seen: Seen, refusal: Refusal, where: str) -> None:
    """Check that a message that is no query is counted, with an event about its sender, unless it is a response."""
    if not refusal.counted:
        assert seen == Seen([], Counter()), where
        return
    statistic = STATISTICS[refusal.counted]
    if refusal.counted == "response":
        assert seen == Seen([], Counter({statistic: 1})), where
        return
    assert seen.statistics == {statistic: 1, Statistic.EVENTS: 1}, where
    assert [(event.kind, event.rule, event.qtype, event.name) for event in seen.events] == [
        (Kind.UNREAD, UNREAD, statistic, b"")
    ], where
    assert seen.events[0].chain.processes[0].tgid == os.getpid(), where


def spread(rng: random.Random, length: int) -> bytes:
    """Return a random name of ``length`` octets in wire format: 1, or 3 to 255."""
    labels = []
    left = length - 1
    while left:
        # A label takes at least two octets, so one octet must not be left over.
        size = left if left <= 3 else rng.choice([at for at in range(2, min(left, 64) + 1) if left - at != 1])
        labels.append(rng.randbytes(size - 1))
        left -= size
    return wire(labels)


def in_labels(octets: bytes, size: int) -> bytes:
    """Return a name whose labels have ``size`` octets; the last one may be shorter."""
    return wire([octets[at : at + size] for at in range(0, len(octets), size)])


def test_a_label_may_hold_any_octet(kernel: Kernel) -> None:
    payloads = [
        message(wire(labels))
        for octet in range(256)
        for labels in (
            [bytes([octet])],
            [b"a" + bytes([octet]) + b"Z", b"test"],
            [b"www", bytes([octet]) * 63, b"test"],
            [bytes([octet])] * 127,
        )
    ]
    payloads += [message(in_labels(bytes(range(at, at + 128)), 63)) for at in (0, 64, 128)]
    assert compare(kernel, payloads) == {"question": 4 * 256 + 3}


def test_names_of_every_length_are_read(kernel: Kernel) -> None:
    rng = random.Random(1)
    names = [spread(rng, length) for length in [1, *range(3, 256)] for _ in range(3)]
    assert {len(name) for name in names} == {1, *range(3, 256)}
    # The octets before and behind the name differ in each message.
    payloads = [
        message(name, rng.randrange(65536), id_=rng.randrange(65536), behind=rng.randbytes(rng.randrange(20)))
        for name in names
    ]
    # The same with the shortest and the longest labels.
    payloads += [message(in_labels(b"Q" * count, 1)) for count in range(1, 128)]
    payloads += [message(in_labels(b"Q" * count, 63)) for count in range(1, 251)]
    assert set(compare(kernel, payloads)) == {"question"}


def test_a_name_that_is_too_long_is_malformed(kernel: Kernel) -> None:
    rng = random.Random(2)
    payloads = [message(in_labels(b"x" * 127, 1) + tail) for tail in (b"", b"\0" * 8)]
    too_long = [
        in_labels(b"x" * 128, 1),
        in_labels(b"x" * 127, 1)[:-1] + b"\1\0\0\0\0\0\0",
        in_labels(b"x" * 251, 63),
        in_labels(b"x" * 252, 63),
        in_labels(b"x" * 252, 63)[:-1] + b"\xc0\x0c",
        wire([b"x" * 63] * 4),
        wire([b"x" * 63] * 5),
        wire([b"x" * 63] * 20),
        in_labels(b"x" * 1000, 1),
        in_labels(b"x" * 1000, 2),
    ]
    too_long += [spread(rng, 255)[:-1] + spread(rng, length) for length in range(3, 40)]
    payloads += [message(name, behind=behind) for name in too_long for behind in (b"", b"\0" * 400)]
    assert compare(kernel, payloads) == {"question": 2, "a name that is too long": 2 * len(too_long)}


def test_a_reserved_length_octet_is_malformed(kernel: Kernel) -> None:
    payloads = []
    for length in range(64, 192):
        octet = bytes([length])
        payloads += [
            message(octet + b"x" * length + b"\0"),
            message(octet + b"\x0c"),
            message(b"\3www\4test" + octet + b"\x0c"),
            message(in_labels(b"y" * 126, 1)[:-1] + octet + b"\0"),
            # At the end of a pointer.
            message(b"\3www" + pointer(HEADER.size + 10), behind=octet + b"\4test\0"),
        ]
    # Not length octets, as they are inside a label.
    payloads += [message(b"\3\xc0\x0c\x40\4test\0"), message(b"\2\xc0\x0c\0")]
    outcomes = compare(kernel, payloads)
    assert outcomes.pop("question") == 2
    # A name that continues behind its end may break another limit first.
    assert set(outcomes) <= {f"a length octet of {length}" for length in range(64, 192)}


def test_pointers_are_followed_to_any_octet(kernel: Kernel) -> None:
    """BIND and dnsmasq answer such queries, so a name must not hide behind a pointer."""
    front = b"\3wWw"
    size = HEADER.size + len(front) + 2 + QUESTION_TAIL.size
    rest = wire([b"eXample", b"tESt"])
    payloads = []
    # Behind the question, and further than what is read of a packet at first.
    for gap in (0, 1, 200, 250, 251, 252, 253, 254, 255, 256, 300, 1000, 16383 - size):
        payloads += [
            message(front + pointer(size + gap), behind=b"\xff" * gap + rest),
            message(front + pointer(size + gap), behind=b"\xff" * gap + rest[:-1]),
            message(pointer(size + gap), behind=b"\xff" * gap + rest + b"\xff" * 30),
        ]
    # Into the header: to a zero, or to octets that happen to be a label. To the name itself, and behind the message.
    payloads += [message(front + pointer(target), id_=0x0161) for target in range(size + 4)]
    # A chain that ends after as many pointers as are followed, and one more. Two that never end.
    for pointers in (1, 2, 100, 125, 126, 180, 188, 189, 190, 191, 192, 193, 300):
        links = b"".join(pointer(size + 2 * (number + 1)) for number in range(pointers))
        payloads += [message(front + pointer(size), behind=links + rest)]
    payloads += [message(pointer(HEADER.size)), message(front + pointer(HEADER.size))]
    # As long as a name may be, up to the pointer: it leads to the last octet, which is in the header.
    payloads += [
        message(in_labels(b"z" * length, 63)[:-1] + pointer(HEADER.size - 1)) for length in (248, 249, 250, 251)
    ]
    # The same, with labels on both sides of the pointer.
    for length in range(100, 260):
        payloads += [message(in_labels(b"x" * 99, 1)[:-1] + pointer(198 + 18), behind=in_labels(b"y" * length, 63))]
    outcomes = compare(kernel, payloads)
    assert outcomes["question"] > 30
    assert outcomes["too many pointers"] >= 4
    assert outcomes["no end of the name"] >= 10


@pytest.mark.parametrize(
    "whole",
    [
        GOOD,
        message(b"\0", 2),
        message(in_labels(b"x" * 127, 1)),
        message(in_labels(b"x" * 250, 63)),
        message(wire([b"a", b"test"]), counts=(1, 0, 0, 1), behind=b"\0\0\x29\x04\xd0\0\0\0\0\0\0"),
        message(wire([b"\0\0\0\0\0\0\0\0", b"\0"])),
    ],
    ids=["short", "root", "many labels", "long", "EDNS", "zeroes"],
)
def test_a_message_truncated_at_any_octet_is_malformed(kernel: Kernel, whole: bytes) -> None:
    # A longer message goes first each time: its octets in the buffers must not complete the short one.
    payloads = [part for end in range(HEADER.size, len(whole) + 1) for part in (whole + b"\0" * 8, whole[:end])]
    outcomes = compare(kernel, payloads)
    assert outcomes["question"] > len(whole) - HEADER.size
    assert outcomes["no whole type and class"] >= 4


def test_only_standard_queries_with_one_question_are_read(kernel: Kernel) -> None:
    rng = random.Random(3)
    name = wire([b"www", b"test"])
    payloads = [message(name, flags=high << 8 | low) for high in range(256) for low in (0, 0xFF, rng.randrange(256))]
    numbers = [0, 1, 2, 255, 256, 257, 511, 512, 32768, 32769, 65535]
    payloads += [message(name, counts=(number, 0, 0, 0)) for number in numbers]
    payloads += [message(name, counts=(1, *rng.sample(numbers, 3))) for _ in range(100)]
    payloads += [message(name, id_=id_) for id_ in numbers]
    outcomes = compare(kernel, payloads)
    # QR and OPCODE are five bits of the first octet of flags. The other eleven bits may have any value.
    assert outcomes["question"] == 3 * 8 + 1 + 100 + len(numbers)
    assert outcomes["a response"] == 3 * 128
    assert outcomes["not a standard query"] == 3 * 120


def test_any_type_and_class_is_read(kernel: Kernel) -> None:
    rng = random.Random(4)
    qtypes = [0, 1, 2, 28, 65, 127, 128, 255, 256, 257, 32767, 32768, 65279, 65280, 65535]
    qtypes += [1 << bit for bit in range(16)] + [rng.randrange(65536) for _ in range(200)]
    payloads = [message(wire([b"test"]), qtype) for qtype in qtypes]
    payloads += [message(wire([b"test"]), 1, qclass) for qclass in qtypes]
    payloads += [message(b"\0", qtype, qclass) for qtype in qtypes[:15] for qclass in qtypes[:15]]
    assert set(compare(kernel, payloads)) == {"question"}


def test_data_behind_the_question_is_ignored(kernel: Kernel) -> None:
    rng = random.Random(5)
    names = [b"\0", wire([b"www", b"test"]), in_labels(b"x" * 127, 1), in_labels(b"x" * 250, 63)]
    behind = [rng.randbytes(length) for length in range(64)]
    behind += [bytes([octet]) * 300 for octet in (0, 1, 0x3F, 0xC0, 0xFF)]
    # A second message in the datagram; an OPT record (RFC 6891, section 6.1.2).
    behind += [GOOD, GOOD * 5, b"\0\0\x29\x10\0\0\0\x80\0\0\x0c\0\x0a\0\x08" + bytes(8), rng.randbytes(8000)]
    payloads = [message(name, counts=(1, 0, 0, 1), behind=tail) for name in names for tail in behind]
    assert compare(kernel, payloads) == {"question": len(names) * len(behind)}


def test_random_payloads_agree_with_the_reference(kernel: Kernel) -> None:
    rng = random.Random(6)
    payloads = []
    for _ in range(1500):
        noise = rng.randbytes(rng.randrange(HEADER.size, HEADER.size + 66))
        # Random octets alone hardly ever begin like a query.
        begin = HEADER.pack(rng.randrange(65536), rng.randrange(0x800), 1, 0, 0, 0)
        lengths = bytes(rng.choice([0, 1, 1, 2, 3, 5, rng.randrange(256)]) for _ in noise)
        payloads += [noise, begin + noise[HEADER.size :], begin + lengths]
    outcomes = compare(kernel, payloads)
    assert outcomes["question"] > 500
    assert len(outcomes) > 100


def test_random_mutations_of_queries_agree_with_the_reference(kernel: Kernel) -> None:
    rng = random.Random(7)
    payloads = []
    for _ in range(2500):
        name = spread(rng, rng.choice([1, 3, 4, 255, 254, 253, rng.randrange(3, 256)]))
        mutated = bytearray(message(name, rng.randrange(300), behind=rng.randbytes(rng.choice([0, 0, 0, 11, 40]))))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(2, len(mutated))
            kind = rng.randrange(5)
            if kind == 0:
                mutated[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                mutated[at] = rng.choice([0, 1, 62, 63, 64, 65, 0x80, 0xC0, 0xFF])
            elif kind == 2:
                mutated[at:at] = rng.randbytes(rng.randrange(1, 9))
            elif kind == 3 and len(mutated) > HEADER.size + 8:
                del mutated[at : at + rng.randrange(1, 9)]
            else:
                mutated[at:] = mutated[at : max(HEADER.size + 1, at)] + mutated[at:]
        payloads.append(bytes(mutated))
    payloads = [payload for payload in payloads if len(payload) >= HEADER.size]
    outcomes = compare(kernel, payloads)
    assert outcomes["question"] > 300
    assert outcomes.total() - outcomes["question"] > 300


def test_odd_messages_agree_with_the_reference(kernel: Kernel) -> None:
    """tests/fuzz/kernel_parser.py tries more of them."""
    messages = Messages(random.Random(9))
    outcomes = compare(kernel, [messages.next() for _ in range(2000)])
    assert outcomes["question"] > 300
    assert outcomes["too many pointers"] > 5


def test_large_payloads_are_read(kernel: Kernel) -> None:
    sizes = (512, 513, 1232, 1472, 1473, 4096, 9000)
    payloads = [query.ljust(size, fill) for size in sizes for query in (GOOD, GOOD[:-5]) for fill in (b"\0", b"\xff")]
    assert compare(kernel, payloads)["question"] >= 2 * len(sizes)


def test_events_keep_the_order_of_the_queries(kernel: Kernel) -> None:
    rng = random.Random(8)
    for path in kernel.senders:
        payloads = [
            message(spread(rng, rng.randrange(3, 256)), rng.randrange(65536), flags=rng.choice([0, 0x100, 0x8000]))
            for _ in range(200)
        ]

        def send(path: str = path, payloads: Sequence[bytes] = payloads) -> None:
            for payload in payloads:
                kernel.senders[path].sendto(payload, (ADDRESSES[path], kernel.port))

        seen = kernel.watch(send)
        questions = [question for question in map(parse, payloads) if isinstance(question, Question)]
        assert 50 < len(questions) < len(payloads)
        assert [(event.name, event.qtype) for event in seen.events] == [
            (question.qname, question.qtype) for question in questions
        ]
        times = [event.time_ns for event in seen.events]
        assert times == sorted(times)


def test_the_hash_depends_on_the_name_only(kernel: Kernel) -> None:
    """Case, surrounding data and earlier names do not change the hash of a name; no two names have the same hash."""
    rng = random.Random(9)
    names = [spread(rng, length).lower() for length in [1, *range(3, 256)] for _ in range(2 if length > 4 else 1)]
    names += [in_labels(b"q" * count, 63) for count in range(1, 251)]
    # Names that end or begin with zero octets.
    names += [wire([bytes(count)]) for count in range(1, 64)]
    names += [wire([b"z" + bytes(count)]) for count in range(1, 63)]
    names = sorted(set(names))
    hashes: dict[bytes, set[int]] = {name: set() for name in names}
    for path in kernel.senders:
        for _ in range(3):
            rng.shuffle(names)
            for name in names:
                payload = message(
                    bytes(rng.choice((octet, bytes([octet]).upper()[0])) for octet in name),
                    id_=rng.randrange(65536),
                    flags=rng.choice([0x0000, 0x0100, 0x07FF]),
                    counts=(1, *(rng.randrange(65536) for _ in range(3))),
                    behind=rng.randbytes(rng.randrange(30)),
                )
                (event,) = kernel.ask(path, payload).events
                hashes[name].add(event.name_hash)
    assert {len(found) for found in hashes.values()} == {1}
    assert len(set.union(*hashes.values())) == len(names)


def test_an_event_has_user_and_group_of_its_sender(kernel: Kernel) -> None:
    uid, gid = 4294967294, 1234567

    def send() -> None:
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                for path, sender in kernel.senders.items():
                    sender.sendto(GOOD, (ADDRESSES[path], kernel.port))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert child

    seen = kernel.watch(send)
    assert [(event.uid, event.gid) for event in seen.events] == [(uid, gid)] * len(kernel.senders)
    assert {event.chain.processes[1].tgid for event in seen.events} == {os.getpid()}


def test_options_before_the_udp_header_are_skipped(kernel: Kernel) -> None:
    """IPv4 options (RFC 791, section 3.1) and IPv6 extension headers (RFC 8200, section 4) move the UDP header."""
    no_operation = b"\1"
    pad = struct.pack("BBBB4x", 0, 0, 1, 4)
    settings = [("udp4", socket.IPPROTO_IP, socket.IP_OPTIONS, no_operation * size) for size in (4, 8, 20, 40)]
    settings += [("udp6", socket.IPPROTO_IPV6, option, pad) for option in (socket.IPV6_HOPOPTS, socket.IPV6_DSTOPTS)]
    for path, level, option, value in settings:
        if path not in kernel.senders:
            continue
        with socket.socket(FAMILIES[path], socket.SOCK_DGRAM) as sender:
            sender.setsockopt(level, option, value)
            for _ in range(3):
                seen = kernel.ask(path, GOOD, sender)
                where = f"{path} {option} {value.hex()}"
                reference = parse(GOOD)
                assert isinstance(reference, Question)
                check(kernel, path, reference, seen.events, where)
                assert kernel.ask(path, GOOD[:-1], sender).statistics == {
                    Statistic.UNPARSED_MALFORMED: 1,
                    Statistic.EVENTS: 1,
                }, where


def test_only_datagrams_to_the_watched_port_are_read(kernel: Kernel) -> None:
    for path in kernel.senders:
        with (
            socket.socket(FAMILIES[path], socket.SOCK_DGRAM) as other,
            socket.create_server((ADDRESSES[path], 0), family=FAMILIES[path]) as server,
        ):
            other.bind((ADDRESSES[path], 0))
            to_another_port = other.getsockname()
            assert kernel.watch(lambda: other.sendto(GOOD, to_another_port)) == Seen([], Counter())  # noqa: B023
            # A TCP connection from and to the watched port: its header has the ports where a UDP header has them.
            with socket.socket(FAMILIES[path], socket.SOCK_STREAM) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    client.bind((ADDRESSES[path], kernel.port))
                except OSError:
                    continue  # another program uses that TCP port

                def converse() -> None:
                    client.connect(server.getsockname())
                    with server.accept()[0] as accepted:
                        for payload in (GOOD, GOOD[:-5], b"\0" * 400):
                            accepted.sendall(payload)
                            client.sendall(payload)

                assert kernel.watch(converse) == Seen([], Counter())


def test_packets_of_other_protocols_are_ignored(kernel: Kernel) -> None:
    """The packet looks like a datagram, but its IP header has protocol 253, for experiments (RFC 3692)."""
    for path in kernel.senders:
        datagram = struct.pack("!HHHH", 40000, kernel.port, 8 + len(GOOD), 0) + GOOD
        with socket.socket(FAMILIES[path], socket.SOCK_RAW, 253) as sender:
            seen = kernel.watch(lambda: sender.sendto(datagram, (ADDRESSES[path], 0)))  # noqa: B023
            assert seen == Seen([], Counter()), path


def test_each_query_is_counted_once_under_its_type(kernel: Kernel) -> None:
    """This also checks all queries of the tests before this one."""
    for path in kernel.senders:
        kernel.ask(path, GOOD)
    counted: Counter[int] = Counter()
    for (_start_ns, _tgid, rule, qtype, *_), queries in kernel.probe.maps.counters.items():
        if rule == RULE:
            counted[qtype] += queries
    asked: Counter[int] = Counter()
    for qtype, queries in kernel.asked.items():
        # Those without a name share one counter.
        asked[qtype if qtype in QTYPES else OTHER_QTYPE] += queries
    assert counted == asked
    assert counted.total() >= len(kernel.senders)
    assert list(kernel.probe.maps.overflow.read([RULE])) == [(RULE, 0)]


# A payload without a complete header is no query, even if octets of an earlier packet would complete it.


@pytest.mark.parametrize("length", range(HEADER.size))
def test_a_payload_without_a_complete_header_is_malformed(kernel: Kernel, length: int) -> None:
    rng = random.Random(length)
    payloads = []
    for _ in range(20):
        for payload in (GOOD[:length], bytes(length), rng.randbytes(length)):
            payloads += [GOOD, payload]
    assert compare(kernel, payloads) == {"question": 60, "no whole header": 60}


# The kernel decides how much of a large, corked or segmented send is in the linear part of the packet
# (__ip_append_data() in net/ipv4/ip_output.c). All of it is read, wherever it is.


def check_each(kernel: Kernel, path: str, seen: Seen, datagrams: int) -> None:
    reference = parse(GOOD)
    assert isinstance(reference, Question)
    assert len(seen.events) == datagrams
    for event in seen.events:
        check(kernel, path, reference, [event], path)
    # The hook at a function leaves such packets to the hook at egress.
    del seen.statistics[Statistic.PARTS_LEFT]
    del seen.statistics[Statistic.PARTS_TAKEN]
    assert seen.statistics == {Statistic.EVENTS: datagrams}, path


@pytest.mark.parametrize("size", [14000, 16000, 20000, 40000, 65000])
def test_a_question_in_a_large_payload_is_read(kernel: Kernel, size: int) -> None:
    for path in kernel.senders:
        for _ in range(5):
            check_each(kernel, path, kernel.ask(path, GOOD.ljust(size, b"\0")), 1)


@pytest.mark.parametrize("split", range(1, len(GOOD)))
def test_a_question_sent_in_two_parts_is_read(kernel: Kernel, split: int) -> None:
    for path in kernel.senders:
        address = (ADDRESSES[path], kernel.port)
        with socket.socket(FAMILIES[path], socket.SOCK_DGRAM) as sender:

            def send() -> None:
                sender.sendto(GOOD[:split], socket.MSG_MORE, address)  # noqa: B023
                sender.sendto(GOOD[split:], address)  # noqa: B023

            for _ in range(5):
                check_each(kernel, path, kernel.watch(send), 1)


@pytest.mark.parametrize("datagrams", [1, 3])
def test_each_question_in_a_segmented_send_is_read(kernel: Kernel, datagrams: int) -> None:
    for path in kernel.senders:
        with socket.socket(FAMILIES[path], socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(GOOD))
            for _ in range(5):
                check_each(kernel, path, kernel.ask(path, GOOD * datagrams, sender), datagrams)


def test_the_last_datagram_of_a_segmented_send_may_be_shorter(kernel: Kernel) -> None:
    last = message(b"\0", 2)
    for path in kernel.senders:
        with socket.socket(FAMILIES[path], socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(GOOD))
            for _ in range(5):
                seen = kernel.ask(path, GOOD * 2 + last, sender)
                assert [event.name for event in seen.events][2:] == [b"\0"], path
                check_each(kernel, path, Seen(seen.events[:2], seen.statistics - Counter({Statistic.EVENTS: 1})), 2)


@pytest.mark.parametrize("decoys", [1, 10, 15, 20, 40])
def test_a_query_behind_decoys_in_a_segmented_send_is_read_or_unread(kernel: Kernel, decoys: int) -> None:
    decoy = b"\xff" * len(GOOD)
    decoy = decoy[:2] + b"\0\0" + decoy[4:]
    for path in kernel.senders:
        with socket.socket(FAMILIES[path], socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(GOOD))
            seen = kernel.ask(path, decoy * decoys + GOOD, sender)
        read = [event for event in seen.events if event.kind == Kind.QUERY]
        unread = seen.statistics[Statistic.OTHER_QUESTIONS] + seen.statistics[Statistic.UNPARSED_SEGMENTED]
        assert len(read) + unread == decoys + 1, path
        assert seen.statistics[Statistic.OTHER_QUESTIONS] >= min(decoys, 15), path
        assert bool(read) == (decoys <= 15), path
