"""The clients of the HTTP server, and the limits that keep one of them from harming the others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tornado.http1connection import HTTP1ServerConnection

Client = HTTP1ServerConnection

#: Seconds for which an idle or a busy client is not closed to make room for a new one.
_IDLE_GRACE = 0.25
_BUSY_GRACE = 2.0
#: Seconds until a client is closed that does not read its response.
_RESPONSE_TIMEOUT = 30.0


@dataclass(slots=True)
class _Unread:
    size: int
    deadline: asyncio.TimerHandle


class Clients:
    """The state of each client: idle (without a request), busy (with one), or closing.

    At most ``limit`` are idle or busy. A new client takes the place of the one that has been idle for the longest. If
    all are busy, it takes the place of the one with the oldest request.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: All open connections, also those that are closing.
        self.connected: set[Client] = set()
        #: The time of the loop since when a client is in this state, the earliest first.
        self.idle: dict[Client, float] = {}
        self.busy: dict[Client, float] = {}
        #: The bytes of the responses that were sent and not read.
        self.unread_bytes = 0
        self._unread: dict[Client, _Unread] = {}

    def set_idle(self, client: Client) -> None:
        """Note that a client is new, or that it has read its last response."""
        self.connected.add(client)
        self.release(client)
        if not client.stream.closed():
            self.idle[client] = asyncio.get_running_loop().time()

    def set_busy(self, client: Client) -> bool:
        """Note that a request of a client was read; return False if the client has left."""
        self.idle.pop(client, None)
        if client.stream.closed():
            return False
        self.busy[client] = asyncio.get_running_loop().time()
        return True

    def set_unread(self, client: Client, size: int) -> None:
        """Note that a response of this size is on its way to a client. The client has to read it in time."""
        deadline = asyncio.get_running_loop().call_later(_RESPONSE_TIMEOUT, self.drop, client)
        self._unread[client] = _Unread(size, deadline)
        self.unread_bytes += size

    def release(self, client: Client) -> None:
        """Free the place of a client and the bytes of its response."""
        self.idle.pop(client, None)
        self.busy.pop(client, None)
        unread = self._unread.pop(client, None)
        if unread is not None:
            unread.deadline.cancel()
            self.unread_bytes -= unread.size

    def remove(self, client: Client) -> None:
        """Forget a client whose connection has ended."""
        self.release(client)
        self.connected.discard(client)

    def drop(self, client: Client) -> None:
        """Close the connection of a client, and free its place at once."""
        self.release(client)
        client.stream.close()

    def drop_longest_idle(self) -> None:
        """Close the client that has been idle for the longest, if there is one."""
        if self.idle:
            self.drop(next(iter(self.idle)))

    def drop_slowest_reader(self) -> None:
        """Close the client that has not read its response for the longest."""
        self.drop(next(iter(self._unread)))

    def seconds_to_room(self) -> float:
        """Return 0 if there is room for one more client, else the seconds to wait. May close another client."""
        if len(self.idle) + len(self.busy) < self._limit:
            return 0.0
        states, grace = (self.idle, _IDLE_GRACE) if self.idle else (self.busy, _BUSY_GRACE)
        client, since = next(iter(states.items()))
        wait = since + grace - asyncio.get_running_loop().time()
        if wait > 0:
            return wait
        self.drop(client)
        return 0.0
