"""Entries that wait for the result of their query, and results that come after the entry of their query.

The kernel side hands over an event for each new query and, later, what became of it, with the same ``query_id``. An
entry waits a moment for that. If nothing comes, it is written without it, and the result has an entry of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from dnsprobe.kernel.abi import Ended, Result
from dnsprobe.model import Identity, Outcome, Query
from dnsprobe.names.answer import read_records
from dnsprobe.pipeline.answers import RCODES, REASONS
from dnsprobe.pipeline.budget import Budget

#: The most entries that wait, and the most queries that are known until their result comes.
_HELD, _KNOWN = 1024, 4096
#: Results that came before their query: a name that is not decided yet.
_EARLY = 1024
#: A query whose result was lost is forgotten so long after the timeout.
_PATIENCE_NS = 60 * 10**9


@dataclass(slots=True)
class _Entry:
    query: Query
    identity: Identity
    deadline_ns: int
    is_complete: bool = False
    is_written: bool = False


def outcome_of(ended: Ended, query: Query) -> Outcome:
    """Return what became of a query. Its latency is that which the process saw, with all repetitions of the query."""
    if ended.result not in RCODES:
        return Outcome(reason=REASONS[ended.result])
    answer = read_records(ended.message)
    latency_ns = max(ended.time_ns - query.time_ns, 0)
    return Outcome(RCODES[ended.result], "", latency_ns, answer.records, answer.whole)


class Results:
    """Adds results to queries. An entry waits at most ``wait_ns``; a query has a result after ``timeout_ns``.

    Entries leave in the order in which their queries came: :meth:`due` yields them. So an entry may wait for the one in
    front of it, but no longer than ``wait_ns``. ``held`` entries can wait; then the oldest one leaves at once. The
    results of ``known`` queries are waited for, and not all of one user. ``clock`` is CLOCK_MONOTONIC in nanoseconds.
    """

    def __init__(
        self,
        wait_ns: int,
        timeout_ns: int,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        held: int = _HELD,
        known: int = _KNOWN,
    ) -> None:
        self._wait_ns, self._forget_ns, self._clock = wait_ns, timeout_ns + _PATIENCE_NS, clock
        self._held = held
        self._queue: deque[_Entry] = deque()
        self._known: dict[int, _Entry] = {}
        self._places = Budget(known)
        self._early: dict[int, Ended] = {}
        self._ready: deque[tuple[Query, Identity]] = deque()
        #: How many results no entry has, because too many queries waited for theirs.
        self.lost = 0

    def add(self, queries: Iterable[tuple[Query, Identity]]) -> None:
        """Add queries in the order of their events."""
        deadline_ns = self._clock() + self._wait_ns
        for query, identity in queries:
            entry = _Entry(query, identity, deadline_ns, is_complete=not query.query_id)
            self._queue.append(entry)
            if not entry.is_complete:
                self._await(entry)
            if len(self._queue) > self._held:
                self._write_first()

    def _await(self, entry: _Entry) -> None:
        query = entry.query
        if early := self._early.pop(query.query_id, None):
            self._complete(entry, early)
        elif self._places.take(query.share, query.rule.priority):
            self._known[query.query_id] = entry
        else:
            entry.is_complete = True
            self.lost += 1

    def end(self, results: Iterable[Ended]) -> None:
        """Add results. One whose query is not known yet is kept for a while."""
        for ended in results:
            if entry := self._known.pop(ended.query_id, None):
                self._places.give_back(entry.query.share)
                self._complete(entry, ended)
                continue
            self._early[ended.query_id] = ended
            if len(self._early) > _EARLY:
                del self._early[next(iter(self._early))]

    def _complete(self, entry: _Entry, ended: Ended) -> None:
        entry.is_complete = True
        if ended.result is Result.UNTRACKED:
            return
        outcome, alert = outcome_of(ended, entry.query), entry.query.rule.alert
        query = replace(entry.query, outcome=outcome, alerts=alert.reasons(outcome) if alert else ())
        if entry.is_written:
            # Repeats are in the entry of the query, and must not be added up twice.
            self._ready.append((replace(query, is_late=True, repeats=0), entry.identity))
        else:
            entry.query = query

    def _write_first(self) -> None:
        entry = self._queue.popleft()
        entry.is_written = True
        self._ready.append((entry.query, entry.identity))

    def due(self, *, at_end: bool = False) -> Iterator[tuple[Query, Identity]]:
        """Yield what is to be written now; all of it ``at_end``."""
        now = self._clock()
        while self._queue and (at_end or self._queue[0].is_complete or self._queue[0].deadline_ns <= now):
            self._write_first()
        self._forget(now)
        while self._ready:
            yield self._ready.popleft()

    def _forget(self, now: int) -> None:
        while self._known and (entry := next(iter(self._known.values()))).query.time_ns < now - self._forget_ns:
            del self._known[entry.query.query_id]
            self._places.give_back(entry.query.share)

    @property
    def seconds_left(self) -> float | None:
        """How long until an entry is due; None if none waits."""
        if self._ready or (self._queue and self._queue[0].is_complete):
            return 0.0
        return max(self._queue[0].deadline_ns - self._clock(), 0) / 1e9 if self._queue else None
