"""How long answers took: the kernel's histograms by process, added up by domain, transport and unit.

The kernel has a histogram for each process, rule and transport. As a counter, it is read at each collection, and taken
once nothing can add to it any more: when its counters have been taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from dnsprobe.kernel import abi
from dnsprobe.kernel.maps import CountKey, Latencies, LatencyKey, PendingKey, ProcessKey
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import DECIDE, OTHER, Count, Rule, Series
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.steps import Steps
from dnsprobe.pipeline.tally import results_of

#: Histograms that are handled at once.
_BATCH = 64
#: Histograms that are handled in one step.
_AT_ONCE = 256

#: In place of a rule, of histograms that found no room in the kernel.
_ANY_RULE = Rule(0, OTHER, "")


class Sample(NamedTuple):
    """A sample of a histogram, in the order in which they are shown.

    ``at`` is the number of the bucket, :data:`COUNT_AT` or :data:`SUM_AT`. ``bound`` is the upper bound of the bucket
    in seconds, infinite for the other two.
    """

    domain: str
    transport: str
    unit: str
    at: int
    bound: float


COUNT_AT, SUM_AT = abi.LATENCY_BUCKETS, abi.LATENCY_BUCKETS + 1


def lines(bounds_ns: Sequence[int]) -> int:
    """Return the number of lines of a histogram in a scrape: its buckets, the number of answers, and the sum."""
    return len(bounds_ns) + 3


def key_of_counter(key: CountKey) -> LatencyKey:
    """Return the key of the histogram of a counter."""
    start_ns, tgid, rule, _qtype, transport, _server = key
    return start_ns, 0, tgid, rule, 0, transport & ~abi.TO_LOCAL


def key_of_pending(key: PendingKey) -> LatencyKey:
    """Return the key of the histogram of a pending counter."""
    start_ns, name_hash, tgid, generation, _qtype, transport, _server = key
    return start_ns, name_hash, tgid, DECIDE, generation, transport & ~abi.TO_LOCAL


class Histograms:
    """Adds up latencies. ``bounds_ns`` are the upper bounds of the buckets, ascending, fewer than LATENCY_BUCKETS.

    ``totals`` have room for the histograms: each counts as a series. Above the limit, the unit is ``(other)``.
    """

    def __init__(
        self,
        probe: Probe,
        rules: RulesInForce,
        decisions: NameDecisions,
        processes: KnownProcesses,
        totals: Totals,
        bounds_ns: Sequence[int],
    ) -> None:
        self._maps, self._rules, self._decisions, self._processes = probe.maps, rules, decisions, processes
        self._totals = totals
        self._bounds = [*(bound / 1e9 for bound in bounds_ns), math.inf]
        self._maps.put_latency_bounds(bounds_ns)
        #: The samples of the last collection.
        self.samples: Mapping[Sample, float] = {}

    def collecting(self) -> Steps[None]:
        """Read all histograms, and add them up. No sweep may run in between."""
        yield from self._totals.collecting(self._live())
        samples: dict[Sample, float] = {}
        for at, (series, counted) in enumerate(self._totals.tallies.items()):
            samples.update(self._samples(series, results_of(counted)))
            if at % _AT_ONCE == 0:
                yield None
        self.samples = samples

    def _samples(self, series: Series, numbers: list[int]) -> Iterator[tuple[Sample, float]]:
        """Yield the samples of a histogram: its buckets, each with those below, its number, and its sum."""
        unit = OTHER if series.process == OTHER else series.unit
        group = (series.domain, series.transport, unit)
        sum_ns, *buckets = numbers
        buckets += [0] * (len(self._bounds) - len(buckets))
        below = 0
        for at, bound in enumerate(self._bounds):
            below += buckets[at]
            yield Sample(*group, at, bound), below
        yield Sample(*group, COUNT_AT, math.inf), below
        yield Sample(*group, SUM_AT, math.inf), sum_ns / 1e9

    def _live(self) -> Iterator[list[Count]]:
        entries = self._maps.latencies.items()
        while some := list(islice(entries, _BATCH)):
            yield self._counts(some)
        # Those that found no room in the kernel.
        yield [
            _count(_ANY_RULE, transport, OTHER, "", 0, latencies)
            for transport, latencies in self._maps.latency_rest.read(range(len(abi.TRANSPORTS)))
        ]

    def _counts(self, entries: Collection[tuple[LatencyKey, Latencies]]) -> list[Count]:
        """Return histograms as counts, without those of names that are not decided, or that no rule matches."""
        self._processes.learn(_process_of(key) for key, _ in entries)
        counts = []
        for key, latencies in entries:
            rule = self._rule(key)
            if rule is not None:
                labels = self._processes.labels(_process_of(key))
                counts.append(_count(rule, key[-1], "", labels.unit, labels.share, latencies))
        return counts

    def _rule(self, key: LatencyKey) -> Rule | None:
        _start_ns, name_hash, _tgid, rule, generation, _transport = key
        if rule != DECIDE:
            return self._rules.by_id.get(rule)
        name = (name_hash, generation)
        return self._decisions.rule(name) if self._decisions.is_known(name) else None

    def keys(self) -> list[LatencyKey]:
        """Return the keys of all histograms."""
        return list(self._maps.latencies.keys())

    def taking(self, final: Iterable[LatencyKey]) -> Steps[None]:
        """Move histograms to the totals: those whose counters have been taken, so that nothing adds to them any more.

        Call it while the rules and processes of the counters are known. Nothing may be collected in between.
        """
        left = iter(final)
        while keys := list(islice(left, _BATCH)):
            for count in self._counts(list(self._maps.latencies.take_many(keys))):
                self._totals.add_final(count)
            yield None


def _process_of(key: LatencyKey) -> ProcessKey:
    start_ns, _name_hash, tgid, _rule, _generation, _transport = key
    return start_ns, tgid


def _count(rule: Rule, transport: int, process: str, unit: str, share: int, latencies: Latencies) -> Count:
    """Return a histogram as a count: the number of answers, and as its results the sum and the buckets."""
    numbers = (latencies.sum_ns, *latencies.buckets)
    answers = sum(latencies.buckets)
    where = (process, process, unit, "")
    return Count(rule, OTHER, abi.TRANSPORTS[transport], OTHER, *where, answers, share, results=numbers)
