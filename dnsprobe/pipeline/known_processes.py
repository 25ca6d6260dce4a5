"""The labels and the identity of each process that sent queries, kept as long as the kernel may count for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace

from dnsprobe.kernel import abi
from dnsprobe.kernel.maps import ProcessKey, ProgramKey
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import UNKNOWN, Ancestry, Identity, Process
from dnsprobe.pipeline.steps import Steps
from dnsprobe.process.identity import identify
from dnsprobe.process.procfs import ProcFS

#: Processes or facts that are looked at in one step of a sweep.
_AT_ONCE = 128

_FactsByProgram = Mapping[ProgramKey, abi.Facts | None]


@dataclass(frozen=True, slots=True)
class ProcessLabels:
    """The labels of a process in the metrics. They stay as they were when the process was first seen.

    ``share`` is the user or control group that takes room for the process.
    """

    process: str
    tree: str
    unit: str = ""
    container: str = ""
    share: int = 0
    user: str = ""


@dataclass(frozen=True, slots=True)
class _Program:
    """A program that a process runs (``execs`` as in :class:`~dnsprobe.kernel.abi.Chain`), and the identity with it."""

    execs: int
    identity: Identity


class KnownProcesses:
    """Labels and identities of processes.

    With ``by_lineage``, a tree shows the processes that started a process, otherwise its parents. ``user`` returns the
    name of the user of a share, empty if that is not known or not wanted.
    """

    def __init__(
        self, probe: Probe, procfs: ProcFS, *, by_lineage: bool = False, user: Callable[[int], str] = lambda _share: ""
    ) -> None:
        self._probe, self._procfs, self._by_lineage, self._user = probe, procfs, by_lineage, user
        self._labels: dict[ProcessKey, ProcessLabels] = {}
        self._programs: dict[ProcessKey, _Program] = {}
        #: Processes without counters: those that run and may count again, and those that have ended.
        self._idle: set[ProcessKey] = set()
        self._ended: set[ProcessKey] = set()
        self._unclaimed_facts: set[ProgramKey] = set()
        #: How many programs of processes the kernel had no facts for. Each counts once, however many queries it sends.
        self.without_facts = 0
        #: Processes whose labels were found since the last sweep began.
        self._new: set[ProcessKey] = set()

    def identify(self, chains: Sequence[abi.Chain]) -> Iterator[tuple[Ancestry, Identity]]:
        """Yield for the chain of each event the asker's ancestry, and its identity without the user."""
        facts: _FactsByProgram = {}
        # If the kernel has no memory for that, /proc has most of them, too.
        with suppress(OSError):
            facts = dict(self._probe.maps.facts.get_many(self._unknown_programs(chains)))
        for chain in chains:
            ancestry = self._ancestry(chain)
            identity = self._identity(ancestry.asker, chain.execs, facts)
            self._remember(ancestry, identity, chain.share)
            yield ancestry, identity

    def _unknown_programs(self, chains: Iterable[abi.Chain]) -> set[ProgramKey]:
        current: dict[ProcessKey, int] = {}
        unknown: set[ProgramKey] = set()
        for chain in chains:
            asker = chain.processes[0]
            key = (asker.start_ns, asker.tgid)
            program = self._programs.get(key)
            if current.setdefault(key, program.execs if program else -1) != chain.execs:
                unknown.add((*key, chain.execs))
                current[key] = chain.execs
        return unknown

    def learn(self, keys: Iterable[ProcessKey]) -> None:
        """Find the labels of processes whose event was lost or is not read yet. Takes up to 0.1 ms for each."""
        # The kernel keeps the ancestry and the facts of each process beside its counters.
        chains = dict(self._probe.maps.ancestries.get_many({key for key in keys if key not in self._labels}))
        facts = dict(
            self._probe.maps.facts.get_many((*key, chain.execs if chain else 0) for key, chain in chains.items())
        )
        for (start_ns, tgid), chain in chains.items():
            ancestry = self._ancestry(chain) if chain else self._ancestry_now(Process(tgid, start_ns, b""))
            if ancestry is None:
                self._labels[start_ns, tgid] = ProcessLabels(UNKNOWN, UNKNOWN)
            else:
                identity = self._identity(ancestry.asker, chain.execs if chain else 0, facts)
                self._remember(ancestry, identity, chain.share if chain else 0)

    def labels(self, key: ProcessKey) -> ProcessLabels:
        """Return the labels of a process that was identified or learned."""
        return self._labels[key]

    def _ancestry(self, chain: abi.Chain) -> Ancestry:
        if self._probe.lineage_table.hook is None:
            return Ancestry(chain.processes, chain.complete)
        return Ancestry(chain.processes, chain.complete, chain.lineage, chain.lineage_complete, self._by_lineage)

    def _ancestry_now(self, process: Process) -> Ancestry | None:
        ancestry = self._procfs.ancestry(process)
        if ancestry is None or self._probe.lineage_table.hook is None:
            return ancestry
        # /proc does not show who started a process.
        return replace(ancestry, lineage=ancestry.chain[:1], lineage_complete=False, by_lineage=self._by_lineage)

    def _identity(self, process: Process, execs: int, facts: _FactsByProgram) -> Identity:
        key = (process.start_ns, process.tgid)
        program = self._programs.get(key)
        # After execve(2), a process has the same pid and start time, but runs another program.
        if program is None or program.execs != execs:
            known = facts.get((*key, execs))
            self.without_facts += known is None
            program = _Program(execs, identify(process, known, self._procfs.identity, self._procfs.own_user_ns))
            self._programs[key] = program
        return program.identity

    def _remember(self, ancestry: Ancestry, identity: Identity, share: int) -> None:
        key = (ancestry.asker.start_ns, ancestry.asker.tgid)
        # The first labels stay: a series must not lose what was counted under it.
        if key not in self._labels:
            self._new.add(key)
            tree = ancestry.tree
            self._labels[key] = ProcessLabels(
                tree.rpartition(";")[2],
                tree,
                identity.unit or "",
                identity.container.short_id if identity.container else "",
                share,
                self._user(share),
            )

    def begin_sweep(self) -> None:
        """Note that a sweep begins. Processes that are found from now on may count, whatever the sweep finds."""
        self._new.clear()

    def sweeping(self, counting: AbstractSet[ProcessKey], counted: AbstractSet[ProcessKey]) -> Steps[None]:
        """Forget processes that can count no more, here and in the kernel, at the end of a sweep.

        ``counting`` have counters in the kernel; the last counters of ``counted`` were just taken from there.
        """
        # A process that counted during this sweep may have ended: its ancestry is needed for the new counter.
        self._probe.maps.ancestries.delete_many(self._ended - counting - counted)
        idle = (self._idle | counted) - counting
        running: set[ProcessKey] = set()
        for at, key in enumerate(idle):
            if self._procfs.alive(Process(key[1], key[0], b"")):
                running.add(key)
            if at % _AT_ONCE == 0:
                yield None
        self._idle, self._ended = running, idle - running
        # As long as the kernel keeps an ancestry, a new counter may come that belongs to the same series.
        kept = counting | self._idle | self._ended | self._new
        for key in self._labels.keys() - kept:
            del self._labels[key]
        for key in self._programs.keys() - kept:
            del self._programs[key]
        yield from self._sweeping_facts()

    def _sweeping_facts(self) -> Steps[None]:
        """Make the kernel forget the facts of programs that no known process runs any more."""
        facts = set()
        for at, key in enumerate(self._probe.maps.facts.keys()):
            facts.add(key)
            if at % _AT_ONCE == 0:
                yield None
        unclaimed = facts - {(*key, program.execs) for key, program in self._programs.items()}
        # An event that is not read yet may belong to them. It is read before the next sweep, which deletes the rest.
        self._probe.maps.facts.delete_many(unclaimed & self._unclaimed_facts)
        self._unclaimed_facts = unclaimed
