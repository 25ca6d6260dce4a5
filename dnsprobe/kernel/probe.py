"""The probe: the maps, the hooks and the rules of one dnsprobe.

Data leaves this package as the structs of :mod:`dnsprobe.kernel.abi`. Modules further right turn them into the types of
:mod:`dnsprobe.model`.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dnsprobe.errors import UserError
from dnsprobe.kernel import abi
from dnsprobe.kernel.canary import SUFFIX_LABELS, Canaries, CanaryPort, canary_suffix
from dnsprobe.kernel.hooks import Hook
from dnsprobe.kernel.lineage_table import LineageTable
from dnsprobe.kernel.loader_client import LoaderClient
from dnsprobe.kernel.maps import CountKey, Maps, NameVerdict, PendingKey, ProcessKey, ProgramKey, Settings, Sizes
from dnsprobe.kernel.prover import PathState, Prover
from dnsprobe.names.ruleset import TrieEntry
from dnsprobe.privileges import HINT

__all__ = ["CountKey", "PathState", "PendingKey", "Probe", "ProcessKey", "ProgramKey", "Sizes", "Where"]

#: Lineage tracking starts after the proof, so these statistics count nothing before.
_LINEAGE_STATISTICS = {statistic for statistic in abi.Statistic if statistic.name.startswith("LINEAGE_")}


@dataclass(frozen=True, slots=True)
class Where:
    """What to watch: UDP and TCP ports that carry DNS, TCP ports that carry DNS over TLS, and by which hooks.

    ``hook`` and ``tcp_hook`` are the name of a rung or ``auto``; ``tcp_hook`` may be ``none``. ``btf`` is the path of
    the kernel's BTF.
    """

    ports: Sequence[int]
    dot_ports: Sequence[int] = ()
    hook: str = "auto"
    tcp_hook: str = "auto"
    btf: str = "/sys/kernel/btf/vmlinux"

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that are watched."""
        return ("udp",) if self.tcp_hook == "none" else ("udp", "tcp")


class _OldNames:
    """Old names of what callers use."""

    maps: Maps
    prover: Prover
    lineage_table: LineageTable

    @property
    def paths(self) -> dict[str, PathState]:
        """See the collaborator."""
        return self.prover.paths

    @property
    def hooks(self) -> list[Hook]:
        """See the collaborator."""
        return self.prover.hooks

    @property
    def lineage(self) -> Hook | None:
        """See the collaborator."""
        return self.lineage_table.hook

    @property
    def lineage_problem(self) -> str:
        """See the collaborator."""
        return self.lineage_table.problem

    @property
    def unserved(self) -> dict[str, str]:
        """See the collaborator."""
        return self.prover.unserved

    @property
    def served_paths(self) -> list[str]:
        """See the collaborator."""
        return self.prover.served_paths

    @property
    def active_paths(self) -> tuple[str, ...]:
        """See the collaborator."""
        return self.prover.active_paths

    def canary_round(self) -> Canaries:
        """See the collaborator."""
        return self.prover.start_round()

    def finish_round(self, canaries: Canaries) -> dict[str, str]:
        """See the collaborator."""
        return self.prover.finish_round(canaries)

    def fail_round(self, problem: str) -> dict[str, str]:
        """See the collaborator."""
        return self.prover.fail_round(problem)

    def fileno(self) -> int:
        """See the collaborator."""
        return self.maps.events.fileno()

    def events(self) -> list[abi.Event]:
        """See the collaborator."""
        return self.maps.events.read()

    def missed_runs(self) -> int:
        """See the collaborator."""
        return self.prover.missed_runs()

    def lineage_missed_runs(self) -> int:
        """See the collaborator."""
        return self.lineage_table.missed_runs()

    def lineage_full(self) -> int:
        """See the collaborator."""
        return self.lineage_table.full()

    def counts(self) -> Iterator[tuple[CountKey, int]]:
        """See the collaborator."""
        return self.maps.counters.items()

    def forget_counts(self, keys: Iterable[CountKey]) -> Iterator[tuple[CountKey, int]]:
        """See the collaborator."""
        return ((key, queries or 0) for key, queries in self.maps.counters.take_many(keys))

    def pending(self) -> Iterator[tuple[PendingKey, int]]:
        """See the collaborator."""
        return self.maps.pending.items()

    def forget_pending(self, keys: Iterable[PendingKey]) -> Iterator[tuple[PendingKey, int]]:
        """See the collaborator."""
        return ((key, queries or 0) for key, queries in self.maps.pending.take_many(keys))

    def overflow(self, rules: Iterable[int]) -> Iterator[tuple[int, int]]:
        """See the collaborator."""
        return ((rule, queries or 0) for rule, queries in self.maps.overflow.get_many(rules))

    def take_overflow(self, rules: Iterable[int]) -> dict[int, int]:
        """See the collaborator."""
        found = {rule: queries for rule, queries in self.overflow(rules) if queries}
        self.maps.overflow.set_many((rule, 0) for rule in found)
        return found

    def chains(self, keys: Iterable[ProcessKey]) -> Iterator[tuple[ProcessKey, abi.Chain | None]]:
        """See the collaborator."""
        return self.maps.ancestries.get_many(keys)

    def forget_processes(self, keys: Iterable[ProcessKey]) -> None:
        """See the collaborator."""
        self.maps.ancestries.delete_many(keys)

    def facts_of(self, keys: Iterable[ProgramKey]) -> Iterator[tuple[ProgramKey, abi.Facts | None]]:
        """See the collaborator."""
        return self.maps.facts.get_many(keys)

    def facts_kept(self) -> Iterator[ProgramKey]:
        """See the collaborator."""
        return self.maps.facts.keys()

    def forget_facts(self, keys: Iterable[ProgramKey]) -> None:
        """See the collaborator."""
        self.maps.facts.delete_many(keys)

    def ancestors(self) -> Iterator[tuple[abi.AncestorKey, abi.Ancestor]]:
        """See the collaborator."""
        return self.lineage_table.ancestors()

    def add_ancestors(self, ancestors: Iterable[tuple[abi.AncestorKey, abi.Ancestor]]) -> None:
        """See the collaborator."""
        self.lineage_table.add_ancestors(ancestors)

    def set_ancestors(self, ancestors: Iterable[tuple[abi.AncestorKey, abi.Ancestor]]) -> None:
        """See the collaborator."""
        self.lineage_table.set_ancestors(ancestors)

    def forget_ancestors(self, keys: Iterable[abi.AncestorKey]) -> None:
        """See the collaborator."""
        self.lineage_table.forget_ancestors(keys)

    def names(self) -> Iterator[tuple[int, int, int, bytes]]:
        """See the collaborator."""
        return ((name_hash, *verdict) for name_hash, verdict in self.maps.names.items())

    def forget_names(self, hashes: Iterable[int]) -> None:
        """See the collaborator."""
        self.maps.names.delete_many(hashes)


class Probe(_OldNames):
    """Owns the maps, the prover with its hooks, the lineage table, and the rules.

    ``repeat_ns`` is how long a query like an earlier one causes no event. The loader child starts at once, nothing is
    attached before :meth:`start`. Raises UserError if the maps cannot be created.
    """

    def __init__(self, where: Where, sizes: Sizes, repeat_ns: int) -> None:
        self._where, self._repeat_ns = where, repeat_ns
        self._tracks_lineage = sizes.lineage > 0
        self._name_key = (secrets.randbits(64), secrets.randbits(64))
        self._suffix = canary_suffix()
        #: Whether :meth:`start` has proved the hooks. Until then, the rules wait: see :meth:`set_rules`.
        self.proved = False
        self._waiting_rules: Sequence[TrieEntry] = ()
        #: The number of the rules in force; each :meth:`set_rules` increments it.
        self.generation = 0
        self._loader = LoaderClient()
        try:
            self.maps = _create_maps(sizes)
            self._canary_port = _bind_canary_port(where)
        except UserError:
            self._loader.close()
            raise
        self.prover = Prover(self._canary_port, self._suffix, self.maps.canaries)
        self.lineage_table = LineageTable(self.maps)

    @property
    def cache_problem(self) -> str:
        """Why the compiled programs could not be cached; empty if there was no problem."""
        return self._loader.cache_problem

    # Rules

    def set_rules(self, entries: Sequence[TrieEntry]) -> None:
        """Set the rules, all at once: a query meets either the old ones or the new ones.

        After the proof, they are in force on return. Before it, they wait until :meth:`start` has proved the hooks, and
        only the canaries match: a hook that turns out to be wrong must not count. OSError if the kernel refuses them.
        """
        if self.proved:
            self._put_in_force(entries, self.generation + 1)
        else:
            self._waiting_rules = entries
            self._put_in_force((), self.generation + 1)

    def _put_in_force(self, entries: Sequence[TrieEntry], generation: int) -> None:
        canary = TrieEntry(self._suffix, SUFFIX_LABELS, abi.CANARY, abi.CANARY)
        self.maps.put_rules([*entries, canary])
        self.generation = generation
        self._write_settings()

    def _write_settings(self, *, seeding: bool = False) -> None:
        self.maps.settings.put(0, Settings(self._repeat_ns, self._name_key, self.generation, seeding))

    def decide(self, decisions: Iterable[tuple[int, bytes, int]]) -> list[int]:
        """Store what names come to under the rules in force. Return the hashes of the names that are still in the map.

        A decision has the hash of a name, the name in wire format, and a rule's id or NO_RULE.
        """
        verdicts = {name_hash: NameVerdict(verdict, self.generation, name) for name_hash, name, verdict in decisions}
        missing = self.maps.names.update_many(verdicts.items())
        return [name_hash for name_hash in verdicts if name_hash not in missing]

    # Hooks

    def start(
        self,
        log: Callable[[str], None] = lambda _: None,
        trying: Callable[[str], None] = lambda _: None,
        seed: Callable[[], None] = lambda: None,
    ) -> None:
        """Attach and prove the hooks, then put the rules in force. UserError if a UDP path has no hook.

        ``log`` gets the messages of compiler and verifier, ``trying`` the name of a hook before each attempt to attach
        it. If lineage tracking is on, ``seed`` is called when forks are seen, to add the processes that exist already.
        """
        try:
            self._loader.configure(
                ports=self._where.ports,
                encrypted_ports=self._where.dot_ports,
                canary_port=self._canary_port.port,
                btf=self._where.btf,
                maps=self.maps.descriptors,
            )
            self.prover.climb(self._loader, self._where.hook, self._where.tcp_hook, log, trying)
            if self._tracks_lineage:
                self._start_lineage_tracking(seed)
        except UserError:
            self.close()
            raise
        finally:
            self._loader.close()
        # Hooks that were not proved may have counted encrypted connections and malformed queries.
        for _ in self.maps.counters.take_many(list(self.maps.counters.keys())):
            pass
        self.proved = True
        self._put_in_force(self._waiting_rules, self.generation)
        self.maps.statistics.set_many((statistic, 0) for statistic in set(abi.Statistic) - _LINEAGE_STATISTICS)

    def _start_lineage_tracking(self, seed: Callable[[], None]) -> None:
        self._write_settings(seeding=True)
        self.lineage_table.hook, self.lineage_table.problem = self._loader.attach_lineage()
        if self.lineage_table.hook is not None:
            seed()
        self._write_settings()

    def statistics(self) -> dict[abi.Statistic, int]:
        """Return the statistics of the programs, summed over the CPUs, since the hooks were proved."""
        return {abi.Statistic(key): total or 0 for key, total in self.maps.statistics.get_many(abi.Statistic)}

    def close(self) -> None:
        """Detach everything. The maps stay readable until :meth:`release`."""
        self._loader.close()
        self.lineage_table.close()
        self.prover.close()

    def release(self) -> None:
        """Close the maps. What they counted is gone."""
        self.maps.close()


def _create_maps(sizes: Sizes) -> Maps:
    try:
        return Maps(sizes)
    except OSError as error:
        hint = HINT
        if error.errno in {errno.ENOMEM, errno.E2BIG}:
            hint = "give probe.processes, probe.counters, probe.names, probe.recent and probe.lineage smaller sizes"
        raise UserError(f"cannot make BPF maps: {error.strerror or error}", hint) from error


def _bind_canary_port(where: Where) -> CanaryPort:
    try:
        return CanaryPort([*where.ports, *where.dot_ports], where.protocols)
    except OSError as error:
        raise UserError(
            f"cannot bind a port of loopback for the canaries: {error.strerror or error}",
            "free a port in the range net.ipv4.ip_local_port_range, on 127.0.0.1 and ::1",
        ) from error
