"""What ``run`` and ``watch`` have in common: everything between the configuration and the sinks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from dnsprobe.config.main import Config, ProbeConfig, warnings
from dnsprobe.config.readers import NANOSECONDS
from dnsprobe.hook_names import OLD_HOOKS, Attach
from dnsprobe.kernel.abi import Statistic
from dnsprobe.kernel.losses import NO_LOSSES, Loss, Source, read_losses
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.other_messages import read_other_messages
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.model import Identity, Query, Series
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.counters import Counters
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.resolver import Resolver
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.pipeline.series import Totals
from dnsprobe.process.container_names import ContainerNames
from dnsprobe.process.lineage import Lineage
from dnsprobe.process.procfs import ProcFS
from dnsprobe.process.users import UserNames

_log = logging.getLogger(__name__)

_SWEEP_SECONDS = 10.0
#: A sweep is due earlier if this share of a map was filled since the last one.
_SWEEP_FILL = 1 / 8


def probe_options(config: ProbeConfig) -> ProbeOptions:
    """Return the ports and hooks of a configuration."""
    fentry = config.attach != Attach.KPROBE
    hook = OLD_HOOKS.get(config.hook, config.hook)
    return ProbeOptions(config.ports, config.dot_ports, hook, config.tcp_hook, config.btf, fentry)


class Session:
    """The maps, hooks and counters that ``run`` and ``watch`` work with.

    A new session has its maps, but is attached to nothing; :meth:`start` attaches the hooks and proves them.
    """

    def __init__(self, config: Config, rules: RuleSet, *, repeat_ns: int | None = None) -> None:
        probe = config.probe
        self._warnings = warnings(config)
        self.probe = Probe(
            probe_options(probe),
            Sizes(probe.ring_size, probe.processes, probe.counters, probe.names, probe.recent, probe.lineage),
            config.journal.repeat_ns if repeat_ns is None else repeat_ns,
        )
        ttl_ns = config.metrics.series_ttl_ns
        self.totals = Totals(
            config.metrics.max_series, config.metrics.labels, ttl_ns / NANOSECONDS["s"] if ttl_ns else math.inf
        )
        procfs = ProcFS()
        self._rules = RulesInForce(self.probe, rules)
        self._decisions = NameDecisions(self.probe, self._rules, probe.names)
        processes = KnownProcesses(self.probe, procfs, by_lineage=probe.tree == "lineage")
        self._resolver = Resolver(self._rules, self._decisions, processes, ContainerNames(), UserNames().name)
        self._counters = Counters(self.probe, self._rules, self._decisions, processes, self.totals, procfs.alive)
        self._lineage = Lineage(self.probe.lineage_table, probe.lineage, procfs)
        self._sizes = (probe.counters, probe.processes, probe.names)
        self._last_sweep, self._added_before = 0.0, (0, 0, 0)
        self._losses = NO_LOSSES

    def start(self, trying: Callable[[str], None] = lambda _: None) -> None:
        """Attach the hooks and prove them. Raises UserError if no hook can be verified for UDP.

        ``trying`` is called with the name of a hook before each attempt to attach it.
        """
        for warning in self._warnings:
            _log.warning("%s", warning)
        self.probe.start(_log.debug, trying, self._lineage.seed)
        self._losses = NO_LOSSES
        if self.probe.cache_problem:
            _log.warning("cannot cache the compiled BPF programs: %s", self.probe.cache_problem)
        if self.probe.lineage_table.problem:
            _log.warning("lineage tracking is off: %s", self.probe.lineage_table.problem)

    @property
    def rules(self) -> RuleSet:
        """The rules in force."""
        return self._rules.current

    def replace_rules(self, specs: Iterable[tuple[str, str, int]]) -> None:
        """Put other rules in force: name, pattern and priority each. An unchanged rule continues to count.

        Raises UserError for invalid rules, OSError if the kernel has no memory for them. The old rules then stay in
        force.
        """
        self._rules.replace(RuleSet.build(specs, self.rules, self._rules.by_id))
        self._decisions.decide_all()

    def queries(self) -> Iterator[tuple[Query, Identity]]:
        """Yield the next queries, a bounded number of them."""
        yield from self._resolver.queries(self.probe.maps.events.read())

    def remaining_queries(self) -> Iterator[tuple[Query, Identity]]:
        """Yield all queries whose events were not read yet. Ends only if the session is detached."""
        # Events that no rule matches yield nothing, so only an empty read is the end.
        while events := self.probe.maps.events.read():
            yield from self._resolver.queries(events)

    def collect(self) -> Mapping[Series, int]:
        """Return all series with their totals up to now."""
        return self._counters.collect()

    def sweep_if_due(self) -> bool:
        """Make room in the kernel's maps if it is time. Call about once a second. Return whether it was time."""
        statistics = self.probe.statistics()
        self._lineage.sweep_if_due(statistics)
        # Each new process adds at least one counter, so the number of counters is an upper limit for that of processes.
        counters = statistics[Statistic.COUNTERS_ADDED]
        added = (counters, counters, statistics[Statistic.NAMES_ADDED])
        filling = any(
            now - before > size * _SWEEP_FILL
            for now, before, size in zip(added, self._added_before, self._sizes, strict=True)
        )
        if not filling and time.monotonic() - self._last_sweep <= _SWEEP_SECONDS:
            return False
        self._counters.sweep()
        self._last_sweep, self._added_before = time.monotonic(), added
        return True

    def losses(self, journal_dropped: int = 0) -> dict[Loss, int]:
        """Return every loss with its number up to now; ``journal_dropped`` is that of the sink."""
        losses = read_losses(
            self.probe.statistics(),
            {
                Source.MISSED_RUNS: self.probe.prover.missed_runs(),
                Source.LINEAGE_FULL: self.probe.lineage_table.full(),
                Source.LINEAGE_MISSED_RUNS: self.probe.lineage_table.missed_runs(),
                Source.JOURNAL_DROPPED: journal_dropped,
                Source.SERIES_FOLDED: self.totals.series_folded,
            },
        )
        # A counter of Prometheus never decreases.
        self._losses = {loss: max(times, self._losses[loss]) for loss, times in losses.items()}
        return self._losses

    def other_messages(self) -> dict[str, int]:
        """Return how many messages were not standard queries up to now, by reason."""
        return read_other_messages(self.probe.statistics())

    def detach(self) -> None:
        """Detach the hooks. Counters and events can still be read."""
        self.probe.close()

    def close(self) -> None:
        """Detach the hooks and free the maps."""
        self.probe.close()
        self.probe.release()
