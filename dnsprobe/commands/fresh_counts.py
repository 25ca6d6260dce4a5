"""Counts for the answers of the HTTP server, collected once for all clients that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from dnsprobe.model import Series


class FreshCounts:
    """The counts of the last collection. ``collect`` returns the counts up to now, and lets the loop work meanwhile."""

    def __init__(self, collect: Callable[[], Awaitable[Mapping[Series, int]]]) -> None:
        self._collect = collect
        self._counts: Mapping[Series, int] | BaseException = {}
        self._waiting: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def last(self) -> Mapping[Series, int]:
        """The counts of the last collection. Raises what it raised if it failed."""
        if isinstance(self._counts, BaseException):
            raise self._counts
        return self._counts

    def when_collected(self, call: Callable[[], None]) -> None:
        """Call ``call`` once counts are collected that include all queries up to now, or the collection fails."""
        self._waiting.append(call)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def collect(self) -> None:
        """Collect, and wait for it."""
        collected = asyncio.Event()
        self.when_collected(collected.set)
        await collected.wait()

    async def _run(self) -> None:
        # Whoever comes during a collection needs another one: this one may have passed by the newest queries already.
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                self._counts = await self._collect()
            except Exception as error:  # whoever needs the counts gets it
                self._counts = error
            for call in waiting:
                call()
        self._task = None
