"""The probe: the maps, the hooks and the rules of one dnsprobe.

Data leaves this package as the structs of :mod:`dnsprobe.kernel.abi`. :mod:`dnsprobe.pipeline` turns them into the
types of :mod:`dnsprobe.model`.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from dnsprobe.errors import UserError
from dnsprobe.kernel import abi
from dnsprobe.kernel.answer_hooks import AnswerHooks
from dnsprobe.kernel.canary import SUFFIX_LABELS, CanaryPort, canary_suffix
from dnsprobe.kernel.layout import KERNEL_BTF
from dnsprobe.kernel.lineage_table import LineageTable
from dnsprobe.kernel.loader_client import LoaderClient, LoaderKeeper
from dnsprobe.kernel.maps import Maps, NameVerdict, Settings, Sizes, do_all
from dnsprobe.kernel.prover import HookChoice, Prover, require_udp
from dnsprobe.kernel.recovery import Recovery, Trial
from dnsprobe.names.ruleset import TrieEntry
from dnsprobe.privileges import HINT

#: Lineage tracking starts after the proof, so these statistics count nothing before.
_LINEAGE_STATISTICS = {statistic for statistic in abi.Statistic if statistic.name.startswith("LINEAGE_")}

#: The maps of hooks that are tried: only canaries match there.
_TRIAL_SIZES = Sizes(ring=4096, processes=16, counters=16, names=16, recent=16, lineage=16)


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
        #: Whether :meth:`start` has proved the hooks. Until then, the rules wait: see :meth:`setting_rules`.
        self.proved = False
        self._waiting_rules: Sequence[TrieEntry] = ()
        #: The number of the rules in force; each :meth:`setting_rules` increments it.
        self.generation = 0
        self._keeper = LoaderKeeper()
        self._loader = LoaderClient(self._keeper)
        # Guards the settings: rules may change while another thread exchanges hooks.
        self._lock = threading.Lock()
        try:
            self.maps = _create_maps(sizes)
        except UserError:
            self._loader.close()
            self._keeper.close()
            raise
        self._canary_port = CanaryPort([*options.ports, *options.dot_ports], options.protocols)
        self._choice = HookChoice(options.hook, options.tcp_hook, options.fentry)
        self.prover = Prover(self._canary_port, self._suffix, self.maps.canaries)
        self._recovery = Recovery(
            self.prover, self._choice, self.maps.descriptors, self._make_trial, self._leave_parts_to_egress
        )
        self.lineage_table = LineageTable(self.maps)
        #: The hooks of answers. Without answers, it has none.
        self.answers = AnswerHooks(self.prover, self._write_settings)

    @property
    def cache_problem(self) -> str:
        """Why the compiled programs could not be cached; empty if there was no problem."""
        return self._loader.cache_problem

    @property
    def _canary_rule(self) -> TrieEntry:
        return TrieEntry(self._suffix, SUFFIX_LABELS, abi.CANARY, abi.CANARY)

    # Rules

    def setting_rules(self, entries: Sequence[TrieEntry]) -> Iterator[Callable[[], None] | None]:
        """Set the rules, all at once: a query meets either the old ones or the new ones.

        After the proof, they are in force at the end. Before it, they wait until :meth:`start` has proved the hooks,
        and only the canaries match: a hook that turns out to be wrong must not count. OSError if the kernel refuses
        them. :meth:`Maps.putting_rules` explains what is yielded.
        """
        if self.proved:
            yield from self._putting_in_force(entries, self.generation + 1)
        else:
            self._waiting_rules = entries
            yield from self._putting_in_force((), self.generation + 1)

    def set_rules(self, entries: Sequence[TrieEntry]) -> None:
        """Set the rules as :meth:`setting_rules` does, and wait. UserError if the kernel refuses them."""
        try:
            do_all(self.setting_rules(entries))
        except OSError as error:
            raise _refusal("cannot put the rules into BPF maps", error) from error

    def _putting_in_force(self, entries: Sequence[TrieEntry], generation: int) -> Iterator[Callable[[], None] | None]:
        yield from self.maps.putting_rules([*entries, self._canary_rule])
        self.generation = generation
        self._write_settings()

    def _write_settings(self, *, seeding: bool = False) -> None:
        with self._lock:
            # Before the proof, no rule matches. The kernel may cache that, under a generation that no rules have.
            generation = self.generation if self.proved else 0
            self.maps.settings.put(
                0,
                Settings(self._repeat_ns, generation, seeding, self._parts_only, self.answers.seen, self._hash_key),
            )

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
            self._configure(self._loader, self.maps)
            self.prover.climb(self._loader, self._choice, log, trying)
            require_udp(self.prover)
            self.prover.serve_parts(self._loader, log, trying, self._leave_parts_to_egress)
            if self.maps.tracks_answers:
                self.answers.start(self._loader, log)
            if self._tracks_lineage:
                self._start_lineage_tracking(seed)
        except UserError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise _refusal("cannot use the BPF maps", error) from error
        finally:
            self._loader.close()
        try:
            self._begin_to_count()
        except OSError as error:
            self.close()
            raise _refusal("cannot put the rules into BPF maps", error) from error

    def _begin_to_count(self) -> None:
        # Hooks that were not proved may have counted encrypted connections and malformed queries.
        for _ in self.maps.counters.take_many(list(self.maps.counters.keys())):
            pass
        self.proved = True
        do_all(self._putting_in_force(self._waiting_rules, self.generation))
        self.maps.statistics.set_many((statistic, 0) for statistic in set(abi.Statistic) - _LINEAGE_STATISTICS)

    def recover(self, log: Callable[[str], None] = lambda _: None) -> None:
        """Try all hooks for the paths that are not proved, and use those that are, while the others count.

        The hooks of answers that do not report what they should are attached again. It may run in a thread of its own.
        Raises UserError if that is not possible at the moment.
        """
        if not self._recovery.failed and not self.answers.failed:
            return
        try:
            with contextlib.closing(LoaderClient(self._keeper)) as self._loader:
                self._configure(self._loader, self.maps)
                self._recovery.run(self._loader, log)
                self.answers.recover(self._loader, log)
        except OSError as error:
            raise UserError(f"cannot try other hooks: {error.strerror or error}") from error

    def interrupt(self) -> None:
        """Let :meth:`recover` and a proof in another thread end soon. There is none after this."""
        self._recovery.interrupt()
        self._loader.interrupt()

    def _configure(self, loader: LoaderClient, maps: Maps) -> None:
        loader.configure(
            ports=self._options.ports,
            encrypted_ports=self._options.dot_ports,
            canary_port=self._canary_port.port,
            btf=self._options.btf,
            maps=maps.descriptors,
            answers=maps.tracks_answers,
            servers=maps.tells_servers,
        )

    def _make_trial(self, parts_only: bool) -> Trial:
        maps = Maps(replace(_TRIAL_SIZES, notes=16 if self.maps.tracks_answers else 0))
        maps.put_rules([self._canary_rule])
        maps.settings.put(0, Settings(0, 0, False, parts_only, 0, self._hash_key))
        return Trial(maps, Prover(self._canary_port, self._suffix, maps.canaries))

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
        self._keeper.close()
        self.lineage_table.close()
        self.answers.close()
        self.prover.close()
        self._canary_port.close()

    def release(self) -> None:
        """Close the maps. Their counts are lost."""
        self.maps.close()


def _create_maps(sizes: Sizes) -> Maps:
    try:
        return Maps(sizes)
    except OSError as error:
        raise _refusal("cannot make BPF maps", error) from error


def _refusal(what: str, error: OSError) -> UserError:
    """Return the error for what the kernel refuses at the start."""
    hint = HINT
    if error.errno in {errno.ENOMEM, errno.E2BIG}:
        hint = "give probe.processes, probe.counters, probe.names, probe.recent and probe.lineage smaller sizes"
    return UserError(f"{what}: {error.strerror or error}", hint)
