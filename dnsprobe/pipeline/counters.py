"""The kernel's counters: collected for a scrape, and swept into the totals when they are final.

The kernel counts by process. Here a count gets the labels of its process. Nothing is counted here, so nothing can be
counted twice or lost: each number is either in a map of the kernel or in the totals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from dnsprobe.kernel import abi
from dnsprobe.kernel.maps import CountKey, LatencyKey, PendingKey, ProcessKey
from dnsprobe.kernel.other_messages import unread_reason
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import DOT, LOCAL, OTHER, REMOTE, Count, Process, Rule, Series
from dnsprobe.names.qtype import QTYPES, qtype_name
from dnsprobe.pipeline.answers import Answers, Group
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.latencies import key_of_counter, key_of_pending
from dnsprobe.pipeline.rules import ENCRYPTED, UNREAD, NameDecisions, RulesInForce
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.servers import ServerLabels
from dnsprobe.pipeline.steps import Steps, run

#: A run of a BPF program takes microseconds. After this time, no run can still use a rule or verdict that was replaced.
_GRACE_SECONDS = 2.0
#: Counters that are handled at once. It limits how many ancestries and facts are in memory at the same time.
_BATCH = 64

#: The kernel counts a query for this process if it is not certain who asks: bpf/query/handler.h.
_NOBODY: ProcessKey = (0, 0)

_Item = TypeVar("_Item")


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    left = iter(items)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _process_of(key: PendingKey) -> ProcessKey:
    start_ns, _name_hash, tgid, _generation, _qtype, _transport, _server = key
    return start_ns, tgid


def _name_of(key: PendingKey) -> tuple[int, int]:
    _start_ns, name_hash, _tgid, generation, _qtype, _transport, _server = key
    return name_hash, generation


@dataclass(slots=True)
class _Sweep:
    """What one sweep finds. Counts are final if nothing has been able to add to them since ``before`` (seconds).

    ``generation`` is that of the rules when the sweep began.
    """

    before: float
    generation: int
    #: Processes whose counters stay in the kernel.
    counting: set[ProcessKey] = field(default_factory=set)
    #: Processes with counters that were taken from the kernel, because they are final.
    counted: set[ProcessKey] = field(default_factory=set)
    #: Rules with queries that wait. They are kept, even if they are not in force any more.
    waiting: set[int] = field(default_factory=set)
    #: Servers of counters that stay in the kernel.
    servers: set[int] = field(default_factory=set)
    #: Histograms that nothing adds to any more, when all counters have been looked at.
    latencies: set[LatencyKey] = field(default_factory=set)


class Counters:
    """Collects the kernel's counters as series, and moves final counts to the totals.

    ``alive`` returns whether a process can still send; ``clock`` returns seconds and never goes back. ``answers`` adds
    up what became of the queries, None if answers are not tracked.
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
        *,
        answers: Answers | None = None,
    ) -> None:
        self._servers = ServerLabels(probe.maps.servers) if probe.maps.tells_servers else None
        self._answers, self._histograms = answers, answers.histograms if answers else None
        self._probe, self._rules, self._decisions, self._processes = probe, rules, decisions, processes
        self._totals, self._alive, self._clock = totals, alive, clock

    def collect(self) -> Mapping[Series, int]:
        """Return all series with their totals up to now, without those of names that are not decided yet."""
        return run(self.collecting())

    def collecting(self) -> Steps[Mapping[Series, int]]:
        """Do what :meth:`collect` does in steps. No sweep may run in between."""
        yield from self.asking()
        if self._answers is None:
            return (yield from self._totals.collecting(self._counts()))
        self._answers.begin_collection()
        collected = yield from self._totals.collecting(self._counts())
        domains = [rule.name for rule in self._rules.current.rules]
        yield from self._answers.ending_collection(self._totals, domains)
        if self._histograms is not None:
            yield from self._histograms.collecting()
        return collected

    def _read_counters(self) -> Iterator[tuple[CountKey, int]]:
        maps, answers = self._probe.maps, self._answers
        return maps.counters.items() if answers is None else answers.read(maps.counted)

    def _read_pending(self) -> Iterator[tuple[PendingKey, int]]:
        maps, answers = self._probe.maps, self._answers
        return maps.pending.items() if answers is None else answers.read(maps.pending_counted)

    def _take_counters(self, keys: Iterable[CountKey]) -> Iterator[tuple[CountKey, int]]:
        maps, answers = self._probe.maps, self._answers
        return maps.counters.take_many(keys) if answers is None else answers.take(maps.counted, keys)

    def _take_pending(self, keys: Iterable[PendingKey]) -> Iterator[tuple[PendingKey, int]]:
        maps, answers = self._probe.maps, self._answers
        return maps.pending.take_many(keys) if answers is None else answers.take(maps.pending_counted, keys)

    def _results(self, key: CountKey | PendingKey, rule: Rule, *, final: bool) -> tuple[int, ...]:
        """Add what became of the queries of a counter, and return it; nothing if it counts something else."""
        if self._answers is None or not rule.name:
            return ()
        add = self._answers.add_final if final else self._answers.add_live
        *_, transport, _server = key
        return add(key, Group(rule.name, abi.TRANSPORTS[transport & ~abi.TO_LOCAL]))

    def _is_waiting(self, key: CountKey | PendingKey, rule: Rule | None = None) -> bool:
        """Return whether queries of a counter that was just read wait. A rule without a name counts no queries."""
        has_results = rule is None or rule.name != ""
        return self._answers is not None and self._answers.is_waiting(key, has_results=has_results)

    def asking(self) -> Steps[None]:
        """Ask for the names of pending counts that nobody has asked for: their event was lost, or is not read yet."""
        pending = []
        for entries in _batches(self._probe.maps.pending.items()):
            pending += [key for key, _ in entries]
            yield None
        yield from self._decisions.asking(pending)

    def _counts(self) -> Iterator[Iterable[Count]]:
        yield from self._decided_counts()
        yield from self._pending_counts()
        yield self._overflow_counts()

    def _decided_counts(self) -> Iterator[Iterable[Count]]:
        for entries in _batches(self._read_counters()):
            self._processes.learn(key[:2] for key, _ in entries)
            yield [self._decided_count(key, queries, final=False) for key, queries in entries]

    def _decided_count(self, key: CountKey, queries: int, *, final: bool) -> Count:
        start_ns, tgid, rule_id, *asked = key
        rule = self._rules.by_id[rule_id]
        return self._count((start_ns, tgid), rule, asked, queries, self._results(key, rule, final=final))

    def _pending_counts(self) -> Iterator[Iterable[Count]]:
        for entries in _batches(self._read_pending()):
            known = [entry for entry in entries if self._decisions.is_known(_name_of(entry[0]))]
            yield self._matched_counts(known, final=False)

    def _matched_counts(self, pending: Iterable[tuple[PendingKey, int]], *, final: bool) -> list[Count]:
        """Return the counts of those names, which are all known, that a rule matches."""
        matched, others = [], []
        for key, queries in pending:
            rule = self._decisions.rule(_name_of(key))
            if rule:
                matched.append((key, rule, queries))
            else:
                others.append(key)
        if final and self._answers is not None:
            for key in others:
                self._answers.forget(key)
        self._processes.learn(_process_of(key) for key, _, _ in matched)
        counts = []
        for key, rule, queries in matched:
            results = self._results(key, rule, final=final)
            counts.append(self._count(_process_of(key), rule, key[-3:], queries, results))
        return counts

    def _overflow_counts(self) -> Iterator[Count]:
        if not self._probe.statistics()[abi.Statistic.UNATTRIBUTED_COUNTERS_FULL]:
            return
        for rule, queries in self._probe.maps.overflow.read(self._rules.by_id):
            yield self._overflow_of(rule, queries, final=False)

    def _overflow_of(self, rule: int, queries: int, *, final: bool) -> Count:
        count = _overflow_count(self._rules.by_id[rule], queries)
        if self._answers is None or not count.rule.name or not queries:
            return count
        group = Group(count.rule.name, count.transport)
        return replace(count, results=self._answers.add_untracked(group, queries, final=final))

    def _count(
        self, key: ProcessKey, rule: Rule, asked: Sequence[int], queries: int, results: tuple[int, ...]
    ) -> Count:
        """Return a count with its labels. ``asked`` has the last three parts of its key: type, transport, server."""
        qtype, transport, server = asked
        name = abi.TRANSPORTS[transport & ~abi.TO_LOCAL]
        labels = self._processes.labels(key)
        return Count(
            rule,
            _qtype_label(rule, qtype),
            name,
            LOCAL if transport & abi.TO_LOCAL else REMOTE,
            labels.process,
            labels.tree,
            labels.unit,
            labels.container,
            queries,
            labels.share,
            labels.user,
            results,
            self._servers.label(server, name) if self._servers else "",
        )

    def sweep(self) -> None:
        """Move final counts to the totals: those of processes that ended, of decided names, of retired rules."""
        run(self.sweeping())

    def sweeping(self) -> Steps[None]:
        """Do what :meth:`sweep` does in steps. Nothing may be collected in between."""
        sweep = _Sweep(self._clock() - _GRACE_SECONDS, self._probe.generation)
        self._processes.begin_sweep()
        if self._histograms is not None:
            # Before the counters are looked at: each of these has a counter now, unless that was taken before.
            sweep.latencies.update(self._histograms.keys())
        yield from self._taking_final_counts(sweep)
        pending_names = yield from self._taking_final_pending(sweep)
        if self._servers is not None:
            self._servers.sweep(sweep.servers)
            yield None
        if self._histograms is not None:
            yield from self._histograms.taking(sweep.latencies)
        yield from self._decisions.sweeping(sweep.before, pending_names)
        yield from self._forgetting_rules(sweep)
        yield from self._processes.sweeping(sweep.counting, sweep.counted)

    def _taking_final_counts(self, sweep: _Sweep) -> Steps[None]:
        alive: dict[ProcessKey, bool] = {}
        final: list[CountKey] = []
        for all_entries in _batches(self._read_counters()):
            for entry, _ in all_entries:
                start_ns, tgid, rule, _qtype, _transport, server = entry
                key = (start_ns, tgid)
                if key not in alive:
                    # Asked before the counter is read for the last time: a process that ended sends nothing more.
                    alive[key] = key == _NOBODY or self._alive(Process(tgid, start_ns, b""))
                is_waiting = self._is_waiting(entry, self._rules.by_id[rule])
                if is_waiting:
                    sweep.waiting.add(rule)
                if is_waiting or (alive[key] and not self._rules.is_retired(rule, sweep.before)):
                    sweep.counting.add(key)
                    sweep.servers.add(server)
                    sweep.latencies.discard(key_of_counter(entry))
                else:
                    final.append(entry)
                    sweep.counted.add(key)
            yield None
        for entries in _batches(final):
            self._processes.learn(key[:2] for key in entries)
            for entry, queries in self._take_counters(entries):
                self._totals.add_final(self._decided_count(entry, queries, final=True))
            yield None

    def _taking_final_pending(self, sweep: _Sweep) -> Steps[set[int]]:
        """Move pending counts of names decided a while ago; return the hashes of the other pending names."""
        yield from self.asking()
        pending_names: set[int] = set()
        final: list[PendingKey] = []
        for entries in _batches(self._read_pending()):
            for key, _ in entries:
                name_hash, _generation = _name_of(key)
                is_known = not self._is_waiting(key) and self._decisions.is_known(_name_of(key))
                # Its rule is kept until the count is taken, because all of this is one sweep.
                if self._decisions.is_decided(name_hash, sweep.before) and is_known:
                    final.append(key)
                    sweep.counted.add(_process_of(key))
                else:
                    sweep.counting.add(_process_of(key))
                    sweep.servers.add(key[-1])
                    sweep.latencies.discard(key_of_pending(key))
                    pending_names.add(name_hash)
            yield None
        for keys in _batches(final):
            self._processes.learn(_process_of(key) for key in keys if self._decisions.rule(_name_of(key)))
            for count in self._matched_counts(self._take_pending(keys), final=True):
                self._totals.add_final(count)
            yield None
        return pending_names

    def _forgetting_rules(self, sweep: _Sweep) -> Steps[None]:
        generations: set[int] = set()
        for entries in _batches(self._probe.maps.pending.items()):
            generations |= {_name_of(key)[1] for key, _ in entries}
            yield None
        # Rules that came into force during the sweep may have pending counts that it has not seen.
        self._rules.forget_generations(generations, sweep.generation)
        retired = [rule for rule in self._rules.retired(sweep.before) if rule not in sweep.waiting]
        for rule, queries in self._probe.maps.take_overflow(retired).items():
            self._totals.add_final(self._overflow_of(rule, queries, final=True))
        self._rules.forget(retired)


def _qtype_label(rule: Rule, qtype: int) -> str:
    if rule is ENCRYPTED:
        return ""
    if rule is UNREAD:
        return unread_reason(qtype)
    # Anyone can ask for 65,536 types: those without a name must not use up the series of others.
    return qtype_name(qtype) if qtype in QTYPES else OTHER


def _overflow_count(rule: Rule, queries: int) -> Count:
    """Return the count of queries that the kernel counted without their process."""
    if rule is ENCRYPTED:
        return Count(rule, "", DOT, OTHER, OTHER, OTHER, "", "", queries)
    return Count(rule, OTHER, OTHER, OTHER, OTHER, OTHER, "", "", queries)
