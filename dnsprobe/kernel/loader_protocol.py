"""The messages between the daemon and the loader child: one JSON object in each packet, with file descriptors."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dnsprobe.kernel.hooks import Hook

#: The limits of a message in octets and descriptors. No real message reaches them.
_MESSAGE_SIZE, _DESCRIPTORS = 1 << 20, 64

#: In place of the name of a rung: requests the hook of lineage tracking.
LINEAGE = "lineage"
#: The same for the hooks of answers: answers, the ends of sockets, and errors that come back to them.
ANSWERS, SOCKET_ENDS, SOCKET_ERRORS = "answers", "socket_ends", "socket_errors"


def send(channel: socket.socket, message: Mapping[str, Any], fds: Iterable[int] = ()) -> None:
    """Send a message; OSError if the other side is gone."""
    socket.send_fds(channel, [json.dumps(message).encode()], list(fds))


def receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the next message and its descriptors; None as message if the other side has closed."""
    data, fds, _flags, _address = socket.recv_fds(channel, _MESSAGE_SIZE, _DESCRIPTORS)
    return (json.loads(data) if data else None), list(fds)


def describe(hooks: Iterable[Hook]) -> list[dict[str, Any]]:
    """Return hooks as values for JSON. Their descriptors are sent in the order of :func:`descriptors`."""
    return [
        {
            "rung": hook.rung,
            "attach": hook.attach,
            "paths": hook.paths,
            "symbol": hook.symbol,
            "programs": len(hook.programs),
            "links": len(hook.links),
        }
        for hook in hooks
    ]


def descriptors(hooks: Iterable[Hook]) -> list[int]:
    """Return the descriptors of hooks."""
    return [fd for hook in hooks for fd in (*hook.programs, *hook.links)]


def restore(described: Iterable[Mapping[str, Any]], fds: Sequence[int]) -> list[Hook]:
    """Return the hooks that the other side described, with the descriptors that came along."""
    hooks, at = [], 0
    for one in described:
        middle = at + one["programs"]
        end = middle + one["links"]
        programs, links = list(fds[at:middle]), list(fds[middle:end])
        hooks.append(Hook(one["rung"], one["attach"], tuple(one["paths"]), one["symbol"], programs, links))
        at = end
    return hooks
