"""Queries as entries of the systemd journal."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import select
import socket
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable

from dnsprobe.errors import UserError
from dnsprobe.model import Identity, Query, TreeAlert
from dnsprobe.pipeline.budget import Budget
from dnsprobe.sinks.fields import journal_values, tree_values
from dnsprobe.sinks.log import LogStream
from dnsprobe.sinks.queue import Entry, QueuedSink
from dnsprobe.sinks.wording import summary, tree_summary
from dnsprobe.text import number

_log = logging.getLogger(__name__)

# One id for each kind of entry; packaging/systemd/dnsprobe.catalog has a text for each.
#: A process asked for a name.
MESSAGE_ID = "70f9b6676ff846deba6d9a720834dc88"
#: A process sent a message that could not be read as a query.
UNREAD_ID = "b5f3d4f2a6c64b0e9d1e3a7c58f0c2d4"
#: A result that came after the entry of its query.
RESULT_ID = "8b9ecea58ced45f6a132787b5dcff837"
#: The result of a query meets an alert of its rule.
ALERT_ID = "0603cf54171a4dfe98007152147f9640"
#: A process tree has sent more queries of a rule than its alert allows.
RATE_ID = "4d9ffd1ae5c44f03856a7637c8749af2"
#: A path is no longer verified.
PATH_LOST_ID = "f7001382b1aa46c190f4ad876ecead63"
#: A path is verified again.
PATH_PROVED_ID = "43fd43f4c08f460f8f77cf56a821cc12"
#: Another program has the address of the HTTP server.
ADDRESS_TAKEN_ID = "c1142865d21144219362cc7e5c863898"
#: A reload failed; the old rules stay in force.
RELOAD_FAILED_ID = "3345e3016851494f90a6dec05b504e5a"
#: Entries were dropped by journal.rate_burst.
OVER_LIMIT_ID = "3cdf9998018e4a20a949b80570ac5d08"

SYSLOG_IDENTIFIER = "dnsprobe"

SOCKET = "/run/systemd/journal/socket"

#: Milliseconds between two checks of a thread that waits for journald whether to give up.
_CHECK_MS = 100


def message_id(query: Query) -> str:
    """Return the id of a query's kind of entry."""
    if query.alerts:
        return ALERT_ID
    if query.is_late:
        return RESULT_ID
    return UNREAD_ID if query.unread else MESSAGE_ID


def fields(query: Entry, identity: Identity) -> list[tuple[str, str]]:
    """Return the fields of an entry, in order; a name may come several times. Every value is printable."""
    if isinstance(query, TreeAlert):
        return [
            ("MESSAGE", tree_summary(query)),
            ("MESSAGE_ID", RATE_ID),
            ("PRIORITY", str(query.priority)),
            ("SYSLOG_IDENTIFIER", SYSLOG_IDENTIFIER),
            *tree_values(query),
        ]
    return [
        ("MESSAGE", summary(query)),
        ("MESSAGE_ID", message_id(query)),
        ("PRIORITY", str(query.priority)),
        ("SYSLOG_IDENTIFIER", SYSLOG_IDENTIFIER),
        *journal_values(query, identity),
    ]


def journald_available(path: str = SOCKET) -> bool:
    """Return True if journald's socket is there."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def wait_for_room(path: str, given_up: Callable[[], bool]) -> None:
    """Return when the socket at ``path`` takes another datagram. Python's lock is not held while waiting.

    Raises OSError if no process listens there, and TimeoutError once ``given_up`` returns True.
    """
    while True:
        # A connected socket is writable only while its peer's queue has room (unix_dgram_poll(), net/unix/af_unix.c).
        # Connect each time: journald may have been restarted, and the old peer is not its socket any more.
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
            poll.poll(_CHECK_MS)


class _Field(ctypes.Structure):
    """A field of an entry (struct iovec)."""

    _fields_ = (("octets", ctypes.c_char_p), ("size", ctypes.c_size_t))


def _sendv() -> Callable[..., object]:
    """Return a function that takes the fields of one entry as arguments, each as bytes ``NAME=value``, and sends it.

    It waits if journald's queue is full, without Python's lock. systemd.journal.sendv has the lock meanwhile, so that
    a user who floods journald could stop the whole daemon.
    """
    try:
        library = ctypes.CDLL("libsystemd.so.0")
    except OSError as error:
        raise UserError(f"cannot write to the journal: {error}", "apt-get install libsystemd0") from error

    def send(*fields: bytes) -> None:
        pieces = (_Field * len(fields))(*(_Field(field, len(field)) for field in fields))
        # sd_journal_sendv(3) returns a negative errno.
        if (result := library.sd_journal_sendv(pieces, len(fields))) < 0:
            raise OSError(-result, os.strerror(-result))

    return send


class RateLimit:
    """Allows ``burst`` entries in each ``interval_ns`` nanoseconds of ``clock_ns``; 0 nanoseconds means no limit.

    An interval begins with the first entry after the previous interval, as with journald's own limit. Users share the
    entries of an interval (:class:`~dnsprobe.pipeline.budget.Budget`).
    """

    def __init__(self, interval_ns: int, burst: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._interval_ns, self._burst, self._clock_ns = interval_ns, burst, clock_ns
        self._ends_ns = 0
        self._places = Budget(burst)
        self._refused = 0

    def allows(self, share: int = 0, priority: int = 6) -> bool:
        """Count one more entry of a user (``Query.share``). Return False if it must not be written."""
        if not self._interval_ns:
            return True
        if self._clock_ns() >= self._ends_ns:
            self.report_refused()
            self._ends_ns = self._clock_ns() + self._interval_ns
            self._places.clear()
        if self._places.take(share, priority):
            return True
        self._refused += 1
        return False

    def take_refused(self) -> Counter[int]:
        """Return how many entries were refused since the last call, by share."""
        return self._places.take_refused()

    def report_refused(self) -> None:
        """Log how many entries were refused, if the interval is over."""
        if self._refused and self._clock_ns() >= self._ends_ns:
            _log.warning(
                "%s not written to the journal: more than %d in %g s, or more than the share of one user "
                "(journal.rate_burst, journal.rate_interval)",
                number(self._refused, "entry was", "entries were"),
                self._burst,
                self._interval_ns / 1e9,
                extra={"message_id": OVER_LIMIT_ID},
            )
            self._refused = 0


class JournalSink(QueuedSink):
    """Sends queries to the journal through libsystemd; at most ``size`` wait, and at most ``limit`` are sent.

    ``send`` takes the fields of one entry as arguments, each as bytes ``NAME=value``; ``path`` is journald's socket.

    An entry is sent only once :func:`wait_for_room` has found room for it, so that the thread can give up. If another
    process takes the last place meanwhile, only this thread waits until journald reads. If there is no journald,
    libsystemd reports success; here the entry counts as dropped.
    """

    def __init__(
        self, size: int, limit: RateLimit, send: Callable[..., object] | None = None, path: str = SOCKET
    ) -> None:
        sender = send or _sendv()
        self._limit = limit

        def write(query: Entry, identity: Identity) -> None:
            wait_for_room(path, lambda: self.given_up)
            sender(*(f"{name}={value}".encode() for name, value in fields(query, identity)))

        super().__init__(write, size, "journal")

    def put(self, query: Entry, identity: Identity) -> bool:
        """Queue a query without waiting. Return False if it is dropped."""
        if self._limit.allows(query.share, query.priority):
            return super().put(query, identity)
        self.count_dropped()
        return False

    def take_over_share(self) -> Counter[int]:
        """Return how many were dropped since the last call because their user had no room, by share."""
        return super().take_over_share() + self._limit.take_refused()

    def report_refused(self) -> None:
        """Log how many entries the limit refused, if its interval is over."""
        self._limit.report_refused()


class LogHandler(LogStream):
    """Sends log records to the journal, with their ``message_id`` if they have one, or else to standard error.

    It does not rely on standard error alone: systemd connects that to journald once, and the connection does not
    survive every restart of journald. ``send`` and ``path`` are as for :class:`JournalSink`.
    """

    def __init__(self, send: Callable[..., object] | None = None, path: str = SOCKET) -> None:
        super().__init__(sys.stderr, prefix="<4>")
        # Otherwise logging.basicConfig would set a formatter that puts level and logger into each line.
        self.setFormatter(logging.Formatter())
        self._send, self._path = send or _sendv(), path

    def format(self, record: logging.LogRecord) -> str:
        """Return a record for standard error; each line begins with the level that systemd reads (sd-daemon(3))."""
        level = priority(record.levelno)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record without waiting for journald."""
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
