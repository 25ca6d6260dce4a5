"""Who asked how often: the kernel's counters with the words of the project put to them.

The kernel counts by process; here a process gets its tree, and what a process counted is carried over into the totals
when it is gone. Nothing is counted here, so nothing can be counted twice or lost: each number lives either in a kernel
map or in the totals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from dnsprobe.kernel import abi
from dnsprobe.kernel.libbpf import undisturbed
from dnsprobe.kernel.probe import Probe
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

ProcessKey = tuple[int, int]


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
        for name_hash, _verdict, _generation, name in undisturbed.slices(list(self._probe.names())):
            self._decide(name_hash, name)

    # Events

    def query(self, event: abi.Event) -> tuple[Query, Identity] | None:
        """Return the query that an event tells of and what is known of its process; None if no rule asks for it."""
        if event.kind == abi.Kind.UNDECIDED:
            self._decide(event.name_hash, event.name)
            rules = self._rule_sets.get(event.generation, self.rules)
            rule = rules.match(event.name)
        else:
            rule = self._rules_by_id.get(event.rule)
        if rule is None:
            return None
        ancestry = self._ancestry(event.chain)
        identity = self._identify(ancestry.asker, event.chain.execs)
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

    def _decide(self, name_hash: int, name: bytes) -> None:
        rule = self.rules.match(name)
        if self._probe.decide(name_hash, name, rule.id if rule else NO_RULE):
            self._decided[name_hash] = self._clock()

    def _identify(self, process: Process, execs: int) -> Identity:
        key = (process.start_ns, process.tgid)
        cached = self._identities.get(key)
        # execve(2) keeps pid and start time, but makes another program of the process.
        if cached is None or cached.execs != execs:
            facts = self._probe.facts(*key, execs)
            cached = _Cached(execs, self._procfs.identify(process, facts))
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

    def _known_process(self, key: ProcessKey) -> _Known:
        if key in self._known:
            return self._known[key]
        # Its event was lost or is still on its way: the kernel kept the tree beside the counter.
        chain = self._probe.chain(*key)
        start_ns, tgid = key
        process = Process(tgid, start_ns, b"")
        ancestry = self._ancestry(chain) if chain else self._ancestry_now(process)
        if ancestry is None:
            self._known[key] = _Known(UNKNOWN, UNKNOWN)
            return self._known[key]
        return self._remember(ancestry, self._identify(ancestry.asker, chain.execs if chain else 0))

    # Counts

    def _count(self, key: ProcessKey, rule: Rule, qtype: int, transport: int, queries: int) -> Count:
        known = self._known_process(key)
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
        live = [
            self._count((start_ns, tgid), self._rules_by_id[rule], qtype, transport, queries)
            for (start_ns, tgid, rule, qtype, transport), queries in undisturbed.slices(self._probe.counts())
        ]
        live += self._pending_counts()
        live += self._overflow_counts()
        return self._totals.collect(live)

    def _pending_counts(self) -> Iterable[Count]:
        entries = list(self._probe.pending())
        if not entries:
            return
        verdicts = self._verdicts(entry for entry, _ in entries)
        for (start_ns, name_hash, tgid, generation, qtype, transport), queries in entries:
            rule = verdicts.get((name_hash, generation))
            if rule is not None:
                yield self._count((start_ns, tgid), rule, qtype, transport, queries)

    def _verdicts(self, keys: Iterable[tuple[int, int, int, int, int, int]]) -> dict[tuple[int, int], Rule | None]:
        """Return what names come to, by hash and generation of the rules; decide those that are still open."""
        wanted = {(name_hash, generation) for _, name_hash, _, generation, _, _ in keys}
        names = {name_hash: (verdict, generation, name) for name_hash, verdict, generation, name in self._probe.names()}
        verdicts: dict[tuple[int, int], Rule | None] = {}
        for name_hash, generation in wanted:
            if name_hash not in names:
                continue
            verdict, decided_for, name = names[name_hash]
            if verdict == DECIDE or decided_for != self._probe.generation:
                self._decide(name_hash, name)
            verdicts[name_hash, generation] = self._rule_sets.get(generation, self.rules).match(name)
        return verdicts

    def _overflow_counts(self) -> Iterable[Count]:
        if not self._probe.statistics()[abi.Statistic.UNATTRIBUTED_COUNTERS_FULL]:
            return
        for rule in self._rules_by_id.values():
            queries = self._probe.overflow(rule.id)
            if queries:
                yield self._overflowed(rule, queries)

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
        for entry, _ in undisturbed.slices(list(self._probe.counts())):
            start_ns, tgid, rule, qtype, transport = entry
            key = (start_ns, tgid)
            if key not in alive:
                # Asked before the counter is read for the last time: a process that is gone sends nothing more.
                alive[key] = self._procfs.alive(Process(tgid, start_ns, b""))
            if alive[key] and not self._is_settled(rule, settled):
                present.add(key)
                continue
            queries = self._probe.forget_count(entry)
            self._totals.fold(self._count(key, self._rules_by_id[rule], qtype, transport, queries))
            finished.add(key)
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
        for key in undisturbed.slices(self._ended - present - finished):
            self._probe.forget_process(*key)
        idle = (self._idle | finished) - present
        self._idle = {key for key in idle if self._procfs.alive(Process(key[1], key[0], b""))}
        self._ended = idle - self._idle

    def _sweep_facts(self) -> None:
        """Forget what processes were that are gone, or that run another program now."""
        current = {(*key, cached.execs) for key, cached in self._identities.items()}
        unclaimed = set(self._probe.facts_kept()) - current
        # Its event may still be on its way, but not from one sweep to the next.
        for entry in undisturbed.slices(unclaimed & self._unclaimed):
            self._probe.forget_facts(*entry)
        self._unclaimed = unclaimed

    def _is_settled(self, rule: int, settled: float) -> bool:
        """True for a rule that went so long ago that nothing counts by it any more."""
        return self._retired.get(rule, settled) < settled

    def _sweep_pending(self, settled: float, present: set[ProcessKey], finished: set[ProcessKey]) -> set[int]:
        """Carry over counts of names decided a while ago; return the hashes of names that still have counts."""
        entries = [entry for entry, _ in self._probe.pending()]
        open_names: set[int] = set()
        verdicts = self._verdicts(entries) if entries else {}
        for entry in undisturbed.slices(entries):
            start_ns, name_hash, tgid, generation, qtype, transport = entry
            since = self._decided.get(name_hash)
            if since is None or since > settled:
                present.add((start_ns, tgid))
                open_names.add(name_hash)
                continue
            queries = self._probe.forget_pending(entry)
            finished.add((start_ns, tgid))
            rule = verdicts.get((name_hash, generation))
            if rule is not None:
                self._totals.fold(self._count((start_ns, tgid), rule, qtype, transport, queries))
        return open_names

    def _sweep_names(self, settled: float, open_names: set[int]) -> None:
        # A name that found no room for its count stays undecided: no event and no counter tells of it.
        names_full = self._probe.statistics()[abi.Statistic.UNDECIDED_NAMES_FULL]
        if names_full != self._names_full:
            self._names_full = names_full
            for name_hash, _verdict, _generation, name in undisturbed.slices(list(self._probe.names())):
                if name_hash not in self._decided:
                    self._decide(name_hash, name)
        if len(self._decided) < self._names_size * _NAMES_FILL:
            return
        for name_hash, since in undisturbed.slices(list(self._decided.items())):
            if since <= settled and name_hash not in open_names:
                self._probe.forget_name(name_hash)
                del self._decided[name_hash]

    def _sweep_rules(self, settled: float) -> None:
        for generation in [generation for generation in self._rule_sets if generation != self._probe.generation]:
            if not any(entry[3] == generation for entry, _ in self._probe.pending()):
                del self._rule_sets[generation]
        for rule in list(self._retired):
            if not self._is_settled(rule, settled):
                continue
            if queries := self._probe.take_overflow(rule):
                self._totals.fold(self._overflowed(self._rules_by_id[rule], queries))
            del self._retired[rule]
            del self._rules_by_id[rule]
