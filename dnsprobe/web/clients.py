"""The clients of the HTTP server, and the limits that keep one of them from harming the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from tornado.http1connection import HTTP1ServerConnection

Client = HTTP1ServerConnection

#: Seconds for which an idle or a busy client is not closed to make room for a new one.
_IDLE_GRACE = 0.25
_BUSY_GRACE = 2.0
#: The same for clients of a user or network that has more than half of all places, and more than _NEVER_GREEDY.
_NEVER_GREEDY = 16
_GREEDY_IDLE_GRACE = 0.05
_GREEDY_BUSY_GRACE = 0.25
#: Seconds until a client is closed that does not read its response.
_RESPONSE_TIMEOUT = 30.0


@dataclass(slots=True)
class _Unread:
    body: bytes
    since: float
    deadline: asyncio.TimerHandle


class Clients:
    """The state of each client: idle (without a request), busy (with one), or closing.

    At most ``limit`` are idle or busy. A new client takes the place of a client of the user or network that has the
    most: the one that has been idle for the longest, or if all of them are busy, the one with the oldest request.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: All open connections, also those that are closing.
        self.connected: set[Client] = set()
        #: The time of the loop since when a client is in this state, the earliest first.
        self.idle: dict[Client, float] = {}
        self.busy: dict[Client, float] = {}
        #: How many of these each user or network has.
        self._held: Counter[str] = Counter()
        #: The bytes of the responses that were sent and not read. Clients that got the same bytes share them.
        self.unread_bytes = 0
        self._unread: dict[Client, _Unread] = {}
        #: How many clients have not read a response, by its id().
        self._readers: Counter[int] = Counter()

    def set_idle(self, client: Client) -> None:
        """Note that a client is new, or that it has read its last response."""
        self.connected.add(client)
        self.release(client)
        if not client.stream.closed():
            self._enter(self.idle, client)

    def set_busy(self, client: Client) -> bool:
        """Note that a request of a client was read; return False if the client has left."""
        self._leave(client)
        if client.stream.closed():
            return False
        self._enter(self.busy, client)
        return True

    def _enter(self, state: dict[Client, float], client: Client) -> None:
        state[client] = asyncio.get_running_loop().time()
        self._held[str(client.context)] += 1

    def _leave(self, client: Client) -> None:
        if self.idle.pop(client, None) is None and self.busy.pop(client, None) is None:
            return
        name = str(client.context)
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]

    def set_unread(self, client: Client, body: bytes) -> None:
        """Note that a response with this body is on its way to a client. The client has to read it in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(_RESPONSE_TIMEOUT, self.drop, client)
        self._unread[client] = _Unread(body, loop.time(), deadline)
        if not self._readers[id(body)]:
            self.unread_bytes += len(body)
        self._readers[id(body)] += 1

    def release(self, client: Client) -> None:
        """Free the place of a client and the bytes of its response."""
        self._leave(client)
        unread = self._unread.pop(client, None)
        if unread is not None:
            unread.deadline.cancel()
            self._readers[id(unread.body)] -= 1
            if not self._readers[id(unread.body)]:
                del self._readers[id(unread.body)]
                self.unread_bytes -= len(unread.body)

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

    def drop_slow_readers(self, limit: int, grace: float) -> float:
        """Close the clients that have not read their responses for the longest, until fewer bytes than ``limit`` wait.

        Clients that got their response in the last ``grace`` seconds are not closed. Returns the seconds until the next
        one can be closed, 0 if fewer bytes wait.
        """
        while self._unread and self.unread_bytes >= limit:
            client, unread = next(iter(self._unread.items()))
            wait = unread.since + grace - asyncio.get_running_loop().time()
            if wait > 0:
                return wait
            self.drop(client)
        return 0.0

    def seconds_to_room(self) -> float:
        """Return 0 if there is room for one more client, else the seconds to wait. May close another client."""
        if len(self.idle) + len(self.busy) < self._limit:
            return 0.0
        ((name, held),) = self._held.most_common(1)
        greedy = held > max(self._limit / 2, _NEVER_GREEDY)
        states = ((self.idle, _IDLE_GRACE, _GREEDY_IDLE_GRACE), (self.busy, _BUSY_GRACE, _GREEDY_BUSY_GRACE))
        client, until = next(
            (client, since + (short if greedy else grace))
            for state, grace, short in states
            for client, since in state.items()
            if client.context == name
        )
        wait = until - asyncio.get_running_loop().time()
        if wait > 0:
            return wait
        self.drop(client)
        return 0.0
