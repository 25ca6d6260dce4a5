"""Queries as entries of the systemd journal."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from typing import TextIO, cast

from dnsprobe.errors import UserError
from dnsprobe.model import Identity, Query
from dnsprobe.sinks.fields import journal_values
from dnsprobe.sinks.queue import Writer
from dnsprobe.sinks.wording import summary
from dnsprobe.text import number

_log = logging.getLogger(__name__)

# One id for each kind of entry; the catalog (packaging/systemd/dnsprobe.catalog) explains them.
#: A process asked for a name.
MESSAGE_ID = "70f9b6676ff846deba6d9a720834dc88"
#: A path is not proved any more.
PATH_LOST_ID = "f7001382b1aa46c190f4ad876ecead63"
#: A path is proved again.
PATH_PROVED_ID = "43fd43f4c08f460f8f77cf56a821cc12"
#: The configuration was read again, and is not in force.
RELOAD_FAILED_ID = "3345e3016851494f90a6dec05b504e5a"
#: There were more entries than journal.rate_burst allows.
OVER_LIMIT_ID = "3cdf9998018e4a20a949b80570ac5d08"

SYSLOG_IDENTIFIER = "dnsprobe"

SOCKET = "/run/systemd/journal/socket"

#: How often a thread that waits for journald looks whether it still should.
_LOOK_MS = 100


def fields(query: Query, identity: Identity) -> list[tuple[str, str]]:
    """Return the fields of a query's entry, in order; a name may come several times. Every value is printable."""
    return [
        ("MESSAGE", summary(query)),
        ("MESSAGE_ID", MESSAGE_ID),
        ("PRIORITY", str(query.rule.priority)),
        ("SYSLOG_IDENTIFIER", SYSLOG_IDENTIFIER),
        *journal_values(query, identity),
    ]


def journald_available(path: str = SOCKET) -> bool:
    """Tell whether journald's socket is there."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def wait_for_room(path: str, given_up: Callable[[], bool]) -> None:
    """Return when the socket at ``path`` takes another datagram. Raises OSError where nobody reads there.

    Once ``given_up`` says True, a TimeoutError ends the wait. Python's lock is not held while waiting.
    """
    while True:
        # A connected socket is writable only while its peer's queue has room (unix_dgram_poll(), net/unix/af_unix.c).
        # Connected anew each time, for the peer that it waited for may not be journald's any more.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guard:
            try:
                guard.connect(path)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from error
            poll = select.poll()
            poll.register(guard, select.POLLOUT)
            if poll.poll(0):
                return
            if given_up():
                raise TimeoutError(errno.ETIMEDOUT, "journald does not read", path)
            poll.poll(_LOOK_MS)


def _sendv() -> Callable[..., object]:
    try:
        from systemd.journal import sendv  # noqa: PLC0415 - only who writes to the journal pays for its memory
    except ImportError as error:
        raise UserError(
            f"cannot write to the journal: {error}",
            "apt-get install python3-systemd, and run dnsprobe with /usr/bin/python3 or a virtual environment of it "
            "made with --system-site-packages",
        ) from error
    return cast(Callable[..., object], sendv)


class RateLimit:
    """Allows ``burst`` entries in each ``interval_ns`` nanoseconds of ``clock_ns``; with 0 nanoseconds all.

    An interval begins with the first entry after the one before, as journald's own do.
    """

    def __init__(self, interval_ns: int, burst: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._interval_ns, self._burst, self._clock_ns = interval_ns, burst, clock_ns
        self._ends_ns = 0
        self._allowed = 0
        self._refused = 0

    def allows(self) -> bool:
        """Tell whether one more entry may be written, and count it."""
        if not self._interval_ns:
            return True
        if self._clock_ns() >= self._ends_ns:
            self.settle()
            self._ends_ns = self._clock_ns() + self._interval_ns
            self._allowed = 0
        if self._allowed < self._burst:
            self._allowed += 1
            return True
        self._refused += 1
        return False

    def settle(self) -> None:
        """Say how many were refused, where the interval is over."""
        if self._refused and self._clock_ns() >= self._ends_ns:
            _log.warning(
                "%s not written to the journal: more than %d in %g s (journal.rate_burst, journal.rate_interval)",
                number(self._refused, "entry was", "entries were"),
                self._burst,
                self._interval_ns / 1e9,
                extra={"message_id": OVER_LIMIT_ID},
            )
            self._refused = 0


class JournalSink(Writer):
    """Sends queries to the journal through systemd-python; at most ``size`` wait, and ``limit`` says how many at all.

    ``send`` takes the fields of one entry as arguments, ``NAME=value`` in bytes each, as systemd.journal.sendv does;
    ``path`` is journald's socket.

    Each entry is sent only when :func:`wait_for_room` says that journald has room for it. systemd-python 235 holds
    Python's lock while it sends, so a journald that does not read would stop the whole daemon, not just this thread.
    And libsystemd calls it a success when there is no journald; here, the entry counts as dropped.

    Two gaps are left, both only while journald stands still. Another process may take the last place in the queue
    between the look and the send, a matter of microseconds, and once in a standstill: from then on the queue is full.
    And libsystemd's own buffer of 8 MiB may be full before a queue of 512 is: that takes entries of 30 KB and more
    throughout, which only names and command lines made for it come to. Then sendv waits, lock held, until journald
    reads again.
    """

    def __init__(
        self, size: int, limit: RateLimit, send: Callable[..., object] | None = None, path: str = SOCKET
    ) -> None:
        sender = send or _sendv()
        self._limit = limit

        def write(query: Query, identity: Identity) -> None:
            wait_for_room(path, lambda: self.given_up)
            sender(*(f"{name}={value}".encode() for name, value in fields(query, identity)))

        super().__init__(write, size, "journal")

    def put(self, query: Query, identity: Identity) -> bool:
        """Queue a query, without ever waiting; False if it is dropped."""
        if self._limit.allows():
            return super().put(query, identity)
        self.refuse()
        return False

    def settle(self) -> None:
        """Do what is due though there is no entry."""
        self._limit.settle()


class LogHandler(logging.StreamHandler[TextIO]):
    """Sends log records to the journal, with the ``message_id`` that they may have; to standard error where that fails.

    systemd has connected standard error to journald once, and that connection does not survive each way to restart
    journald. ``send`` and ``path`` are as for :class:`JournalSink`.
    """

    def __init__(self, send: Callable[..., object] | None = None, path: str = SOCKET) -> None:
        super().__init__()
        # logging.basicConfig would give it one with level and logger in each line.
        self.setFormatter(logging.Formatter())
        self._send, self._path = send or _sendv(), path

    def format(self, record: logging.LogRecord) -> str:
        """Return a record for standard error, each line with its level as systemd reads it there (sd-daemon(3))."""
        level = priority(record.levelno)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; a journald that does not read is not waited for."""
        entry = [
            f"MESSAGE={super().format(record)}",
            f"PRIORITY={priority(record.levelno)}",
            f"SYSLOG_IDENTIFIER={SYSLOG_IDENTIFIER}",
        ]
        if message_id := getattr(record, "message_id", None):
            entry.append(f"MESSAGE_ID={message_id}")
        try:
            wait_for_room(self._path, lambda: True)
            self._send(*(field.encode() for field in entry))
        except OSError:
            super().emit(record)


def priority(level: int) -> int:
    """Return the syslog priority (RFC 5424, section 6.2.1) of a level of :mod:`logging`."""
    return next(number for least, number in _PRIORITIES if level >= least)


_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
