"""The messages between the daemon and the process that matches names: a line of JSON each, with file descriptors.

JSON, because a process that is at the mercy of hostile names must not be able to do more than to answer wrongly.
"""

from __future__ import annotations

import json
import socket
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dnsprobe.model import Alert, Rate, Rule
from dnsprobe.names.ruleset import Spec, TrieEntry

_READ_BYTES = 1 << 16
_DESCRIPTORS, _DESCRIPTOR_SIZE = 4, array("i").itemsize
#: Rules or trie entries in one message. The daemon handles one message in about a millisecond.
_AT_ONCE = 256


class Channel:
    """One end of a connected stream socket. All methods raise OSError if the other side is gone."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._rest = b""
        #: Descriptors that came along and were not used yet.
        self.received: list[int] = []

    def fileno(self) -> int:
        """Return the descriptor, which is readable while there are messages."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message, and wait for room if there is none."""
        data = json.dumps(message).encode() + b"\n"
        sent = socket.send_fds(self._socket, [data], fds) if fds else 0
        self._socket.sendall(data[sent:])

    def read(self, *, wait: bool = True) -> list[dict[str, Any]]:
        """Return the messages that are there; without any, wait for one or return none. EOFError after the last."""
        messages: list[dict[str, Any]] = []
        while not messages:
            try:
                # Not socket.recv_fds(): it ignores the flags.
                data, ancillary, _flags, _address = self._socket.recvmsg(
                    _READ_BYTES,
                    socket.CMSG_SPACE(_DESCRIPTORS * _DESCRIPTOR_SIZE),
                    socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT),
                )
            except BlockingIOError:
                return []
            for _level, _kind, content in ancillary:
                self.received.extend(array("i", content[: len(content) - len(content) % _DESCRIPTOR_SIZE]))
            if not data:
                raise EOFError
            *lines, self._rest = (self._rest + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        return messages

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def in_parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield rows in parts of the size of a message."""
    for at in range(0, len(rows), _AT_ONCE):
        yield rows[at : at + _AT_ONCE]


def trie_rows(entries: Iterable[TrieEntry]) -> list[list[Any]]:
    """Return trie entries as values for JSON."""
    return [[entry.suffix.hex(), entry.labels, entry.at, entry.below] for entry in entries]


def trie_entries(rows: Iterable[Sequence[Any]]) -> list[TrieEntry]:
    """Return the trie entries that :func:`trie_rows` has described."""
    return [TrieEntry(bytes.fromhex(suffix), labels, at, below) for suffix, labels, at, below in rows]


def rule_rows(rules: Iterable[Rule]) -> list[list[Any]]:
    """Return rules as values for JSON."""
    return [[rule.id, rule.name, rule.pattern, rule.priority, rule.alert] for rule in rules]


def read_rules(rows: Iterable[Sequence[Any]]) -> list[Rule]:
    """Return the rules that :func:`rule_rows` has described."""
    return [
        Rule(rule_id, name, pattern, priority, _read_alert(alert)) for rule_id, name, pattern, priority, alert in rows
    ]


def spec_rows(specs: Iterable[Spec]) -> list[list[Any]]:
    """Return configured rules as values for JSON."""
    return [[*spec[:3], spec[3] if len(spec) > 3 else None] for spec in specs]


def read_specs(rows: Iterable[Sequence[Any]]) -> list[Spec]:
    """Return the configured rules that :func:`spec_rows` has described."""
    return [(name, pattern, priority, _read_alert(alert)) for name, pattern, priority, alert in rows]


def _read_alert(row: Sequence[Any] | None) -> Alert | None:
    if row is None:
        return None
    priority, rcodes, unanswered, latency_ns, rate = row
    return Alert(priority, tuple(rcodes), unanswered, latency_ns, Rate(*rate) if rate else None)
