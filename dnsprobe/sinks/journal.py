"""Queries as entries of the systemd journal."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable

from dnsprobe.model import Identity, Query
from dnsprobe.qname import qtype_name, to_text
from dnsprobe.sinks.facts import command, shown, summary
from dnsprobe.sinks.writer import Writer
from dnsprobe.text import printable

#: The kind of entry "a process asked for a name"; the catalog explains it under this id.
MESSAGE_ID = "70f9b6676ff846deba6d9a720834dc88"
SYSLOG_IDENTIFIER = "dnsprobe"

SOCKET = "/run/systemd/journal/socket"


def fields(query: Query, identity: Identity) -> list[tuple[str, str]]:
    """Return the fields of a query's entry, in order; a name may come several times.

    A fact that is not known has no field. Every value is printable.
    """
    ancestry = query.ancestry
    asker = ancestry.asker
    known = [
        ("MESSAGE", summary(query)),
        ("MESSAGE_ID", MESSAGE_ID),
        ("PRIORITY", str(query.rule.priority)),
        ("SYSLOG_IDENTIFIER", SYSLOG_IDENTIFIER),
        ("DNSPROBE_DOMAIN", shown(query.rule.name)),
        ("DNSPROBE_QNAME", to_text(query.qname)),
        ("DNSPROBE_QTYPE", qtype_name(query.qtype)),
        ("DNSPROBE_TRANSPORT", shown(query.transport)),
        ("DNSPROBE_SERVER", str(query.server)),
        ("DNSPROBE_PORT", str(query.port)),
        ("DNSPROBE_PID", str(asker.tgid)),
        ("DNSPROBE_COMM", printable(asker.comm)),
        ("DNSPROBE_EXE", identity.exe and printable(identity.exe)),
        ("DNSPROBE_CMDLINE", identity.cmdline and command(identity.cmdline)),
        ("DNSPROBE_UID", str(query.uid)),
        ("DNSPROBE_USER", identity.user and printable(identity.user)),
        ("DNSPROBE_UNIT", identity.unit and printable(identity.unit)),
        ("DNSPROBE_CGROUP", identity.cgroup and printable(identity.cgroup)),
        ("DNSPROBE_TREE", ancestry.tree),
        ("DNSPROBE_REPEATS", str(query.repeats)),
        *(("DNSPROBE_ANCESTOR", f"{parent.tgid} {printable(parent.comm)}") for parent in ancestry.chain[1:]),
        ("DNSPROBE_ANCESTRY_CUT", None if ancestry.complete else "yes"),
    ]
    return [(name, value) for name, value in known if value]


def journald_available(path: str = SOCKET) -> bool:
    """Tell whether journald's socket is there."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


class JournalSocket:
    """Sends entries to journald, one ``NAME=value`` in bytes an argument, as systemd.journal.sendv takes them.

    Its own, because python-systemd 235 holds Python's lock while it sends: a journald that does not read would stop
    the whole daemon, not just one thread. And libsystemd calls it a success when there is no journald; here, that is
    an OSError. The protocol is stable (systemd's docs/JOURNAL_NATIVE_PROTOCOL.md). Not for several threads at once.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def __call__(self, *entry: bytes) -> None:
        """Send one entry; wait while journald is behind. Raises OSError where it cannot be sent."""
        datagram = b"".join(map(_encode, entry))
        if self._socket is not None:
            try:
                self._socket.send(datagram)
            except (ConnectionError, BrokenPipeError):  # journald has a new socket
                self.close()
            else:
                return
        self._connect().send(datagram)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            raise
        self._socket = connection
        return connection

    def close(self) -> None:
        """Close the socket; the next entry opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _encode(field: bytes) -> bytes:
    if b"\n" not in field:
        return field + b"\n"
    name, _, value = field.partition(b"=")
    return name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


class JournalSink(Writer):
    """Sends queries to the journal; at most ``size`` wait.

    ``send`` takes the fields of one entry as arguments, ``NAME=value`` in bytes each.
    """

    def __init__(self, size: int, send: Callable[..., object] | None = None) -> None:
        sender = send or JournalSocket()

        def write(query: Query, identity: Identity) -> None:
            sender(*(f"{name}={value}".encode() for name, value in fields(query, identity)))

        super().__init__(write, size, "journal")
