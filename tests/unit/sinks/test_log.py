"""dnsprobe's own log: no reader can make the daemon wait, and what is missing is counted and reported."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from dnsprobe.sinks.log import LogStream

MANY = 5000
REPORT = re.compile(r"dnsprobe: (\d+) lines? of the log (?:was|were) dropped: nobody read them")


@pytest.fixture(params=["pipe", "socket", "terminal"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, TextIO]]:
    """Yield the descriptor of a reader, and a stream that leads there."""
    if request.param == "pipe":
        reader, writer = os.pipe()
    elif request.param == "terminal":
        reader, writer = os.openpty()
    else:
        reader, writer = (each.detach() for each in socket.socketpair())
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def made(text: str) -> logging.LogRecord:
    return logging.LogRecord("dnsprobe", logging.INFO, __file__, 1, "%s", (text,), None)


def read_all(reader: int) -> bytes:
    os.set_blocking(reader, False)
    content = b""
    try:
        while more := os.read(reader, 65536):
            content += more
    except BlockingIOError:
        pass
    return content


def test_a_reader_that_does_not_read_does_not_stop_the_log(ends: tuple[int, TextIO]) -> None:
    reader, stream = ends
    log = LogStream(stream)
    for number in range(MANY):
        log.handle(made(f"{number:0100d}"))
    assert 0 < log.dropped < MANY
    dropped = log.dropped
    # Other processes share the description of the descriptor.
    assert os.get_blocking(stream.fileno())
    content = b""
    # A terminal has room for less than a line at a time.
    while more := read_all(reader):
        content += more
        log.report_dropped()
    lines = content.decode().splitlines()
    # Where there is no room for a line, there can be room for a short report.
    reports = [int(found[1]) for line in lines if (found := REPORT.fullmatch(line))]
    assert sum(reports) == dropped
    numbers = [int(line) for line in lines if not REPORT.fullmatch(line)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == MANY - dropped
    # Reported once.
    log.handle(made("again"))
    assert read_all(reader).splitlines() == [b"again"]
    assert log.dropped == dropped


def test_a_long_line_is_whole_or_missing(ends: tuple[int, TextIO]) -> None:
    reader, stream = ends
    log = LogStream(stream)
    # No pipe and no socket has room for one of them.
    log.handle(made("a" * 2_000_000))
    log.handle(made("b" * 2_000_000))
    content = b""
    while more := read_all(reader):
        content += more
        log.report_dropped()
    assert content.splitlines() == [b"a" * 2_000_000, b"dnsprobe: 1 line of the log was dropped: nobody read them"]
    assert log.dropped == 1


def test_a_reader_that_is_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        log = LogStream(stream)
        os.close(reader)
        for _ in range(3):
            log.handle(made("text"))


def test_lines_that_a_full_disk_does_not_take_are_counted() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        log = LogStream(full)
        for _ in range(3):
            log.handle(made("text"))
        log.report_dropped()
        assert log.dropped == 3


def test_without_standard_error_nothing_is_written() -> None:
    log = LogStream(None)
    log.handle(made("text"))
    assert log.dropped == 0


def test_a_message_that_cannot_be_formatted_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    LogStream(sys.stderr).handle(logging.LogRecord("dnsprobe", logging.INFO, __file__, 1, "%d", ("text",), None))
    assert capsys.readouterr().err == "dnsprobe: %d\n"
