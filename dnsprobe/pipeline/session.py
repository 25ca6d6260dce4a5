"""The probe and its ledger, made from a configuration: what ``run`` and ``watch`` have in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from dnsprobe.config.main import Config, ProbeConfig
from dnsprobe.kernel.abi import Statistic
from dnsprobe.kernel.losses import Loss, Source, read_losses
from dnsprobe.kernel.probe import Probe, Sizes, Where
from dnsprobe.model import Identity, Query
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.counters import Ledger
from dnsprobe.pipeline.series import Totals
from dnsprobe.process.container_names import ContainerNames
from dnsprobe.process.lineage import Lineage
from dnsprobe.process.procfs import ProcFS

_log = logging.getLogger(__name__)

_SWEEP_SECONDS = 10.0
#: A sweep is due earlier when this share of a map was filled since the last one.
_SWEEP_FILL = 1 / 8


def where_of(config: ProbeConfig) -> Where:
    """Return what a configuration has the probe look at."""
    return Where(config.ports, config.dot_ports, config.hook, config.tcp_hook, config.btf)


class Engine:
    """Everything between the kernel and the sinks. Made attached to nothing; :meth:`start` attaches and proves."""

    def __init__(self, config: Config, rules: RuleSet, *, repeat_ns: int | None = None) -> None:
        probe = config.probe
        self.probe = Probe(
            where_of(probe),
            Sizes(probe.ring_size, probe.processes, probe.counters, probe.names, probe.recent, probe.lineage),
            config.journal.repeat_ns if repeat_ns is None else repeat_ns,
        )
        self.totals = Totals(config.metrics.max_series, config.metrics.labels)
        procfs = ProcFS()
        self.ledger = Ledger(self.probe, rules, self.totals, procfs, ContainerNames(), probe.names, tree=probe.tree)
        self._lineage = Lineage(self.probe, probe.lineage, procfs.alive)
        self._room = (probe.counters, probe.processes, probe.names)
        self._last_sweep, self._swept_at = 0.0, (0, 0, 0)

    def start(self, trying: Callable[[str], None] = lambda _: None) -> None:
        """Attach and prove. Raises UserError where a path is left without a hook.

        ``trying`` gets the name of a hook before each attempt to attach to it.
        """
        self.probe.start(_log.debug, trying, self._lineage.seed)
        if self.probe.cache_problem:
            _log.warning("cannot cache the compiled BPF programs: %s", self.probe.cache_problem)
        if self.probe.lineage_problem:
            _log.warning("who started whom is not followed: %s", self.probe.lineage_problem)

    def queries(self) -> Iterator[tuple[Query, Identity]]:
        """Yield the next queries, a bounded number of them."""
        yield from self.ledger.queries(self.probe.events())

    def remaining(self) -> Iterator[tuple[Query, Identity]]:
        """Yield all queries that are still on their way; to be used when detached, so that it comes to an end."""
        # A query that no rule wants ends nothing: only an empty read does.
        while events := self.probe.events():
            yield from self.ledger.queries(events)

    def tend(self) -> bool:
        """Carry over what is done, if that is due; to be called about once a second. Return whether it was."""
        statistics = self.probe.statistics()
        self._lineage.tend(statistics)
        # A process that counts has added a counter at least.
        counters = statistics[Statistic.COUNTERS_ADDED]
        added = (counters, counters, statistics[Statistic.NAMES_ADDED])
        filling = any(
            now - before > size * _SWEEP_FILL
            for now, before, size in zip(added, self._swept_at, self._room, strict=True)
        )
        if not filling and time.monotonic() - self._last_sweep <= _SWEEP_SECONDS:
            return False
        self.ledger.sweep()
        self._last_sweep, self._swept_at = time.monotonic(), added
        return True

    def losses(self, journal_dropped: int = 0) -> dict[Loss, int]:
        """Return every loss with its number up to now; ``journal_dropped`` is that of the sink."""
        return read_losses(
            self.probe.statistics(),
            {
                Source.MISSED_RUNS: self.probe.missed_runs(),
                Source.LINEAGE_FULL: self.probe.lineage_full(),
                Source.LINEAGE_MISSED_RUNS: self.probe.lineage_missed_runs(),
                Source.JOURNAL_DROPPED: journal_dropped,
                Source.SERIES_FOLDED: self.totals.series_folded,
            },
        )

    def close(self) -> None:
        """Detach; what was counted can still be read."""
        self.probe.close()

    def release(self) -> None:
        """Give up what was counted."""
        self.probe.release()
