"""Calls that may take long, for the event loop: it waits for them a bounded part of the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

_T = TypeVar("_T")

#: How long one call may take, and how many calls may take longer than that at the same time.
_SECONDS = 0.1
_MOST_WAITING = 4
#: A call that takes longer than _SLOW seconds uses up time of a stock, which holds at most _STOCK seconds and gets back
#: a _PART of the time that passes. While it is empty, no call begins. So those who can make calls slow, each a bit
#: faster than _SECONDS, take that part of the time of the event loop. Calls that are slow now and then, because the
#: host is busy, are made.
_SLOW = 0.005
_STOCK, _PART = 2.0, 0.1


class Patience(Generic[_T]):
    """Makes calls in threads of their own, and gives up those that do not return in time.

    A call that is given up goes on, but nobody waits for it. While there are _MOST_WAITING of them, and while slow
    calls have used up their time, no call is made. ``clock`` returns seconds and never goes back.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._waiting: list[threading.Thread] = []
        self._stock, self._filled = _STOCK, clock()

    def call(self, work: Callable[[], _T]) -> _T | None:
        """Return what ``work`` returns; None if it raises OSError, is not made, or does not return in time."""
        self._waiting = [thread for thread in self._waiting if thread.is_alive()]
        began = self._clock()
        self._stock = min(self._stock + (began - self._filled) * _PART, _STOCK)
        self._filled = began
        if len(self._waiting) >= _MOST_WAITING or self._stock <= 0:
            return None
        found: list[_T] = []

        def run() -> None:
            with suppress(OSError):
                found.append(work())

        # A daemon thread does not keep the program from ending.
        thread = threading.Thread(target=run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the limit on threads
            return None
        thread.join(_SECONDS)
        took = self._clock() - began
        if took > _SLOW:
            self._stock -= took
        if thread.is_alive():
            self._waiting.append(thread)
            return None
        return found[0] if found else None
