"""Sending to the journal: the queue, waiting for journald, the limit, the log, and the real journald."""

import ctypes
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import IDENTITY, QUERY, TOO_MANY, UNREAD, query

from dnsprobe.errors import UserError
from dnsprobe.model import Ancestry, Identity, Process, Query
from dnsprobe.sinks import journal
from dnsprobe.sinks.journal import (
    MESSAGE_ID,
    UNREAD_ID,
    JournalSink,
    LogHandler,
    RateLimit,
    fields,
    journald_available,
    wait_for_room,
)

#: More than any test needs: a test that waits this long has failed.
PATIENCE = 60.0

NO_LIMIT = RateLimit(0, 1)
CATALOG = Path(__file__).parents[3] / "packaging/systemd/dnsprobe.catalog"

JOURNALD = "/usr/lib/systemd/systemd-journald"


class Journald:
    """A socket like journald's. Only a test reads it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)

    def fill(self) -> None:
        """Fill the queue as another process could."""
        self.fill_at(self.path)

    @staticmethod
    def fill_at(path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as another:
            another.setblocking(False)
            another.connect(path)
            with suppress(BlockingIOError):
                while True:
                    another.send(b"MESSAGE=full\n")

    def read_all(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self.socket.recv(65536, socket.MSG_DONTWAIT)

    def close(self) -> None:
        self.socket.close()
        os.unlink(self.path)


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    fake = Journald(tmp_path / "socket")
    yield fake
    fake.socket.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def longest() -> tuple[Query, Identity]:
    chain = tuple(Process(4194304 - step, 1, b"\x01" * 15) for step in range(40))
    long = "\x01" * 4096
    return (
        query(qname=(b"\x3f" + b"\x01" * 63) * 3 + b"\x3d" + b"\x01" * 61 + b"\0", ancestry=Ancestry(chain, False)),
        Identity(exe=long, cmdline=b"'" * 4096, user=long[:32], unit=long[:255], cgroup=long),
    )


def test_message_id_is_a_128_bit_id() -> None:
    assert len(MESSAGE_ID) == 32
    assert int(MESSAGE_ID, 16)
    assert MESSAGE_ID.lower() == MESSAGE_ID


def test_sink_sends_each_ancestor(journald: Journald) -> None:
    sent: list[tuple[bytes, ...]] = []
    sink = JournalSink(10, NO_LIMIT, lambda *entry: sent.append(entry), journald.path)
    assert sink.put(QUERY, IDENTITY)
    assert sink.close(PATIENCE)
    assert sent == [tuple(f"{name}={value}".encode() for name, value in fields(QUERY, IDENTITY))]
    assert [field for field in sent[0] if field.startswith(b"DNSPROBE_ANCESTOR=")] == [
        b"DNSPROBE_ANCESTOR=4210 make",
        b"DNSPROBE_ANCESTOR=4200 bash",
        b"DNSPROBE_ANCESTOR=1 systemd",
    ]
    assert (sink.entries, sink.dropped) == (1, 0)


def test_full_queue_drops_and_never_waits(journald: Journald) -> None:
    started = threading.Event()
    go_on = threading.Event()

    def send(*_entry: bytes) -> None:
        started.set()
        assert go_on.wait(PATIENCE)

    sink = JournalSink(3, NO_LIMIT, send, journald.path)
    assert sink.put(QUERY, IDENTITY)
    assert started.wait(PATIENCE)
    assert [sink.put(QUERY, IDENTITY) for _ in range(5)] == [True, True, True, False, False]
    assert (sink.entries, sink.dropped) == (0, 2)
    go_on.set()
    assert sink.close(PATIENCE)
    assert (sink.entries, sink.dropped) == (4, 2)


def test_close_does_not_wait_for_a_blocked_sender(journald: Journald) -> None:
    started = threading.Event()
    go_on = threading.Event()

    def send(*_entry: bytes) -> None:
        started.set()
        go_on.wait(PATIENCE)

    sink = JournalSink(10, NO_LIMIT, send, journald.path)
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


def test_errors_are_counted_and_logged_once_per_outage(journald: Journald, caplog: pytest.LogCaptureFixture) -> None:
    outcomes = [None, OSError("no journald"), OSError("no journald"), None, RuntimeError("bad"), None]

    def send(*_entry: bytes) -> None:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    sink = JournalSink(10, NO_LIMIT, send, journald.path)
    for _ in range(6):
        sink.put(QUERY, IDENTITY)
    assert sink.close(PATIENCE)
    assert (sink.entries, sink.dropped) == (3, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "journal: entries are being lost: OSError: no journald",
        "journal: entries are being lost: RuntimeError: bad",
    ]


def test_a_journald_that_does_not_read_blocks_nobody(journald: Journald, monkeypatch: pytest.MonkeyPatch) -> None:
    journald.fill()
    looks: list[bool] = []

    def counting(path: str, given_up: Callable[[], bool]) -> None:
        def look() -> bool:
            looks.append(given_up())
            return looks[-1]

        wait_for_room(path, look)

    monkeypatch.setattr(journal, "wait_for_room", counting)
    sent: list[tuple[bytes, ...]] = []
    sink = JournalSink(5, NO_LIMIT, lambda *entry: sent.append(entry), journald.path)
    # The thread holds one at most, the queue five.
    puts = [sink.put(QUERY, IDENTITY) for _ in range(7)]
    assert not all(puts)
    while len(looks) < 3:
        time.sleep(0.01)
    # While it waits, it does not keep a CPU busy.
    looks.clear()
    time.sleep(0.3)
    assert len(looks) < 30
    assert (sent, sink.entries, sink.dropped) == ([], 0, 7 - sum(puts))
    journald.read_all()
    assert sink.close(PATIENCE)
    assert len(sent) == sum(puts)
    assert (sink.entries, sink.dropped) == (sum(puts), 7 - sum(puts))


def test_close_does_not_wait_for_a_journald_that_does_not_read(journald: Journald) -> None:
    journald.fill()
    sent: list[tuple[bytes, ...]] = []
    sink = JournalSink(10, NO_LIMIT, lambda *entry: sent.append(entry), journald.path)
    for _ in range(3):
        sink.put(QUERY, IDENTITY)
    assert sink.close(0.05) is False
    # The thread ends, although nobody ever reads.
    assert sink.close(PATIENCE) is True
    assert (sent, sink.entries, sink.dropped) == ([], 0, 3)


def test_close_waits_for_journald_to_read_again(journald: Journald) -> None:
    journald.fill()
    sink = JournalSink(10, NO_LIMIT, lambda *_entry: None, journald.path)
    for _ in range(3):
        sink.put(QUERY, IDENTITY)
    reader = threading.Timer(0.2, journald.read_all)
    reader.start()
    assert sink.close(PATIENCE) is True
    reader.join()
    assert (sink.entries, sink.dropped) == (3, 0)


def test_absent_journald_is_a_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "socket"
    sent: list[tuple[bytes, ...]] = []
    sink = JournalSink(10, NO_LIMIT, lambda *entry: sent.append(entry), str(path))
    sink.put(QUERY, IDENTITY)
    sink.put(QUERY, IDENTITY)
    assert sink.close(PATIENCE)
    assert (sent, sink.entries, sink.dropped) == ([], 0, 2)
    assert [record.getMessage() for record in caplog.records] == [
        f"journal: entries are being lost: FileNotFoundError: [Errno 2] No such file or directory: '{path}'"
    ]


def test_socket_without_journald_is_a_loss(journald: Journald) -> None:
    journald.socket.close()
    with pytest.raises(ConnectionRefusedError, match="socket"):
        wait_for_room(journald.path, lambda: False)


def test_journald_comes_back(journald: Journald, tmp_path: Path) -> None:
    sink = JournalSink(10, NO_LIMIT, lambda *_entry: None, journald.path)
    sink.put(QUERY, IDENTITY)
    assert eventually(lambda: sink.entries == 1)
    journald.close()
    sink.put(QUERY, IDENTITY)
    assert eventually(lambda: sink.dropped == 1)
    again = Journald(tmp_path / "socket")
    sink.put(QUERY, IDENTITY)
    assert sink.close(PATIENCE)
    assert (sink.entries, sink.dropped) == (2, 1)
    again.close()


def test_journald_is_replaced_while_we_wait(journald: Journald, tmp_path: Path) -> None:
    journald.fill()
    sink = JournalSink(10, NO_LIMIT, lambda *_entry: None, journald.path)
    sink.put(QUERY, IDENTITY)
    time.sleep(0.05)
    # The old socket stays open and full. Only a new look at the path finds the new socket.
    again = Journald(tmp_path / "new")
    os.rename(again.path, journald.path)
    assert sink.close(PATIENCE)
    assert (sink.entries, sink.dropped) == (1, 0)
    again.socket.close()


def test_libsystemd_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(UserError, match="cannot write to the journal: libsystemd") as caught:
        JournalSink(1, NO_LIMIT)
    assert "apt-get install libsystemd0" in caught.value.hint


def test_real_journald_keeps_every_field() -> None:
    entry, all_long = run_with_journald("two_entries")
    # journald adds fields of its own, and does not keep the order of equal fields.
    assert set(entry.pop("DNSPROBE_ANCESTOR")) == {"4210 make", "4200 bash", "1 systemd"}
    sent = {name: value for name, value in fields(QUERY, IDENTITY) if name != "DNSPROBE_ANCESTOR"}
    assert {name: value for name, value in entry.items() if name in sent} == sent
    assert len(all_long["DNSPROBE_ANCESTOR"]) == 39
    assert all_long["DNSPROBE_CMDLINE"] == dict(fields(*longest()))["DNSPROBE_CMDLINE"]


def test_a_real_journald_that_is_stopped_blocks_nobody() -> None:
    assert [entry["DNSPROBE_REPEATS"] for entry in run_with_journald("standstill")] == list(map(str, range(MANY)))


def test_whoever_fills_the_queue_of_journald_stops_one_thread_only() -> None:
    (entry,) = run_with_journald("overtaken")
    assert entry["DNSPROBE_QNAME"] == dict(fields(QUERY, IDENTITY))["DNSPROBE_QNAME"]


#: More entries than any queue of a socket takes: systemd sets net.unix.max_dgram_qlen to 512.
MANY = 1009


def two_entries(sink: JournalSink, _journald: subprocess.Popen[bytes]) -> None:
    sink.put(QUERY, IDENTITY)
    sink.put(*longest())


def standstill(sink: JournalSink, journald: subprocess.Popen[bytes]) -> None:
    journald.send_signal(signal.SIGSTOP)
    for number in range(MANY):
        assert sink.put(query(repeats=number), IDENTITY)
    seen = -1
    while seen != sink.entries:
        seen = sink.entries
        time.sleep(0.3)
    assert 0 < seen < MANY
    # The sink's thread waits without Python's lock, or this line would not be reached.
    journald.send_signal(signal.SIGCONT)


def overtaken(_sink: JournalSink, journald: subprocess.Popen[bytes]) -> None:
    """Another process takes the last place in journald's queue when the sink has just seen it."""
    journald.send_signal(signal.SIGSTOP)
    Journald.fill_at(journal.SOCKET)
    entry = [f"{name}={value}".encode() for name, value in fields(QUERY, IDENTITY)]
    sending = threading.Thread(target=journal._sendv(), args=entry, daemon=True)
    sending.start()
    # If the thread waited with Python's lock, no line below would be reached.
    sending.join(0.5)
    assert sending.is_alive()
    journald.send_signal(signal.SIGCONT)
    sending.join(PATIENCE)
    assert not sending.is_alive()


def run_with_journald(case: str) -> list[dict[str, Any]]:
    """Run a case with the real sender and a private journald. Return dnsprobe's entries in its journal."""
    needed = {"unshare": "util-linux", JOURNALD: "systemd", "journalctl": "systemd"}
    missing = {package for tool, package in needed.items() if shutil.which(tool) is None}
    if missing:
        pytest.skip(f"a private journald needs: apt-get install {' '.join(sorted(missing))}")
    # When the first process of a pid namespace ends, for any reason, all others end too.
    namespace = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a private journald needs a mount namespace: run as root, with CAP_SYS_ADMIN")
    command = [*namespace, sys.executable, __file__, case]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_the_limit_and_the_queue_refuse_is_reported_by_share() -> None:
    limit = RateLimit(1, 4, lambda: 0)
    for _ in range(6):
        limit.allows(7)
    assert set(limit.take_refused()) == {7}
    assert limit.take_refused() == {}


def inside_namespace(case: Callable[[JournalSink, subprocess.Popen[bytes]], None]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    settings = Path("/run/systemd/journald.conf.d/test.conf")
    settings.parent.mkdir(parents=True)
    settings.write_text("[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=\nRateLimitIntervalSec=0\n")
    with subprocess.Popen([JOURNALD]) as journald:
        assert eventually(journald_available)
        sink = JournalSink(2 * MANY, NO_LIMIT)
        case(sink, journald)
        assert sink.close(PATIENCE)
        assert sink.dropped == 0
        subprocess.run(["journalctl", "--sync"], check=True)
        journald.terminate()
    subprocess.run(["journalctl", "-D", "/run/log/journal", "-t", "dnsprobe", "-o", "json", "--all"], check=True)


def test_journald_is_available_only_with_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert journald_available(str(path)) is False
    path.touch()
    assert journald_available(str(path)) is False
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(path))
        assert journald_available(str(path)) is True


if __name__ == "__main__":
    inside_namespace({"two_entries": two_entries, "standstill": standstill, "overtaken": overtaken}[sys.argv[1]])


class Clock:
    """Nanoseconds that only a test advances."""

    now = 0

    def __call__(self) -> int:
        return self.now


def test_a_rate_limit_refuses_entries_above_its_burst(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    limit = RateLimit(30 * 10**9, 3, clock)
    assert [limit.allows() for _ in range(5)] == [True, True, True, False, False]
    clock.now = 30 * 10**9 - 1
    assert not limit.allows()
    limit.report_refused()
    assert not caplog.records
    clock.now += 1
    limit.report_refused()
    (record,) = caplog.records
    assert record.getMessage() == (
        "3 entries were not written to the journal: more than 3 in 30 s, or more than the share of one user "
        "(journal.rate_burst, journal.rate_interval)"
    )
    assert vars(record)["message_id"] == journal.OVER_LIMIT_ID
    assert [limit.allows() for _ in range(4)] == [True, True, True, False]
    clock.now += 30 * 10**9
    assert limit.allows()
    assert len(caplog.records) == 2
    assert "1 entry was not" in caplog.records[1].getMessage()
    limit.report_refused()
    assert len(caplog.records) == 2


def test_an_interval_of_zero_is_no_rate_limit() -> None:
    limit = RateLimit(0, 1)
    assert all(limit.allows() for _ in range(1000))


def test_entries_over_the_limit_are_counted(journald: Journald) -> None:
    sent: list[tuple[bytes, ...]] = []
    sink = JournalSink(10, RateLimit(3600 * 10**9, 3), lambda *entry: sent.append(entry), journald.path)
    assert [sink.put(QUERY, IDENTITY) for _ in range(5)] == [True, True, True, False, False]
    assert sink.close(PATIENCE)
    assert (len(sent), sink.entries, sink.dropped) == (3, 3, 2)


def test_a_flood_of_one_user_leaves_entries_for_others(journald: Journald) -> None:
    """All 110 queries of a victim are written, although another user fills the limit for the same urgent rule."""
    sent: list[tuple[bytes, ...]] = []
    sink = JournalSink(20000, RateLimit(3600 * 10**9, 10000), lambda *entry: sent.append(entry), journald.path)
    urgent = replace(QUERY, rule=replace(QUERY.rule, priority=2))
    flood = [replace(QUERY, share=1), replace(urgent, share=1)]
    accepted = sum([sink.put(flood[number % 2], IDENTITY) for number in range(40000)])
    assert accepted < 8000
    assert all(sink.put(replace(urgent, share=2), IDENTITY) for _ in range(110))
    assert all(sink.put(replace(QUERY, share=3), IDENTITY) for _ in range(110))
    assert sink.close(PATIENCE)
    assert sink.entries == len(sent) == accepted + 220
    assert sink.dropped == 40000 - accepted


def record(level: int, message_id: str | None) -> logging.LogRecord:
    made = logging.LogRecord("dnsprobe", level, __file__, 1, "%s is not proved", ("udp4",), None)
    if message_id is not None:
        made.message_id = message_id
    return made


def test_the_log_goes_to_the_journal(journald: Journald, capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[tuple[bytes, ...]] = []
    handler = LogHandler(lambda *entry: sent.append(entry), journald.path)
    handler.handle(record(logging.ERROR, journal.PATH_LOST_ID))
    handler.handle(record(logging.INFO, None))
    ours = (b"MESSAGE=udp4 is not proved", b"PRIORITY=3", b"SYSLOG_IDENTIFIER=dnsprobe")
    assert sent == [
        (*ours, f"MESSAGE_ID={journal.PATH_LOST_ID}".encode()),
        (b"MESSAGE=udp4 is not proved", b"PRIORITY=6", b"SYSLOG_IDENTIFIER=dnsprobe"),
    ]
    assert capsys.readouterr().err == ""


def test_what_journald_does_not_take_goes_to_stderr(journald: Journald, capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[tuple[bytes, ...]] = []
    handler = LogHandler(lambda *entry: sent.append(entry), journald.path)
    journald.fill()
    handler.handle(record(logging.WARNING, journal.PATH_LOST_ID))
    assert sent == []
    assert capsys.readouterr().err == "<4>udp4 is not proved\n"


def test_the_log_has_tracebacks(journald: Journald, capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[tuple[bytes, ...]] = []
    handler = LogHandler(lambda *entry: sent.append(entry), journald.path)
    failed = record(logging.ERROR, None)
    try:
        int("no number")
    except ValueError:
        failed.exc_info = sys.exc_info()
    handler.handle(failed)
    ((message, *_),) = sent
    assert message.startswith(b"MESSAGE=udp4 is not proved\nTraceback (most recent call last):\n")
    assert message.endswith(b"\nValueError: invalid literal for int() with base 10: 'no number'")
    journald.fill()
    handler.handle(failed)
    assert all(line.startswith("<3>") for line in capsys.readouterr().err.splitlines())


def test_each_kind_of_entry_has_its_text_in_the_catalog(tmp_path: Path) -> None:
    ids = {value for name, value in vars(journal).items() if name.endswith(("MESSAGE_ID", "_ID"))}
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    shutil.copy(CATALOG, folder)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    journalctl = ["journalctl", f"--root={tmp_path}", "--no-pager"]
    updated = subprocess.run(
        [*journalctl, "--update-catalog"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (updated.returncode, updated.stderr) == (0, "")
    assert (tmp_path / "var/lib/systemd/catalog/database").stat().st_size > 0
    heads = CATALOG.read_text("utf-8").split("\n-- ")[1:]
    assert {head.splitlines()[0] for head in heads} == ids
    assert all(head.splitlines()[1].startswith("Subject: ") and "\n\n" in head for head in heads)


def test_the_catalog_uses_fields_that_entries_have() -> None:
    used = set(re.findall("@([A-Z_]+)@", CATALOG.read_text("utf-8")))
    names = {name for query in (replace(QUERY, query_id=1), UNREAD, TOO_MANY) for name, _ in fields(query, Identity())}
    assert used <= names


def test_a_message_that_is_not_read_has_an_entry_of_its_own_without_a_name() -> None:
    entry = dict(fields(UNREAD, IDENTITY))
    assert (
        entry["MESSAGE"] == "dig[4242] sent what dnsprobe could not read as a query (malformed, udp) by bash;make;dig"
    )
    assert (entry["MESSAGE_ID"], entry["PRIORITY"], entry["DNSPROBE_UNREAD"]) == (UNREAD_ID, "5", "malformed")
    assert entry["DNSPROBE_TREE"] == "bash;make;dig"
    assert {"DNSPROBE_DOMAIN", "DNSPROBE_QNAME", "DNSPROBE_QTYPE", "DNSPROBE_CLASS"}.isdisjoint(entry)
