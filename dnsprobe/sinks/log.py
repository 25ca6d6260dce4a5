"""dnsprobe's own log on standard error. To write it never waits: a reader that does not read must not stop the daemon.

The log is written in the event loop. A pipe that nobody reads takes 64 KiB, and a terminal after Ctrl-S less. From then
on lines are dropped and counted. Once there is room again, a line reports how many are missing.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import socket
import stat
import sys
from typing import Protocol, TextIO

from dnsprobe.text import number


class _Output(Protocol):
    def write(self, data: bytes) -> int:
        """Write at once as much as there is room for; BlockingIOError if there is none. Return how many octets."""


class _SocketOutput:
    """Writes to a connected socket, which others may share: O_NONBLOCK would be theirs as well."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))

    def write(self, data: bytes) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class _FileOutput:
    """Writes to a pipe, a terminal or a file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # Another description of the same pipe or terminal: O_NONBLOCK of the one that we got is shared with others.
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._fd = os.open(f"/proc/self/fd/{fd}", flags)

    def write(self, data: bytes) -> int:
        return os.write(self._fd, data)


class _TextOutput:
    """Writes to a stream without a descriptor, which nobody has to read."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        self._stream.write(data.decode())
        return len(data)


def _output(stream: TextIO) -> _Output:
    try:
        fd = stream.fileno()
    except io.UnsupportedOperation:
        return _TextOutput(stream)
    return _SocketOutput(fd) if stat.S_ISSOCK(os.fstat(fd).st_mode) else _FileOutput(fd)


class LogStream(logging.Handler):
    """Writes each record as a line to ``stream``, which is None if it is closed, without waiting, or drops it.

    ``prefix`` begins the line that reports dropped ones, as the lines of the formatter begin.
    """

    def __init__(self, stream: TextIO | None, prefix: str = "dnsprobe: ") -> None:
        super().__init__()
        self._prefix = prefix
        self._rest = b""
        self._unreported = 0
        #: How many records were dropped.
        self.dropped = 0
        # None if it was closed (2>&-).
        self._output: _Output | None = None if stream is None else _output(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or drop it if there is no room."""
        try:
            line = self.format(record)
        except Exception:  # a wrong format string in a message must not end the daemon
            line = f"{self._prefix}{record.msg}"
        self.write_line(line)

    def write_line(self, line: str) -> None:
        """Write a finished line, or drop it if there is no room."""
        if not self._write_waiting():
            self.dropped += 1
            self._unreported += 1
            return
        self._rest = f"{line}\n".encode("utf-8", "backslashreplace")
        # A line of which a part was written is completed later; one of which nothing was is dropped.
        size = len(self._rest)
        if not self._write_rest() and len(self._rest) == size:
            self._rest = b""
            self.dropped += 1
            self._unreported += 1

    def report_dropped(self) -> None:
        """Write how many records were dropped, if there is room again. Call about once a second."""
        self.acquire()
        try:
            self._write_waiting()
        finally:
            self.release()

    def _write_waiting(self) -> bool:
        """Write what is left of a line, and how many were dropped. Return whether there is nothing left to write."""
        if not self._write_rest():
            return False
        if self._unreported:
            lines = number(self._unreported, "line of the log was", "lines of the log were")
            self._rest = f"{self._prefix}{lines} dropped: nobody read them\n".encode()
            self._unreported = 0
            return self._write_rest()
        return True

    def _write_rest(self) -> bool:
        while self._rest and self._output is not None:
            try:
                self._rest = self._rest[self._output.write(self._rest) :]
            except OSError as error:
                if error.errno not in {errno.EAGAIN, errno.ENOBUFS, errno.ENOSPC}:
                    self._output = None  # the reader is gone
                    break
                return False
        self._rest = b""
        return True


def log_streams() -> list[LogStream]:
    """Return where this process writes its log, unless that is somebody else's choice."""
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LogStream)]


def write_last_lines(text: str) -> None:
    """Write why the program ends, without waiting for a reader that has not read the log either."""
    for stream in log_streams() or [LogStream(sys.stderr)]:
        for line in text.splitlines():
            stream.write_line(line)
