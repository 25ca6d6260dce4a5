"""What became of queries: results that the kernel side counts, and queries that are given up after the timeout.

Each counted query has exactly one result, or still waits. The kernel side counts results beside the queries of a
counter. Here they are added up by rule and transport, in the same collection as the queries, so that the sums of a
scrape are exact.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from dnsprobe.kernel import abi
from dnsprobe.kernel.abi import Result, Unmatched
from dnsprobe.kernel.maps import Counted
from dnsprobe.kernel.probe import Probe
from dnsprobe.pipeline.steps import Steps

#: Notes that are given up in one step.
_AT_ONCE = 1024

_NO_RESULTS = (0,) * len(Result)

#: A key of one of the two maps of counters. Those of pending counters are longer.
_CounterKey = tuple[int, ...]


class Group(NamedTuple):
    """Queries whose results are added up: the name of their rule, and their transport."""

    domain: str
    transport: str


@dataclass(slots=True)
class Sums:
    """Queries and their results, by :class:`abi.Result`."""

    queries: int = 0
    results: list[int] = field(default_factory=lambda: [*_NO_RESULTS])

    @property
    def waiting(self) -> int:
        """How many queries have no result yet."""
        return self.queries - sum(self.results)

    def add(self, queries: int, results: Iterable[int]) -> None:
        """Add queries and results."""
        self.queries += queries
        self.results = [before + more for before, more in zip(self.results, results, strict=True)]


class Answers:
    """Adds up results, and gives up queries that nobody answers for ``timeout_ns``.

    ``clock`` returns nanoseconds of CLOCK_MONOTONIC. :meth:`seen` is called with each counter that is read; then
    :meth:`add_live` or :meth:`add_final` with the group that it belongs to.
    """

    def __init__(self, probe: Probe, timeout_ns: int, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._maps, self._timeout_ns, self._clock = probe.maps, timeout_ns, clock
        self._given_up: Counter[_CounterKey] = Counter()
        self._seen: dict[_CounterKey, Counted] = {}
        self._final: dict[Group, Sums] = {}
        self._live: dict[Group, Sums] = {}
        #: The sums of the last collection.
        self.collected: Mapping[Group, Sums] = {}

    def giving_up(self) -> Steps[None]:
        """Take the notes of queries whose time is over. Nothing may be collected in between."""
        before = self._clock() - self._timeout_ns
        expired = []
        for at, (key, note) in enumerate(self._maps.notes.items()):
            if note.time_ns < before:
                expired.append((key, note))
            if at % _AT_ONCE == 0:
                yield None
        left = iter(expired)
        while batch := dict(islice(left, _AT_ONCE)):
            shares = [(key, note.share) for key, note in batch.items()]
            # One that a BPF program takes first has its result from there.
            taken = list(self._maps.notes.take_own(shares))
            self._given_up.update(batch[key].counter for key in taken)
            self._maps.put_given_up(taken)
            yield None

    def begin_collection(self) -> None:
        """Forget the live counters of the last collection."""
        self._live = {}

    def seen(self, key: _CounterKey, counted: Counted) -> int:
        """Note what was read of a counter, and return its queries."""
        self._seen[key] = counted
        return counted.queries

    def is_waiting(self, key: _CounterKey) -> bool:
        """Return whether queries of a counter waited when it was read last. Such a counter is not final."""
        return self._seen[key].waiting > self._given_up[key]

    def add_live(self, key: _CounterKey, group: Group) -> None:
        """Add a counter that stays in the kernel."""
        counted = self._seen.pop(key)
        self._live.setdefault(group, Sums()).add(counted.queries, self._results(key, counted))

    def add_final(self, key: _CounterKey, group: Group) -> None:
        """Add a counter that was taken from the kernel."""
        counted = self._seen.pop(key)
        results = self._results(key, counted)
        # A query that was sent in the last moment: its note has no counter any more.
        results[Result.UNTRACKED] += counted.queries - sum(results)
        del self._given_up[key]
        self._final.setdefault(group, Sums()).add(counted.queries, results)

    def forget(self, key: _CounterKey) -> None:
        """Forget a counter that was taken from the kernel, and that no rule counts."""
        self._seen.pop(key, None)
        del self._given_up[key]

    def add_untracked(self, group: Group, queries: int, *, final: bool) -> None:
        """Add queries that were counted without their process, so without notes."""
        sums = (self._final if final else self._live).setdefault(group, Sums())
        results = [*_NO_RESULTS]
        results[Result.UNTRACKED] = queries
        sums.add(queries, results)

    def end_collection(self) -> None:
        """Make what was added the result of this collection."""
        collected: dict[Group, Sums] = {}
        for part in (self._final, self._live):
            for group, sums in part.items():
                collected.setdefault(group, Sums()).add(sums.queries, sums.results)
        self.collected = collected
        self._seen = {}

    def by_name(self) -> dict[tuple[str, str], dict[str, int]]:
        """Return what became of the queries of each group in the last collection, by the name of the result."""
        return {
            group: {
                **{result.name: times for result, times in zip(Result, sums.results, strict=True)},
                "WAITING": sums.waiting,
            }
            for group, sums in self.collected.items()
        }

    def unmatched(self) -> dict[str, int]:
        """Return how many answers fit no note, by reason."""
        return {Unmatched(index).name.lower(): times for index, times in self._maps.unmatched.read(abi.Unmatched)}

    def _results(self, key: _CounterKey, counted: Counted) -> list[int]:
        results = [*counted.results]
        results[Result.TIMEOUT] += self._given_up[key]
        return results


def results_of(answers: Answers | None) -> dict[tuple[str, str], dict[str, int]] | None:
    """Return what became of the queries of the last collection, None if answers are not tracked."""
    return None if answers is None else answers.by_name()


def unmatched_of(answers: Answers | None) -> dict[str, int]:
    """Return how many answers fit no query up to now, by reason; none if answers are not tracked."""
    return {} if answers is None else answers.unmatched()
