"""Entries of the journal: their fields, the queue, and the socket."""

import os
import socket
import threading
from contextlib import closing, suppress
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from made_up import ANCESTRY, HOSTILE, IDENTITY, QUERY, RULE, hostile, query

from dnsprobe.model import Ancestry, Identity, Process, Rule
from dnsprobe.sinks.journal import MESSAGE_ID, JournalSink, JournalSocket, fields, journald_available

#: More than any test needs; a test that gets here has failed.
PATIENCE = 60.0


def test_all_fields() -> None:
    assert fields(QUERY, IDENTITY) == [
        ("MESSAGE", "dig[4242] asked for www.example.test (A, udp) by bash;make;dig"),
        ("MESSAGE_ID", MESSAGE_ID),
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "dnsprobe"),
        ("DNSPROBE_DOMAIN", "example.test"),
        ("DNSPROBE_QNAME", "www.example.test"),
        ("DNSPROBE_QTYPE", "A"),
        ("DNSPROBE_TRANSPORT", "udp"),
        ("DNSPROBE_SERVER", "127.0.0.53"),
        ("DNSPROBE_PORT", "53"),
        ("DNSPROBE_PID", "4242"),
        ("DNSPROBE_COMM", "dig"),
        ("DNSPROBE_EXE", "/usr/bin/dig"),
        ("DNSPROBE_CMDLINE", "dig +short www.example.test"),
        ("DNSPROBE_UID", "1000"),
        ("DNSPROBE_USER", "ada"),
        ("DNSPROBE_UNIT", "session-3.scope"),
        ("DNSPROBE_CGROUP", "/user.slice/user-1000.slice/session-3.scope"),
        ("DNSPROBE_TREE", "bash;make;dig"),
        ("DNSPROBE_REPEATS", "0"),
        ("DNSPROBE_ANCESTOR", "4210 make"),
        ("DNSPROBE_ANCESTOR", "4200 bash"),
        ("DNSPROBE_ANCESTOR", "1 systemd"),
    ]


def test_message_id_is_a_128_bit_id() -> None:
    assert len(MESSAGE_ID) == 32
    assert int(MESSAGE_ID, 16)
    assert MESSAGE_ID.lower() == MESSAGE_ID


def test_unknown_is_absent() -> None:
    known = dict(fields(QUERY, Identity()))
    assert not known.keys() & {f"DNSPROBE_{name}" for name in ("EXE", "CMDLINE", "USER", "UNIT", "CGROUP")}
    assert known["DNSPROBE_UID"] == "1000"


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"rule": Rule(2, "example.test", "example.test", priority=3)}, "PRIORITY", "3"),
        ({"rule": Rule(2, "example.test", "example.test", priority=0)}, "PRIORITY", "0"),
        ({"rule": Rule(2, ".", ".")}, "DNSPROBE_DOMAIN", "."),
        ({"qname": b"\0"}, "DNSPROBE_QNAME", "."),
        ({"qname": b"\3a.b\1 \0"}, "DNSPROBE_QNAME", r"a\.b.\032"),
        ({"qtype": 65280}, "DNSPROBE_QTYPE", "TYPE65280"),
        ({"transport": "tcp"}, "DNSPROBE_TRANSPORT", "tcp"),
        ({"server": IPv6Address("2001:db8::53"), "port": 5353}, "DNSPROBE_SERVER", "2001:db8::53"),
        ({"server": IPv6Address("2001:db8::53"), "port": 5353}, "DNSPROBE_PORT", "5353"),
        ({"repeats": 12}, "DNSPROBE_REPEATS", "12"),
        ({"uid": 0}, "DNSPROBE_UID", "0"),
        (
            {"repeats": 12},
            "MESSAGE",
            "dig[4242] asked for www.example.test (A, udp) by bash;make;dig, and 12 more like it",
        ),
        ({"ancestry": Ancestry(ANCESTRY.chain, complete=False)}, "DNSPROBE_ANCESTRY_CUT", "yes"),
        ({"ancestry": Ancestry(ANCESTRY.chain, complete=False)}, "DNSPROBE_TREE", "...;bash;make;dig"),
        ({"ancestry": Ancestry((Process(1, 0, b"systemd"),))}, "DNSPROBE_TREE", "systemd"),
    ],
)
def test_values(changes: dict[str, object], name: str, value: str) -> None:
    assert dict(fields(query(**changes), IDENTITY))[name] == value


@pytest.mark.parametrize(
    ("cmdline", "shown"),
    [
        (b"dig", "dig"),
        (b"sh\0-c\0dig a; dig b\0", "sh -c 'dig a; dig b'"),
        (b"a\0\0b\0", "a '' b"),
        (b"nginx: worker process\0\0\0\0", "'nginx: worker process'"),
        (b"a\0it's\0", """a 'it'"'"'s'"""),
        (b"a\0\x1b[31m\n\0", r"a '\x1b[31m\x0a'"),
        (b"a\0\xff\0", r"a '\xff'"),
    ],
)
def test_cmdline(cmdline: bytes, shown: str) -> None:
    assert dict(fields(QUERY, Identity(cmdline=cmdline)))["DNSPROBE_CMDLINE"] == shown


@pytest.mark.parametrize("raw", HOSTILE)
def test_hostile(raw: bytes) -> None:
    known = fields(*hostile(raw * 40))
    assert [name for name, _ in known if name in {"MESSAGE", "PRIORITY"}] == ["MESSAGE", "PRIORITY"]
    for name, value in known:
        assert name.replace("_", "").isalpha()
        assert value
        assert value.isprintable()
        value.encode()  # no lone surrogates


def test_longest_entry_fits_a_datagram(tmp_path: Path) -> None:
    # Linux's default of net.core.wmem_default; each byte of a hostile value takes at most six.
    chain = tuple(Process(4194304, 1, b"\x01" * 15) for _ in range(64))
    long = "\x01" * 4096
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald, closing(JournalSocket(path)) as send:
        journald.bind(path)
        sink = JournalSink(1, send)
        sink.put(
            query(qname=(b"\x3f" + b"\x01" * 63) * 3 + b"\x3d" + b"\x01" * 61 + b"\0", ancestry=Ancestry(chain, False)),
            Identity(exe=long, cmdline=b"'" * 4096, user=long[:32], unit=long[:255], cgroup=long),
        )
        assert sink.close(PATIENCE)
        assert (sink.entries, sink.dropped) == (1, 0)


def test_sink_sends_each_ancestor() -> None:
    sent: list[tuple[bytes, ...]] = []
    sink = JournalSink(10, lambda *entry: sent.append(entry))
    assert sink.put(QUERY, IDENTITY)
    assert sink.close(PATIENCE)
    assert sent == [tuple(f"{name}={value}".encode() for name, value in fields(QUERY, IDENTITY))]
    assert [field for field in sent[0] if field.startswith(b"DNSPROBE_ANCESTOR=")] == [
        b"DNSPROBE_ANCESTOR=4210 make",
        b"DNSPROBE_ANCESTOR=4200 bash",
        b"DNSPROBE_ANCESTOR=1 systemd",
    ]
    assert (sink.entries, sink.dropped) == (1, 0)


def test_full_queue_drops_and_never_waits() -> None:
    started = threading.Event()
    go_on = threading.Event()

    def send(*_entry: bytes) -> None:
        started.set()
        assert go_on.wait(PATIENCE)

    sink = JournalSink(3, send)
    assert sink.put(QUERY, IDENTITY)
    assert started.wait(PATIENCE)
    assert [sink.put(QUERY, IDENTITY) for _ in range(5)] == [True, True, True, False, False]
    assert (sink.entries, sink.dropped) == (0, 2)
    go_on.set()
    assert sink.close(PATIENCE)
    assert (sink.entries, sink.dropped) == (4, 2)


def test_close_gives_up_on_a_stuck_sender() -> None:
    started = threading.Event()
    go_on = threading.Event()

    def send(*_entry: bytes) -> None:
        started.set()
        go_on.wait(PATIENCE)

    sink = JournalSink(10, send)
    sink.put(QUERY, IDENTITY)
    assert started.wait(PATIENCE)
    for _ in range(4):
        sink.put(QUERY, IDENTITY)
    assert sink.close(0.01) is False
    assert sink.dropped == 4
    assert sink.put(QUERY, IDENTITY) is False
    assert sink.dropped == 5
    go_on.set()
    assert sink.close(PATIENCE) is True
    assert (sink.entries, sink.dropped) == (1, 5)


def test_errors_are_counted_and_told_once_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = [None, OSError("no journald"), OSError("no journald"), None, RuntimeError("bad"), None]

    def send(*_entry: bytes) -> None:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    sink = JournalSink(10, send)
    for _ in range(6):
        sink.put(QUERY, IDENTITY)
    assert sink.close(PATIENCE)
    assert (sink.entries, sink.dropped) == (3, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "journal: entries are being lost: OSError: no journald",
        "journal: entries are being lost: RuntimeError: bad",
    ]


def decode(datagram: bytes) -> list[tuple[str, bytes]]:
    """Read a datagram as JOURNAL_NATIVE_PROTOCOL.md describes it."""
    found = []
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found.append((name.decode(), value))
        datagram = rest
    return found


def test_native_protocol(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald, closing(JournalSocket(path)) as send:
        journald.bind(path)
        send(b"MESSAGE=a=b", b"DNSPROBE_ANCESTOR=1 a", b"DNSPROBE_ANCESTOR=2 b", b"X=one\ntwo\n", b"EMPTY=")
        assert decode(journald.recv(65536)) == [
            ("MESSAGE", b"a=b"),
            ("DNSPROBE_ANCESTOR", b"1 a"),
            ("DNSPROBE_ANCESTOR", b"2 b"),
            ("X", b"one\ntwo\n"),
            ("EMPTY", b""),
        ]


def test_journald_comes_back(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    send = JournalSocket(path)
    with pytest.raises(FileNotFoundError):
        send(b"MESSAGE=lost")
    for message in (b"MESSAGE=first", b"MESSAGE=second"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
            journald.bind(path)
            send(message)
            assert journald.recv(65536) == message + b"\n"
        os.unlink(path)
    with pytest.raises(OSError, match="No such file"):
        send(b"MESSAGE=lost")


def test_journald_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as another,
        closing(JournalSocket(path)) as send,
    ):
        journald.bind(path)
        another.setblocking(False)
        another.connect(path)
        with suppress(BlockingIOError):
            while True:
                another.send(b"MESSAGE=full\n")
        sink = JournalSink(5, send)
        # The thread holds one at most, the queue five.
        puts = [sink.put(QUERY, IDENTITY) for _ in range(7)]
        assert not all(puts)
        assert sink.entries == 0
        journald.settimeout(PATIENCE)
        got = b""
        while got.count(b"DNSPROBE_QNAME=") < sum(puts):
            got += journald.recv(65536)
        assert sink.close(PATIENCE)
        assert (sink.entries, sink.dropped) == (sum(puts), 7 - sum(puts))


def test_journald_available(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert journald_available(str(path)) is False
    path.touch()
    assert journald_available(str(path)) is False
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(path))
        assert journald_available(str(path)) is True


def test_rule_name_keeps_its_escapes() -> None:
    assert dict(fields(query(rule=Rule(2, r"a\.b", r"a\.b")), IDENTITY))["DNSPROBE_DOMAIN"] == r"a\.b"
    assert dict(fields(query(rule=Rule(2, "a\nb", "x")), IDENTITY))["DNSPROBE_DOMAIN"] == r"a\x0ab"
    assert RULE.priority == 6
