"""The kernel's counters: collected for a scrape, and swept into the totals when they are final.

The kernel counts by process. Here a count gets the labels of its process. Nothing is counted here, so nothing can be
counted twice or lost: each number is either in a map of the kernel or in the totals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from dnsprobe.kernel import abi
from dnsprobe.kernel.maps import CountKey, PendingKey, ProcessKey
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import DOT, OTHER, Count, Process, Rule, Series
from dnsprobe.names.qtype import QTYPES, qtype_name
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.rules import ENCRYPTED, NameDecisions, RulesInForce
from dnsprobe.pipeline.series import Totals

#: A run of a BPF program takes microseconds. After this time, no run can still use a rule or verdict that was replaced.
_GRACE_SECONDS = 2.0
#: Counters that are handled at once. It limits how many ancestries and facts are in memory at the same time.
_BATCH = 256

#: The kernel counts a query for this process if it is not certain who asks: bpf/query/handler.h.
_NOBODY: ProcessKey = (0, 0)

_Item = TypeVar("_Item")


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    left = iter(items)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _process_of_pending(key: PendingKey) -> ProcessKey:
    start_ns, _name_hash, tgid, _generation, _qtype, _transport = key
    return start_ns, tgid


def _name_of_pending(key: PendingKey) -> tuple[int, int]:
    _start_ns, name_hash, _tgid, generation, _qtype, _transport = key
    return name_hash, generation


@dataclass(slots=True)
class _Sweep:
    """What one sweep finds. Counts are final if nothing has been able to add to them since ``before`` (seconds)."""

    before: float
    #: Processes whose counters stay in the kernel.
    counting: set[ProcessKey] = field(default_factory=set)
    #: Processes with counters that were taken from the kernel, because they are final.
    counted: set[ProcessKey] = field(default_factory=set)


class Counters:
    """Collects the kernel's counters as series, and moves final counts to the totals.

    ``alive`` returns whether a process can still send; ``clock`` returns seconds and never goes back.
    """

    def __init__(
        self,
        probe: Probe,
        rules: RulesInForce,
        decisions: NameDecisions,
        processes: KnownProcesses,
        totals: Totals,
        alive: Callable[[Process], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe, self._rules, self._decisions, self._processes = probe, rules, decisions, processes
        self._totals, self._alive, self._clock = totals, alive, clock

    def collect(self) -> Mapping[Series, int]:
        """Return all series with their totals up to now."""
        return self._totals.collect(self._counts())

    def _counts(self) -> Iterator[Count]:
        yield from self._decided_counts()
        yield from self._pending_counts()
        yield from self._overflow_counts()

    def _decided_counts(self) -> Iterator[Count]:
        for entries in _batches(self._probe.maps.counters.items()):
            self._processes.learn(key[:2] for key, _ in entries)
            for (start_ns, tgid, rule, qtype, transport), queries in entries:
                yield self._count((start_ns, tgid), self._rules.by_id[rule], qtype, transport, queries)

    def _pending_counts(self) -> Iterator[Count]:
        pending = list(self._probe.maps.pending.items())
        rules = self._decisions.rules_of(key for key, _ in pending)
        for entries in _batches(entry for entry in pending if rules.get(_name_of_pending(entry[0]))):
            self._processes.learn(_process_of_pending(key) for key, _ in entries)
            yield from self._matched_counts(entries, rules)

    def _matched_counts(
        self, pending: Iterable[tuple[PendingKey, int]], rules: Mapping[tuple[int, int], Rule | None]
    ) -> Iterator[Count]:
        for key, queries in pending:
            _start_ns, _name_hash, _tgid, _generation, qtype, transport = key
            rule = rules.get(_name_of_pending(key))
            if rule is not None:
                yield self._count(_process_of_pending(key), rule, qtype, transport, queries)

    def _overflow_counts(self) -> Iterator[Count]:
        if not self._probe.statistics()[abi.Statistic.UNATTRIBUTED_COUNTERS_FULL]:
            return
        for rule, queries in self._probe.maps.overflow.read(self._rules.by_id):
            yield self._overflow_count(self._rules.by_id[rule], queries)

    def _count(self, key: ProcessKey, rule: Rule, qtype: int, transport: int, queries: int) -> Count:
        labels = self._processes.labels(key)
        return Count(
            rule,
            self._qtype_label(qtype) if rule is not ENCRYPTED else "",
            abi.TRANSPORTS[transport],
            labels.process,
            labels.tree,
            labels.unit,
            labels.container,
            queries,
            labels.share,
        )

    @staticmethod
    def _qtype_label(qtype: int) -> str:
        # Anyone can ask for 65,536 types: those without a name must not use up the series of others.
        return qtype_name(qtype) if qtype in QTYPES else OTHER

    @staticmethod
    def _overflow_count(rule: Rule, queries: int) -> Count:
        """Return the count of queries that the kernel counted without their process."""
        if rule is ENCRYPTED:
            return Count(rule, "", DOT, OTHER, OTHER, "", "", queries)
        return Count(rule, OTHER, OTHER, OTHER, OTHER, "", "", queries)

    def sweep(self) -> None:
        """Move final counts to the totals: those of processes that ended, of decided names, of retired rules."""
        sweep = _Sweep(self._clock() - _GRACE_SECONDS)
        self._take_final_counts(sweep)
        pending_names = self._take_final_pending(sweep)
        self._decisions.sweep(sweep.before, pending_names)
        self._forget_rules(sweep.before)
        self._processes.sweep(sweep.counting, sweep.counted)

    def _take_final_counts(self, sweep: _Sweep) -> None:
        alive: dict[ProcessKey, bool] = {}
        final: list[CountKey] = []
        for entry, _ in self._probe.maps.counters.items():
            start_ns, tgid, rule, _qtype, _transport = entry
            key = (start_ns, tgid)
            if key not in alive:
                # Asked before the counter is read for the last time: a process that ended sends nothing more.
                alive[key] = key == _NOBODY or self._alive(Process(tgid, start_ns, b""))
            if alive[key] and not self._rules.is_retired(rule, sweep.before):
                sweep.counting.add(key)
            else:
                final.append(entry)
                sweep.counted.add(key)
        for entries in _batches(final):
            self._processes.learn(key[:2] for key in entries)
            for (start_ns, tgid, rule, qtype, transport), queries in self._probe.maps.counters.take_many(entries):
                self._totals.add_final(
                    self._count((start_ns, tgid), self._rules.by_id[rule], qtype, transport, queries)
                )

    def _take_final_pending(self, sweep: _Sweep) -> set[int]:
        """Move pending counts of names decided a while ago; return the hashes of the other pending names."""
        pending = [key for key, _ in self._probe.maps.pending.items()]
        pending_names: set[int] = set()
        final: list[PendingKey] = []
        rules = self._decisions.rules_of(pending)
        for key in pending:
            name_hash, _generation = _name_of_pending(key)
            if self._decisions.is_decided(name_hash, sweep.before):
                final.append(key)
                sweep.counted.add(_process_of_pending(key))
            else:
                sweep.counting.add(_process_of_pending(key))
                pending_names.add(name_hash)
        for keys in _batches(final):
            self._processes.learn(_process_of_pending(key) for key in keys if rules.get(_name_of_pending(key)))
            for count in self._matched_counts(self._probe.maps.pending.take_many(keys), rules):
                self._totals.add_final(count)
        return pending_names

    def _forget_rules(self, before: float) -> None:
        self._rules.forget_generations(
            {generation for (_, _, _, generation, _, _), _ in self._probe.maps.pending.items()}
        )
        retired = self._rules.retired(before)
        for rule, queries in self._probe.maps.take_overflow(retired).items():
            self._totals.add_final(self._overflow_count(self._rules.by_id[rule], queries))
        self._rules.forget(retired)
