"""What became of queries: results that the kernel side counts, and queries that are given up after the timeout.

Each counted query has exactly one result, or still waits. The kernel side counts results beside the queries of a
counter. Here they get their timeouts, and are added up by rule and transport, in the same collection as the queries, so
that the sums of a scrape are exact. With all labels, :class:`dnsprobe.pipeline.series.Totals` adds them up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

from dnsprobe.kernel import abi
from dnsprobe.kernel.abi import Noted, Result, Unmatched
from dnsprobe.kernel.maps import Counted, Note, SocketEvent
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import OTHER, Series
from dnsprobe.pipeline.latencies import Histograms, Sample
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.steps import Steps
from dnsprobe.pipeline.tally import results_of

#: Notes that are given up in one step.
_AT_ONCE = 1024

_NO_RESULTS = (0,) * len(Result)

#: The labels of results: those of answers, and why there was none.
RCODES = {
    result: OTHER if result is Result.OTHER_RCODE else result.name for result in Result if result < Result.TIMEOUT
}
REASONS = {result: result.name.lower() for result in Result if Result.TIMEOUT <= result < Result.UNTRACKED}
#: Transports whose queries may get an answer that dnsprobe recognizes.
_TRANSPORTS = ("udp", "tcp")

#: A key of one of the two maps of counters. Those of pending counters are longer.
_CounterKey = tuple[int, ...]
_Key = TypeVar("_Key", bound=_CounterKey)


class _Counters(Protocol[_Key]):
    """A map of counters: see :class:`dnsprobe.kernel.typed_map.TypedMap`."""

    def items(self) -> Iterator[tuple[_Key, Counted]]: ...

    def get_many(self, keys: Iterable[_Key]) -> Iterator[tuple[_Key, Counted | None]]: ...

    def take_many(self, keys: Iterable[_Key]) -> Iterator[tuple[_Key, Counted]]: ...


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


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the queries of a collection.

    ``responses`` and ``unanswered`` have the queries with an answer and those without, by their series, and by rcode or
    reason. Numbers that are 0 are left out. The same of series that have left is in ``responses_expired`` and
    ``unanswered_expired``, by domain. ``waiting`` and ``untracked`` are by group, those with 0 too. ``unmatched`` is
    how many answers fit no query, by reason. ``latencies`` are the samples of the histograms.
    """

    responses: Mapping[tuple[Series, str], int] = field(default_factory=dict)
    unanswered: Mapping[tuple[Series, str], int] = field(default_factory=dict)
    responses_expired: Mapping[tuple[str, str], int] = field(default_factory=dict)
    unanswered_expired: Mapping[tuple[str, str], int] = field(default_factory=dict)
    waiting: Mapping[Group, int] = field(default_factory=dict)
    untracked: Mapping[Group, int] = field(default_factory=dict)
    unmatched: Mapping[str, int] = field(default_factory=dict)
    latencies: Mapping[Sample, float] = field(default_factory=dict)


class Answers:
    """Adds up results, and gives up queries that nobody answers for ``timeout_ns``.

    ``clock`` returns nanoseconds of CLOCK_MONOTONIC. :meth:`read` and :meth:`take` note each counter that they yield.
    After that, the caller adds it to its group with :meth:`add_live` or :meth:`add_final`.
    """

    def __init__(
        self,
        probe: Probe,
        timeout_ns: int,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        histograms: Histograms | None = None,
    ) -> None:
        #: How long answers took; None if that is not added up.
        self.histograms = histograms
        self._maps, self._timeout_ns, self._clock = probe.maps, timeout_ns, clock
        self._given_up: dict[_CounterKey, Counter[Result]] = {}
        self._seen: dict[_CounterKey, Counted] = {}
        self._final: dict[Group, Sums] = {}
        self._live: dict[Group, Sums] = {}
        #: The sums of the last collection.
        self.collected: Mapping[Group, Sums] = {}
        self._outcomes = Outcomes()
        self._ended: list[abi.Ended] = []

    def giving_up(self) -> Steps[None]:
        """Take the notes of queries whose time is over. Nothing may be collected in between."""
        before = self._clock() - self._timeout_ns
        expired = []
        canaries = []
        for at, (key, note) in enumerate(self._maps.notes.items()):
            if note.time_ns < before:
                if note.noted is Noted.CANARY:
                    canaries.append(key)
                else:
                    expired.append((key, note))
            if at % _AT_ONCE == 0:
                yield None
        self._maps.canary_notes.delete_many(canaries)
        left = iter(expired)
        while batch := dict(islice(left, _AT_ONCE)):
            sockets = dict(self._maps.sockets.get_many({note.sock for note in batch.values()}))
            # One that a BPF program takes first has its result from there. If the same query was sent again since, the
            # note of that one is taken: it may be of another counter. Its answer may come, but fits no note any more.
            taken = dict(self._maps.notes.take_own(batch))
            for note in taken.values():
                result = _end_of(note, sockets[note.sock]) if note.time_ns < before else Result.UNTRACKED
                self._given_up.setdefault(note.counter, Counter())[result] += 1
                if note.query_id:
                    self._ended.append(abi.Ended(self._clock(), note.query_id, note.share, result))
            self._maps.put_given_up(taken)
            yield None

    def take_ended(self) -> list[abi.Ended]:
        """Return the results of queries that had an event and were given up since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def begin_collection(self) -> None:
        """Forget the live counters of the last collection."""
        self._live = {}

    def seen(self, key: _CounterKey, counted: Counted) -> int:
        """Note what was read of a counter, and return its queries."""
        self._seen[key] = counted
        return counted.queries

    def is_waiting(self, key: _CounterKey, *, has_results: bool = True) -> bool:
        """Return whether queries of a counter that was just read wait. Such a counter is not final.

        ``has_results`` is whether it counts queries. A counter of 0 waits, too: a BPF program is about to fill it in.
        """
        counted = self._seen.pop(key)
        given_up = self._given_up.get(key, Counter()).total()
        return not counted.queries or (has_results and counted.waiting > given_up)

    def add_live(self, key: _CounterKey, group: Group) -> tuple[int, ...]:
        """Add a counter that stays in the kernel, and return its results."""
        counted = self._seen.pop(key)
        results = self._results(key, counted)
        self._live.setdefault(group, Sums()).add(counted.queries, results)
        return tuple(results)

    def add_final(self, key: _CounterKey, group: Group) -> tuple[int, ...]:
        """Add a counter that was taken from the kernel, and return its results."""
        counted = self._seen.pop(key)
        results = self._results(key, counted)
        # A query that was sent in the last moment: its note has no counter any more.
        results[Result.UNTRACKED] += max(counted.queries - sum(results), 0)
        self._given_up.pop(key, None)
        self._final.setdefault(group, Sums()).add(counted.queries, results)
        return tuple(results)

    def forget(self, key: _CounterKey) -> None:
        """Forget a counter that was taken from the kernel, and that no rule counts."""
        self._seen.pop(key, None)
        self._given_up.pop(key, None)

    def add_untracked(self, group: Group, queries: int, *, final: bool) -> tuple[int, ...]:
        """Add queries that were counted without their process, so without notes, and return their results."""
        sums = (self._final if final else self._live).setdefault(group, Sums())
        results = [*_NO_RESULTS]
        results[Result.UNTRACKED] = queries
        sums.add(queries, results)
        return tuple(results)

    def ending_collection(self, totals: Totals, domains: Iterable[str]) -> Steps[None]:
        """Make what was added the result of this collection. ``totals`` have the same counts, with all labels.

        ``domains`` are the names of the rules in force: their metrics without labels of processes exist from the start.
        """
        collected: dict[Group, Sums] = {}
        for part in (self._final, self._live):
            for group, sums in part.items():
                collected.setdefault(group, Sums()).add(sums.queries, sums.results)
        self.collected = collected
        self._seen = {}
        groups = {Group(domain, transport): Sums() for domain in domains for transport in _TRANSPORTS} | collected
        responses: dict[tuple[Series, str], int] = {}
        unanswered: dict[tuple[Series, str], int] = {}
        for at, (series, counted) in enumerate(totals.tallies.items()):
            if series.of_queries:
                responses.update(((series, name), times) for name, times in _named(RCODES, counted))
                unanswered.update(((series, name), times) for name, times in _named(REASONS, counted))
            if at % _AT_ONCE == 0:
                yield None
        expired = totals.expired_tallies.items()
        self._outcomes = Outcomes(
            responses,
            unanswered,
            {(domain, name): times for domain, counted in expired for name, times in _named(RCODES, counted)},
            {(domain, name): times for domain, counted in expired for name, times in _named(REASONS, counted)},
            {group: sums.waiting for group, sums in groups.items()},
            {group: sums.results[Result.UNTRACKED] for group, sums in groups.items()},
        )

    @property
    def outcomes(self) -> Outcomes:
        """What the metrics show: the results of the last collection, and answers up to now that fit no note."""
        latencies = self.histograms.samples if self.histograms else {}
        return replace(self._outcomes, unmatched=self.unmatched(), latencies=latencies)

    def read(self, counters: _Counters[_Key]) -> Iterator[tuple[_Key, int]]:
        """Note what is read of counters, and yield their keys with their queries."""
        for key, counted in counters.items():
            yield key, self.seen(key, _with_all_queries(counters, key, counted))

    def take(self, counters: _Counters[_Key], keys: Iterable[_Key]) -> Iterator[tuple[_Key, int]]:
        """Take counters from the kernel, and yield them as :meth:`read` does."""
        for key, counted in counters.take_many(keys):
            yield key, self.seen(key, _with_all_queries(counters, key, counted))

    def unmatched(self) -> dict[str, int]:
        """Return how many answers fit no note, by reason."""
        return {Unmatched(index).name.lower(): times for index, times in self._maps.unmatched.read(abi.Unmatched)}

    def _results(self, key: _CounterKey, counted: Counted) -> list[int]:
        results = [*counted.results]
        for result, times in self._given_up.get(key, Counter()).items():
            results[result] += times
        return results


def _with_all_queries(counters: _Counters[_Key], key: _Key, counted: Counted) -> Counted:
    """Return what was read of a counter with at least as many queries as results.

    The kernel copies a counter while BPF programs add to it. A processor with weak ordering may copy a result, and
    then the number of queries without the one that the result is of. What is read later has that one.
    """
    if counted.waiting >= 0:
        return counted
    again = dict(counters.get_many([key]))[key]
    return counted._replace(queries=max(again.queries if again else 0, sum(counted.results)))


def _end_of(note: Note, events: Sequence[SocketEvent] | None) -> Result:
    """Return why a query that was given up had no answer: by what happened first to its socket."""
    if events is None:
        # The entry of the socket made room for others. Over TCP, the answer may have been missed.
        return Result.UNTRACKED if note.is_stream else Result.TIMEOUT
    return next((result for at_ns, result in events if at_ns > note.time_ns), Result.TIMEOUT)


def _named(names: Mapping[Result, str], counted: int) -> Iterator[tuple[str, int]]:
    """Yield the results of a tally that have a name, and are not 0."""
    for result, times in zip(Result, results_of(counted), strict=False):
        if times and result in names:
            yield names[result], times


def outcomes_of(answers: Answers | None) -> Outcomes | None:
    """Return what the metrics show of answers, None if they are not tracked."""
    return None if answers is None else answers.outcomes
