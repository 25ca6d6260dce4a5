"""The probe: the maps, the hooks and the rules of one dnsprobe.

Data leaves this package as the structs of :mod:`dnsprobe.kernel.abi`. :mod:`dnsprobe.pipeline` turns them into the
types of :mod:`dnsprobe.model`.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dnsprobe.errors import UserError
from dnsprobe.kernel import abi
from dnsprobe.kernel.canary import SUFFIX_LABELS, CanaryPort, canary_suffix
from dnsprobe.kernel.layout import KERNEL_BTF
from dnsprobe.kernel.lineage_table import LineageTable
from dnsprobe.kernel.loader_client import LoaderClient
from dnsprobe.kernel.maps import Maps, NameVerdict, Settings, Sizes
from dnsprobe.kernel.prover import HookChoice, Prover
from dnsprobe.names.ruleset import TrieEntry
from dnsprobe.privileges import HINT

#: Lineage tracking starts after the proof, so these statistics count nothing before.
_LINEAGE_STATISTICS = {statistic for statistic in abi.Statistic if statistic.name.startswith("LINEAGE_")}


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """What to watch: UDP and TCP ports that carry DNS, TCP ports that carry DNS over TLS, and by which hooks.

    ``hook`` and ``tcp_hook`` are the name of a rung or ``auto``; ``tcp_hook`` may be ``none``. ``fentry`` is whether
    functions may be attached to by fentry. ``btf`` is the path of the kernel's BTF.
    """

    ports: Sequence[int]
    dot_ports: Sequence[int] = ()
    hook: str = "auto"
    tcp_hook: str = "auto"
    btf: str = KERNEL_BTF
    fentry: bool = True

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that are watched."""
        return ("udp",) if self.tcp_hook == "none" else ("udp", "tcp")


class Probe:
    """Owns the maps, the prover with its hooks, the lineage table, and the rules.

    ``repeat_ns`` is the time in nanoseconds in which a repeated query causes no event; 0: each query causes one. The
    loader child starts at once, but nothing is attached before :meth:`start`. Raises UserError if the maps cannot be
    created.
    """

    def __init__(self, options: ProbeOptions, sizes: Sizes, repeat_ns: int) -> None:
        self._options, self._repeat_ns = options, repeat_ns
        self._tracks_lineage = sizes.lineage > 0
        self._hash_key = tuple(secrets.randbits(64) for _ in range(abi.HASH_KEYS))
        self._parts_only = False
        self._suffix = canary_suffix()
        #: Whether :meth:`start` has proved the hooks. Until then, the rules wait: see :meth:`set_rules`.
        self.proved = False
        self._waiting_rules: Sequence[TrieEntry] = ()
        #: The number of the rules in force; each :meth:`set_rules` increments it.
        self.generation = 0
        self._loader = LoaderClient()
        try:
            self.maps = _create_maps(sizes)
            self._canary_port = _bind_canary_port(options)
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
        # Before the proof, no rule matches. The kernel may cache that, under a generation that no rules have.
        generation = self.generation if self.proved else 0
        self.maps.settings.put(0, Settings(self._repeat_ns, generation, seeding, self._parts_only, self._hash_key))

    def decide(self, decisions: Iterable[tuple[int, bytes, int]]) -> list[int]:
        """Store verdicts on names under the rules in force. Return the hashes of the names that are still in the map.

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

        ``log`` gets the messages of compiler and verifier, ``trying`` the title of a hook before each attempt to attach
        it. If lineage tracking is on, ``seed`` is called when forks are seen, to add the processes that exist already.
        """
        try:
            self._loader.configure(
                ports=self._options.ports,
                encrypted_ports=self._options.dot_ports,
                canary_port=self._canary_port.port,
                btf=self._options.btf,
                maps=self.maps.descriptors,
                fentry=self._options.fentry,
            )
            choice = HookChoice(self._options.hook, self._options.tcp_hook, self._options.fentry)
            self.prover.climb(self._loader, choice, log, trying)
            self.prover.serve_parts(self._loader, log, trying, self._leave_parts_to_egress)
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

    def _leave_parts_to_egress(self, leave: bool) -> None:
        self._parts_only = leave
        self._write_settings()

    def _start_lineage_tracking(self, seed: Callable[[], None]) -> None:
        self._write_settings(seeding=True)
        self.lineage_table.hook, self.lineage_table.problem = self._loader.attach_lineage()
        if self.lineage_table.hook is not None:
            seed()
        self._write_settings()

    def statistics(self) -> dict[abi.Statistic, int]:
        """Return the statistics of the programs, summed over the CPUs, since the hooks were proved."""
        return {abi.Statistic(index): total for index, total in self.maps.statistics.read(abi.Statistic)}

    def close(self) -> None:
        """Detach everything. The maps stay readable until :meth:`release`."""
        self._loader.close()
        self.lineage_table.close()
        self.prover.close()

    def release(self) -> None:
        """Close the maps. Their counts are lost."""
        self.maps.close()


def _create_maps(sizes: Sizes) -> Maps:
    try:
        return Maps(sizes)
    except OSError as error:
        hint = HINT
        if error.errno in {errno.ENOMEM, errno.E2BIG}:
            hint = "give probe.processes, probe.counters, probe.names, probe.recent and probe.lineage smaller sizes"
        raise UserError(f"cannot make BPF maps: {error.strerror or error}", hint) from error


def _bind_canary_port(options: ProbeOptions) -> CanaryPort:
    try:
        return CanaryPort([*options.ports, *options.dot_ports], options.protocols)
    except OSError as error:
        raise UserError(
            f"cannot bind a port of loopback for the canaries: {error.strerror or error}",
            "free a port in the range net.ipv4.ip_local_port_range, on 127.0.0.1 and ::1",
        ) from error
