"""Who asked how often: the kernel's counters with the words of the project put to them.

The kernel counts by process; here a process gets its tree, and what a process counted is carried over into the totals
when it is gone. Nothing is counted here, so nothing can be counted twice or lost: each number lives either in a kernel
map or in the totals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import islice
from typing import TypeVar

from dnsprobe.kernel import abi
from dnsprobe.kernel.probe import CountKey, PendingKey, Probe, ProcessKey, ProgramKey
from dnsprobe.model import DECIDE, DOT, NO_RULE, OTHER, UNKNOWN, Ancestry, Count, Identity, Process, Query, Rule, Series
from dnsprobe.names.qtype import QTYPES, qtype_name
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.series import Totals
from dnsprobe.process.container_names import ContainerNames
from dnsprobe.process.procfs import ProcFS

#: A run of the BPF program takes microseconds. What no run can find any more since this long does not change any more.
_SETTLED_SECONDS = 2.0
#: Names that user space decided are forgotten when their map is half full.
_NAMES_FILL = 0.5

#: What connections count by whose queries cannot be read, whatever the rules are.
_ENCRYPTED = Rule(abi.ENCRYPTED, "", "")

#: Entries that are worked on at once: ancestry and facts of so many processes are in memory meanwhile.
_BATCH = 256

_Item = TypeVar("_Item")


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    left = iter(items)
    while batch := list(islice(left, _BATCH)):
        yield batch


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found out about a process when it was first seen."""

    process: str
    tree: str
    unit: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class _Cached:
    execs: int
    identity: Identity


class Ledger:
    """Turns the probe's events into queries and its counters into series.

    ``clock`` gives seconds that never go back; ``tree`` is ``current`` or ``lineage``: what trees are made of.
    """

    def __init__(
        self,
        probe: Probe,
        rules: RuleSet,
        totals: Totals,
        procfs: ProcFS,
        container_names: ContainerNames,
        names_size: int,
        clock: Callable[[], float] = time.monotonic,
        tree: str = "current",
    ) -> None:
        self._probe, self._totals, self._procfs, self._clock = probe, totals, procfs, clock
        self._container_names = container_names
        self._names_size = names_size
        self._by_lineage = tree == "lineage"
        self.rules = rules
        self._rules_by_id: dict[int, Rule] = {abi.ENCRYPTED: _ENCRYPTED}
        self._rule_sets: dict[int, RuleSet] = {}
        self._retired: dict[int, float] = {}
        self._known: dict[ProcessKey, _Known] = {}
        self._identities: dict[ProcessKey, _Cached] = {}
        self._decided: dict[int, float] = {}
        self._names_full = 0
        self._idle: set[ProcessKey] = set()
        self._ended: set[ProcessKey] = set()
        self._unclaimed: set[tuple[int, int, int]] = set()
        self._put_in_force(rules)

    # Rules

    def _put_in_force(self, rules: RuleSet) -> None:
        self._probe.set_rules(rules.trie())
        self.rules = rules
        self._rules_by_id.update(rules.by_id)
        self._rule_sets[self._probe.generation] = rules

    @property
    def ids_in_use(self) -> frozenset[int]:
        """Ids of rules whose counts may still be in the kernel: a new rule must not get one of them."""
        return frozenset(self._rules_by_id)

    def replace_rules(self, rules: RuleSet) -> None:
        """Put other rules in force: one that stays (same id) goes on counting, one that goes keeps what it counted."""
        now = self._clock()
        gone = self.rules.by_id.keys() - rules.by_id.keys()
        self._put_in_force(rules)
        for rule in gone:
            self._retired[rule] = now
        self._decide([(name_hash, name) for name_hash, _verdict, _generation, name in self._probe.names()])

    # Events

    def queries(self, events: Sequence[abi.Event]) -> Iterator[tuple[Query, Identity]]:
        """Yield the queries of events, each with what is known of its process; none for an event that no rule wants."""
        self._decide([(event.name_hash, event.name) for event in events if event.kind == abi.Kind.UNDECIDED])
        wanted = [(event, rule) for event in events if (rule := self._rule_of(event)) is not None]
        facts = self._facts_of_askers(event.chain for event, _ in wanted)
        for event, rule in wanted:
            yield self._query(event, rule, facts)

    def _rule_of(self, event: abi.Event) -> Rule | None:
        if event.kind == abi.Kind.UNDECIDED:
            return self._rule_sets.get(event.generation, self.rules).match(event.name)
        return self._rules_by_id.get(event.rule)

    def _query(
        self, event: abi.Event, rule: Rule, facts: Mapping[ProgramKey, abi.Facts | None]
    ) -> tuple[Query, Identity]:
        ancestry = self._ancestry(event.chain)
        identity = self._identify(ancestry.asker, event.chain.execs, facts)
        self._remember(ancestry, identity)
        identity = replace(
            identity,
            # That of this query: a process changes its user id and stays the same process.
            user=self._procfs.user(event.uid),
            # Of a container that has just begun, they may be known later than its first query.
            container=self._container_names.container(identity),
        )
        query = Query(
            time_ns=event.time_ns,
            rule=rule,
            qname=event.name,
            qtype=event.qtype,
            transport=abi.TRANSPORTS[event.transport],
            server=ip_address(event.server),
            port=event.port,
            uid=event.uid,
            gid=event.gid,
            net_ns=event.net_ns,
            ancestry=ancestry,
            repeats=event.repeats,
        )
        return query, identity

    def _facts_of_askers(self, chains: Iterable[abi.Chain]) -> dict[ProgramKey, abi.Facts | None]:
        """Return the kernel's facts of the askers whose program is not known yet."""
        current: dict[ProcessKey, int] = {}
        wanted: set[ProgramKey] = set()
        for asker, execs in ((chain.processes[0], chain.execs) for chain in chains):
            key = (asker.start_ns, asker.tgid)
            cached = self._identities.get(key)
            if current.setdefault(key, cached.execs if cached else -1) != execs:
                wanted.add((*key, execs))
                current[key] = execs
        return dict(self._probe.facts_of(wanted))

    def _ancestry(self, chain: abi.Chain) -> Ancestry:
        if self._probe.lineage is None:
            return Ancestry(chain.processes, chain.complete)
        return Ancestry(chain.processes, chain.complete, chain.lineage, chain.lineage_complete, self._by_lineage)

    def _ancestry_now(self, process: Process) -> Ancestry | None:
        ancestry = self._procfs.ancestry(process)
        if ancestry is None or self._probe.lineage is None:
            return ancestry
        # /proc does not tell who started it.
        return replace(ancestry, lineage=ancestry.chain[:1], lineage_complete=False, by_lineage=self._by_lineage)

    def _decide(self, names: Iterable[tuple[int, bytes]]) -> None:
        """Decide names, each with its hash, by the rules in force."""
        rules = ((name_hash, name, self.rules.match(name)) for name_hash, name in names)
        there = self._probe.decide((name_hash, name, rule.id if rule else NO_RULE) for name_hash, name, rule in rules)
        self._decided.update(dict.fromkeys(there, self._clock()))

    def _identify(self, process: Process, execs: int, facts: Mapping[ProgramKey, abi.Facts | None]) -> Identity:
        key = (process.start_ns, process.tgid)
        cached = self._identities.get(key)
        # execve(2) keeps pid and start time, but makes another program of the process.
        if cached is None or cached.execs != execs:
            cached = _Cached(execs, self._procfs.identify(process, facts.get((*key, execs))))
            self._identities[key] = cached
        return cached.identity

    def _remember(self, ancestry: Ancestry, identity: Identity) -> _Known:
        asker = ancestry.asker
        key = (asker.start_ns, asker.tgid)
        if key not in self._known:
            # The first sight stays: a series must not lose what was counted under it.
            tree = ancestry.tree
            self._known[key] = _Known(
                tree.rpartition(";")[2],
                tree,
                identity.unit or "",
                identity.container.short_id if identity.container else "",
            )
        return self._known[key]

    def _learn(self, keys: Iterable[ProcessKey]) -> None:
        """Find out about processes whose event was lost or is still on its way."""
        # The kernel keeps their ancestry and facts beside the counters.
        chains = dict(self._probe.chains({key for key in keys if key not in self._known}))
        facts = dict(self._probe.facts_of((*key, chain.execs if chain else 0) for key, chain in chains.items()))
        for key, chain in chains.items():
            start_ns, tgid = key
            ancestry = self._ancestry(chain) if chain else self._ancestry_now(Process(tgid, start_ns, b""))
            if ancestry is None:
                self._known[key] = _Known(UNKNOWN, UNKNOWN)
            else:
                self._remember(ancestry, self._identify(ancestry.asker, chain.execs if chain else 0, facts))

    # Counts

    def _count(self, key: ProcessKey, rule: Rule, qtype: int, transport: int, queries: int) -> Count:
        known = self._known[key]
        return Count(
            rule,
            self._type_label(qtype) if rule is not _ENCRYPTED else "",
            abi.TRANSPORTS[transport],
            known.process,
            known.tree,
            known.unit,
            known.container,
            queries,
        )

    @staticmethod
    def _type_label(qtype: int) -> str:
        # Anyone can ask for 65,536 types: those without a name must not use up the series of others.
        return qtype_name(qtype) if qtype in QTYPES else OTHER

    def collect(self) -> Mapping[Series, int]:
        """Return all series with their totals as of now."""
        return self._totals.collect(self._counts())

    def _counts(self) -> Iterator[Count]:
        yield from self._live_counts()
        yield from self._pending_counts()
        yield from self._overflow_counts()

    def _live_counts(self) -> Iterator[Count]:
        for entries in _batches(self._probe.counts()):
            self._learn(key[:2] for key, _ in entries)
            for (start_ns, tgid, rule, qtype, transport), queries in entries:
                yield self._count((start_ns, tgid), self._rules_by_id[rule], qtype, transport, queries)

    def _pending_counts(self) -> Iterator[Count]:
        pending = list(self._probe.pending())
        if not pending:
            return
        verdicts = self._verdicts(key for key, _ in pending)
        for entries in _batches((key, rule, n) for key, n in pending if (rule := verdicts.get((key[1], key[3])))):
            self._learn((key[0], key[2]) for key, _, _ in entries)
            for (start_ns, _, tgid, _, qtype, transport), rule, queries in entries:
                yield self._count((start_ns, tgid), rule, qtype, transport, queries)

    def _verdicts(self, keys: Iterable[PendingKey]) -> dict[tuple[int, int], Rule | None]:
        """Return what names come to, by hash and generation of the rules; decide those that are still open."""
        wanted = {(name_hash, generation) for _, name_hash, _, generation, _, _ in keys}
        names = {name_hash: (verdict, generation, name) for name_hash, verdict, generation, name in self._probe.names()}
        undecided = {
            name_hash: name
            for name_hash, (verdict, generation, name) in names.items()
            if verdict == DECIDE or generation != self._probe.generation
        }
        self._decide((name_hash, undecided[name_hash]) for name_hash in {key[0] for key in wanted} & undecided.keys())
        return {
            (name_hash, generation): self._rule_sets.get(generation, self.rules).match(names[name_hash][2])
            for name_hash, generation in wanted
            if name_hash in names
        }

    def _overflow_counts(self) -> Iterator[Count]:
        if not self._probe.statistics()[abi.Statistic.UNATTRIBUTED_COUNTERS_FULL]:
            return
        for rule, queries in self._probe.overflow(self._rules_by_id):
            if queries:
                yield self._overflowed(self._rules_by_id[rule], queries)

    @staticmethod
    def _overflowed(rule: Rule, queries: int) -> Count:
        if rule is _ENCRYPTED:
            return Count(rule, "", DOT, OTHER, OTHER, "", "", queries)
        return Count(rule, OTHER, OTHER, OTHER, OTHER, "", "", queries)

    def sweep(self) -> None:
        """Carry over what changes no more: counts of processes that are gone, of names decided, of rules retired."""
        settled = self._clock() - _SETTLED_SECONDS
        alive: dict[ProcessKey, bool] = {}
        present: set[ProcessKey] = set()
        finished: set[ProcessKey] = set()
        final: list[CountKey] = []
        for entry, _ in self._probe.counts():
            start_ns, tgid, rule, _qtype, _transport = entry
            key = (start_ns, tgid)
            if key not in alive:
                # Asked before the counter is read for the last time: a process that is gone sends nothing more.
                alive[key] = self._procfs.alive(Process(tgid, start_ns, b""))
            if alive[key] and not self._is_settled(rule, settled):
                present.add(key)
            else:
                final.append(entry)
                finished.add(key)
        for entries in _batches(final):
            self._learn(key[:2] for key in entries)
            for (start_ns, tgid, rule, qtype, transport), queries in self._probe.forget_counts(entries):
                self._totals.fold(self._count((start_ns, tgid), self._rules_by_id[rule], qtype, transport, queries))
        open_names = self._sweep_pending(settled, present, finished)
        self._sweep_names(settled, open_names)
        self._sweep_rules(settled)
        self._sweep_processes(present, finished)
        # As long as the kernel keeps a tree, a count may come that has to go to the same series.
        kept = present | self._idle | self._ended
        for key in self._known.keys() - kept:
            del self._known[key]
        for key in self._identities.keys() - kept:
            del self._identities[key]
        self._sweep_facts()

    def _sweep_processes(self, present: set[ProcessKey], finished: set[ProcessKey]) -> None:
        """Forget the trees of processes without counts, but not while one can still count, even during this sweep."""
        self._probe.forget_processes(self._ended - present - finished)
        idle = (self._idle | finished) - present
        self._idle = {key for key in idle if self._procfs.alive(Process(key[1], key[0], b""))}
        self._ended = idle - self._idle

    def _sweep_facts(self) -> None:
        """Forget what processes were that are gone, or that run another program now."""
        current = {(*key, cached.execs) for key, cached in self._identities.items()}
        unclaimed = set(self._probe.facts_kept()) - current
        # Its event may still be on its way, but not from one sweep to the next.
        self._probe.forget_facts(unclaimed & self._unclaimed)
        self._unclaimed = unclaimed

    def _is_settled(self, rule: int, settled: float) -> bool:
        """True for a rule that went so long ago that nothing counts by it any more."""
        return self._retired.get(rule, settled) < settled

    def _sweep_pending(self, settled: float, present: set[ProcessKey], finished: set[ProcessKey]) -> set[int]:
        """Carry over counts of names decided a while ago; return the hashes of names that still have counts."""
        pending = [key for key, _ in self._probe.pending()]
        open_names: set[int] = set()
        final: list[PendingKey] = []
        verdicts = self._verdicts(pending) if pending else {}
        for entry in pending:
            start_ns, name_hash, tgid, _, _, _ = entry
            since = self._decided.get(name_hash)
            if since is None or since > settled:
                present.add((start_ns, tgid))
                open_names.add(name_hash)
            else:
                final.append(entry)
                finished.add((start_ns, tgid))
        for entries in _batches(final):
            self._learn((key[0], key[2]) for key in entries if verdicts.get((key[1], key[3])))
            for (start_ns, name_hash, tgid, generation, qtype, transport), queries in self._probe.forget_pending(
                entries
            ):
                rule = verdicts.get((name_hash, generation))
                if rule is not None:
                    self._totals.fold(self._count((start_ns, tgid), rule, qtype, transport, queries))
        return open_names

    def _sweep_names(self, settled: float, open_names: set[int]) -> None:
        # A name that found no room for its count stays undecided: no event and no counter tells of it.
        names_full = self._probe.statistics()[abi.Statistic.UNDECIDED_NAMES_FULL]
        if names_full != self._names_full:
            self._names_full = names_full
            names = [(name_hash, name) for name_hash, _verdict, _generation, name in self._probe.names()]
            self._decide((name_hash, name) for name_hash, name in names if name_hash not in self._decided)
        if len(self._decided) < self._names_size * _NAMES_FILL:
            return
        unused = [
            name_hash for name_hash, since in self._decided.items() if since <= settled and name_hash not in open_names
        ]
        self._probe.forget_names(unused)
        for name_hash in unused:
            del self._decided[name_hash]

    def _sweep_rules(self, settled: float) -> None:
        for generation in [generation for generation in self._rule_sets if generation != self._probe.generation]:
            if not any(entry[3] == generation for entry, _ in self._probe.pending()):
                del self._rule_sets[generation]
        retired = [rule for rule in self._retired if self._is_settled(rule, settled)]
        for rule, queries in self._probe.take_overflow(retired).items():
            self._totals.fold(self._overflowed(self._rules_by_id[rule], queries))
        for rule in retired:
            del self._retired[rule]
            del self._rules_by_id[rule]
