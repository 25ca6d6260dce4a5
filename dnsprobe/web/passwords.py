"""Compares passwords with bcrypt hashes. bcrypt is slow on purpose, and clients may send any number of passwords.

One thread does the comparisons, one at a time and at the lowest priority; everything else runs in the event loop. A
result is remembered, so a password that was right once never waits again. A new password waits in a queue that serves
one user or network after the other, so a client that guesses passwords does not keep out the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from queue import SimpleQueue

from dnsprobe.web.peers import network

#: The most different passwords that wait: of one network, and in all.
_MAX_WAITING_PER_NETWORK = 8
_MAX_WAITING = 64
#: The number of right passwords that are remembered, and of wrong ones.
_MAX_REMEMBERED = 256
#: bcrypt uses no more bytes of a password (crypt_blowfish.c), and newer versions of the library refuse a longer one.
_MAX_PASSWORD = 72


class Verdict(Enum):
    """The result for a name with its password."""

    GOOD = "good"
    BAD = "bad"
    #: Too many other passwords wait.
    BUSY = "busy"


_Done = Callable[[Verdict], object]


class FairQueue:
    """Keys of clients, which take turns: each turn returns the oldest key of the next client."""

    def __init__(self, limit: int = _MAX_WAITING, limit_per_client: int = _MAX_WAITING_PER_NETWORK) -> None:
        self._limit = limit
        self._limit_per_client = limit_per_client
        self._keys: OrderedDict[str, deque[bytes]] = OrderedDict()

    @property
    def clients(self) -> int:
        """The number of clients with a key in the queue."""
        return len(self._keys)

    def add(self, client: str, key: bytes) -> bytes | None:
        """Add a key and return the key that has no place: None, a key that was removed, or ``key`` itself.

        In a full queue, the client with the most keys loses its newest one. If each client has one, a random client
        loses it: so no number of clients can keep out another one forever.
        """
        own = self._keys.get(client, deque())
        if len(own) >= self._limit_per_client:
            return key
        removed = None
        if sum(map(len, self._keys.values())) >= self._limit:
            loser, longest = max(self._keys.items(), key=lambda item: len(item[1]))
            if len(longest) <= len(own) + 1:
                if own:
                    return key
                loser, longest = secrets.choice(list(self._keys.items()))
            removed = longest.pop()
            if not longest:
                del self._keys[loser]
        own.append(key)
        self._keys[client] = own
        return removed

    def next(self) -> bytes | None:
        """Remove the oldest key of the client whose turn it is, and return it; None if the queue is empty."""
        if not self._keys:
            return None
        client, keys = self._keys.popitem(last=False)
        key = keys.popleft()
        if keys:
            self._keys[client] = keys  # back at the end of the line
        return key

    def clear(self) -> None:
        """Remove all keys."""
        self._keys.clear()


class _BcryptThread:
    """A thread at the lowest priority that compares passwords with hashes, one after the other.

    It is a daemon thread, so the program can end during a comparison. A ThreadPoolExecutor would make the exit wait
    for it, and at the lowest priority on a busy host that may take long.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[bytes, bytes, Callable[[bool], object]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def compare(self, password: bytes, hashed: bytes, done: Callable[[bool], object]) -> None:
        """Call ``done`` in the running loop with the result of a comparison."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="passwords", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        self._work.put((password, hashed, lambda equal: loop.call_soon_threadsafe(done, equal)))

    def close(self) -> None:
        """End the thread after the current comparison."""
        self._work.put(None)

    def _run(self) -> None:
        import bcrypt  # noqa: PLC0415 - memory: only a configuration with users needs it

        with suppress(OSError):
            # On Linux, each thread has its own priority (setpriority(2)), so the event loop runs first.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while (item := self._work.get()) is not None:
            password, hashed, report = item
            try:
                good = bcrypt.checkpw(password, hashed)
            except ValueError:
                good = False
            with suppress(RuntimeError):  # the loop has ended
                report(good)


class _Recent:
    """The keys that were used last, at most _MAX_REMEMBERED."""

    def __init__(self) -> None:
        self.keys: OrderedDict[bytes, None] = OrderedDict()

    def add(self, key: bytes) -> None:
        self.keys[key] = None
        if len(self.keys) > _MAX_REMEMBERED:
            self.keys.popitem(last=False)

    def use(self, key: bytes) -> bool:
        """Return whether a key is there, and keep it for longer."""
        if key not in self.keys:
            return False
        self.keys.move_to_end(key)
        return True


@dataclass(slots=True)
class _Check:
    """A password that waits or is being compared, and the requests that need the result.

    ``known`` is false if there is no user of this name. Each request has a function for the result, and one that
    returns whether its client is still there.
    """

    password: bytes
    hashed: bytes
    known: bool
    requests: list[tuple[_Done, Callable[[], bool]]] = field(default_factory=list)


class Verifier:
    """Verifies names and passwords of requests. All methods run in the event loop."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        # Two lists, so that wrong passwords do not displace right ones.
        self._good, self._bad = _Recent(), _Recent()
        self._checks: dict[bytes, _Check] = {}
        self._queue = FairQueue()
        self._thread = _BcryptThread()
        self._comparing = False

    def verify(
        self,
        users: Mapping[bytes, bytes],
        name: bytes,
        password: bytes,
        address: str,
        done: _Done,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Call ``done`` with the result for a name and password, at once or later.

        ``users`` maps names to bcrypt hashes. ``address`` is that of the client, or its name. If ``wanted`` returns
        False when the turn of the password comes, it is not compared.
        """
        hashed = users.get(name)
        known = hashed is not None
        if hashed is None:
            # Compare with the hash of another user, always the same one for a name. So the answer for an unknown name
            # takes as long as for a known one, and does not show which names exist.
            hashes = sorted(users.values())
            hashed = hashes[int.from_bytes(self._digest(name)) % len(hashes)]
        key = self._digest(name, hashed, password, b"known" if known else b"")
        if known and self._good.use(key):
            done(Verdict.GOOD)
        elif self._bad.use(key) or b"\0" in password:
            done(Verdict.BAD)
        elif key in self._checks:
            check = self._checks[key]
            # A client may connect and leave again and again: remove the requests of those that left.
            check.requests = [request for request in check.requests if request[1]()]
            check.requests.append((done, wanted))
        else:
            self._checks[key] = _Check(password[:_MAX_PASSWORD], hashed, known, [(done, wanted)])
            removed = self._queue.add(network(address), key)
            if removed is not None:
                self._answer(removed, Verdict.BUSY)
            self._compare_next()

    def close(self) -> None:
        """End the thread. Requests that wait get no result."""
        self._thread.close()
        self._queue.clear()
        self._checks.clear()

    def _digest(self, *parts: bytes) -> bytes:
        # The key is secret, so neither the memory nor the time of a look-up reveals a password.
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._secret, framed, hashlib.sha256)

    def _compare_next(self) -> None:
        while not self._comparing and (key := self._queue.next()) is not None:
            check = self._checks[key]
            if not any(wanted() for _, wanted in check.requests):
                del self._checks[key]
                continue
            self._comparing = True
            self._thread.compare(check.password, check.hashed, partial(self._finish, key))

    def _finish(self, key: bytes, equal: bool) -> None:
        self._comparing = False
        check = self._checks.get(key)
        if check is not None:  # None after close()
            good = equal and check.known
            (self._good if good else self._bad).add(key)
            self._answer(key, Verdict.GOOD if good else Verdict.BAD)
        self._compare_next()

    def _answer(self, key: bytes, verdict: Verdict) -> None:
        for done, _ in self._checks.pop(key).requests:
            done(verdict)
