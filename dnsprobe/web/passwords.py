"""Verifies passwords by bcrypt, which is slow by intent, without holding up whoever has the right one.

One thread verifies, one password at a time, at the lowest priority; all else happens in the loop. What was verified is
remembered. What is new waits its turn: one from each network by turns, and of each network only a few.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from queue import SimpleQueue

#: Of each network, and of all together: so many different passwords wait at most.
_WAITING_OF_ONE = 8
_WAITING = 64
_REMEMBERED = 256
#: More bytes than this have never counted (crypt_blowfish.c); newer versions of bcrypt refuse them.
_MAX_PASSWORD = 72


class Verdict(Enum):
    """What became of a name with its password."""

    GOOD = "good"
    BAD = "bad"
    #: Too many others wait to be verified.
    BUSY = "busy"


_Done = Callable[[Verdict], object]


@dataclass(slots=True)
class _Wait:
    password: bytes
    hashed: bytes
    known: bool
    #: Whoever asks, with whether the answer is still of use.
    askers: list[tuple[_Done, Callable[[], bool]]] = field(default_factory=list)


def network(address: str) -> str:
    """Return what is one client in the queue: an IPv4 address, or the /64 of an IPv6 address, which one host has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class Verifier:
    """Verifies names and passwords against hashes of bcrypt, for callers in one loop."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        # Apart from each other, so that wrong ones do not push out right ones.
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: OrderedDict[str, deque[bytes]] = OrderedDict()
        self._waits: dict[bytes, _Wait] = {}
        self._at_work: bytes | None = None
        self._work: SimpleQueue[tuple[asyncio.AbstractEventLoop, bytes, bytes, bytes] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def verify(
        self,
        users: Mapping[bytes, bytes],
        name: bytes,
        password: bytes,
        address: str,
        done: _Done,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Call ``done`` with what became of a name and password, at once or later.

        ``address`` is the client's. One that is not ``wanted`` any more when its turn comes is not verified.
        """
        hashed = users.get(name)
        known = hashed is not None
        if hashed is None:
            # An unknown name takes the time of some known one, always the same.
            hashes = sorted(users.values())
            hashed = hashes[int.from_bytes(self._digest(name)) % len(hashes)]
        key = self._digest(name, hashed, password, b"known" if known else b"")
        if known and key in self._good:
            self._good.move_to_end(key)
            done(Verdict.GOOD)
        elif key in self._bad or b"\0" in password:
            done(Verdict.BAD)
        elif key in self._waits:
            wait = self._waits[key]
            # Who has left may come again and again, and leave.
            wait.askers = [asker for asker in wait.askers if asker[1]()]
            wait.askers.append((done, wanted))
        elif self._queue(network(address), key):
            self._waits[key] = _Wait(password[:_MAX_PASSWORD], hashed, known, [(done, wanted)])
            self._next()
        else:
            done(Verdict.BUSY)

    def close(self) -> None:
        """Verify no more; who waits is not called."""
        self._work.put(None)
        self._waiting.clear()
        self._waits.clear()

    def _digest(self, *parts: bytes) -> bytes:
        # With a secret: the time that a look-up takes tells nothing of what is in there, nor does the memory.
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._secret, framed, hashlib.sha256)

    def _queue(self, client: str, key: bytes) -> bool:
        """Take a place in the queue, that of a network with more of them if need be; False if there is none."""
        mine = self._waiting.get(client, deque())
        if len(mine) >= _WAITING_OF_ONE:
            return False
        if sum(map(len, self._waiting.values())) >= _WAITING:
            network_of, longest = max(self._waiting.items(), key=lambda item: len(item[1]))
            if len(longest) <= len(mine) + 1:
                if mine:
                    return False
                # All have one waiting. Whoever that is, none can keep the others out.
                network_of, longest = secrets.choice(list(self._waiting.items()))
            self._answer(longest.pop(), Verdict.BUSY)
            if not longest:
                del self._waiting[network_of]
        mine.append(key)
        self._waiting[client] = mine
        return True

    def _next(self) -> None:
        while self._at_work is None and self._waiting:
            client, keys = self._waiting.popitem(last=False)
            key = keys.popleft()
            if keys:
                self._waiting[client] = keys  # as the last one
            wait = self._waits[key]
            if not any(wanted() for _, wanted in wait.askers):
                del self._waits[key]
                continue
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="passwords", daemon=True)
                self._thread.start()
            self._at_work = key
            self._work.put((asyncio.get_running_loop(), key, wait.password, wait.hashed))

    def _finish(self, key: bytes, good: bool) -> None:
        self._at_work = None
        wait = self._waits.get(key)
        if wait is not None:
            good = good and wait.known
            remembered = self._good if good else self._bad
            remembered[key] = None
            if len(remembered) > _REMEMBERED:
                remembered.popitem(last=False)
            self._answer(key, Verdict.GOOD if good else Verdict.BAD)
        self._next()

    def _answer(self, key: bytes, verdict: Verdict) -> None:
        for done, _ in self._waits.pop(key).askers:
            done(verdict)

    def _run(self) -> None:
        import bcrypt  # noqa: PLC0415 - only who has users needs it

        with suppress(OSError):
            # Linux has a priority for each thread (setpriority(2)): the loop goes first.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while (item := self._work.get()) is not None:
            loop, key, password, hashed = item
            try:
                good = bcrypt.checkpw(password, hashed)
            except ValueError:
                good = False
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._finish, key, good)
