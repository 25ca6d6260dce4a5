"""The probe and its ledger, made from a configuration: what ``run`` and ``watch`` have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from dnsprobe.config import Config
from dnsprobe.counts import Totals
from dnsprobe.identity import ProcFS
from dnsprobe.kernel.probe import Probe, Sizes
from dnsprobe.ledger import Ledger
from dnsprobe.model import Identity, Query
from dnsprobe.rules import RuleSet

_log = logging.getLogger(__name__)


class Engine:
    """Everything between the kernel and the sinks. Made attached to nothing; :meth:`start` attaches and proves."""

    def __init__(self, config: Config, rules: RuleSet, *, repeat_ns: int | None = None) -> None:
        probe = config.probe
        self.probe = Probe(
            probe.ports,
            Sizes(probe.ring_size, probe.processes, probe.counters, probe.names, probe.recent),
            config.journal.repeat_ns if repeat_ns is None else repeat_ns,
            probe.hook,
            probe.btf,
        )
        self.totals = Totals(config.metrics.max_series)
        self.ledger = Ledger(self.probe, rules, self.totals, ProcFS(), probe.names)

    def start(self, trying: Callable[[str], None] = lambda _: None) -> None:
        """Attach and prove. Raises UserError where a path is left without a hook.

        ``trying`` gets the name of a hook before each attempt to attach to it.
        """
        self.probe.start(_log.debug, trying)

    def queries(self) -> Iterator[tuple[Query, Identity]]:
        """Yield the next queries, a bounded number of them."""
        for event in self.probe.events():
            told = self.ledger.query(event)
            if told is not None:
                yield told

    def remaining(self) -> Iterator[tuple[Query, Identity]]:
        """Yield all queries that are still on their way; to be used when detached, so that it comes to an end."""
        # A query that no rule wants ends nothing: only an empty read does.
        while events := self.probe.events():
            for event in events:
                if told := self.ledger.query(event):
                    yield told

    def close(self) -> None:
        """Detach; what was counted can still be read."""
        self.probe.close()

    def release(self) -> None:
        """Give up what was counted."""
        self.probe.release()
