"""What ``run`` and ``watch`` have in common: everything between the configuration and the sinks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from dnsprobe.config.main import Config, ProbeConfig, warnings
from dnsprobe.config.readers import NANOSECONDS
from dnsprobe.config.source import Source
from dnsprobe.hook_names import OLD_HOOKS, Attach
from dnsprobe.kernel import losses
from dnsprobe.kernel.abi import SERVERS, Resource, Statistic
from dnsprobe.kernel.losses import NO_LOSSES, Loss, LostParts, read_losses
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.other_messages import read_other_messages
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.model import UNDECIDED, Identity, Query, Series
from dnsprobe.names.ruleset import RuleTable, Spec
from dnsprobe.pipeline.answers import Answers
from dnsprobe.pipeline.counters import Counters
from dnsprobe.pipeline.entries import Entries
from dnsprobe.pipeline.exceeded import ExceededShares
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.latencies import Histograms, lines
from dnsprobe.pipeline.matcher import Matcher
from dnsprobe.pipeline.matching_client import Reload
from dnsprobe.pipeline.resolver import Resolver
from dnsprobe.pipeline.results import Results
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.steps import as_steps, run, run_in_turns
from dnsprobe.pipeline.storage_room import StorageRoom
from dnsprobe.pipeline.turns import LIMIT_SECONDS
from dnsprobe.process.container_names import ContainerNames
from dnsprobe.process.lineage import Lineage
from dnsprobe.process.procfs import ProcFS
from dnsprobe.process.share_names import ShareNames
from dnsprobe.process.users import UserNames
from dnsprobe.text import number

_log = logging.getLogger(__name__)

#: What the metric calls a resource, unless by its name. Pending counters are those of names.
_WORDS = {Resource.PENDING: "names"}
_NO_SHARES: Mapping[int, int] = {}

_SWEEP_SECONDS = 10.0
#: A sweep is due earlier if this share of a map was filled since the last one.
_SWEEP_FILL = 1 / 8
#: Seconds between two lines about names that take too long.
_LOG_SECONDS = 60.0
#: Seconds that a scrape waits until names are decided that were asked for before it, and how often it looks. After
#: that, their queries come with a later scrape.
_DECISIONS_SECONDS, _POLL_SECONDS = 0.25, 0.002
#: Seconds for the same at the end, when there is no later one.
_LAST_DECISIONS_SECONDS = 2.0


def probe_options(config: ProbeConfig) -> ProbeOptions:
    """Return the ports and hooks of a configuration."""
    fentry = config.attach != Attach.KPROBE
    hook = OLD_HOOKS.get(config.hook, config.hook)
    return ProbeOptions(config.ports, config.dot_ports, hook, config.tcp_hook, config.btf, fentry)


def kernel_sizes(config: Config) -> Sizes:
    """Return the sizes of the maps."""
    probe = config.probe
    return Sizes(
        ring=probe.ring_size,
        processes=probe.processes,
        counters=probe.counters,
        names=probe.names,
        recent=probe.recent,
        lineage=probe.lineage,
        notes=config.answers.queries if config.answers else 0,
        servers=SERVERS if "server" in config.metrics.labels else 0,
    )


class Session:
    """The maps, hooks and counters that ``run`` and ``watch`` work with.

    A new session has its maps, but is attached to nothing; :meth:`start` attaches the hooks and proves them.
    """

    def __init__(
        self,
        config: Config,
        specs: Iterable[Spec],
        *,
        repeat_ns: int | None = None,
    ) -> None:
        probe, tracking = config.probe, config.answers
        # It builds the rules while the loader child starts.
        self.matcher = Matcher(probe.names)
        self._warnings = warnings(config)
        self.probe = Probe(
            probe_options(probe),
            kernel_sizes(config),
            config.journal.repeat_ns if repeat_ns is None else repeat_ns,
        )
        metrics, ttl = config.metrics, config.metrics.series_ttl_ns / NANOSECONDS["s"] or math.inf
        self.totals = Totals(metrics.max_series, metrics.labels, ttl, tracks_answers=tracking is not None)
        procfs = ProcFS()
        try:
            self._rules = RulesInForce(self.probe, self.matcher.build(specs), self.matcher)
        except BaseException:
            self.close()
            raise
        self._decisions = NameDecisions(self.probe, self._rules, self.matcher, probe.names)
        users = UserNames()
        shares = ShareNames(users.name)
        wanted = {"user": shares.user} if "user" in config.metrics.labels else {}
        self._processes = KnownProcesses(self.probe, procfs, by_lineage=probe.tree == "lineage", **wanted)
        processes = self._processes
        resolver = Resolver(self._rules, self._decisions, processes, ContainerNames(), users.name)
        self._entries = Entries(self.probe, self.matcher, self._decisions, resolver, has_unread=config.journal.unread)
        self._exceeded = ExceededShares(shares.name)
        #: What became of the queries; None if answers are not tracked.
        self.answers: Answers | None = None
        if tracking:
            bounds = tracking.buckets_ns
            totals = Totals(metrics.max_series // lines(bounds), {"unit"} & {*metrics.labels}, ttl)
            histograms = Histograms(self.probe, self._rules, self._decisions, processes, totals, bounds)
            self.answers = Answers(self.probe, tracking.timeout_ns, histograms=histograms)
            self._entries.add_results(self.answers, Results(tracking.wait_ns, tracking.timeout_ns))
        self._counters = Counters(
            self.probe, self._rules, self._decisions, processes, self.totals, procfs.alive, answers=self.answers
        )
        self._lineage = Lineage(self.probe.lineage_table, probe.lineage, procfs)
        self._sizes = (probe.counters, probe.processes, probe.names)
        self._last_sweep, self._added_before = 0.0, (0, 0, 0)
        self._storage_room = StorageRoom(self.probe.maps.put_storage_room)
        self._losses, self._lost_parts = NO_LOSSES, LostParts()
        # Collecting and sweeping exclude each other: a count must be in one place.
        self._counting = asyncio.Lock()
        self._too_slow_logged, self._too_slow_logged_at = 0, -_LOG_SECONDS

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
    def rules(self) -> RuleTable:
        """The rules in force."""
        return self._rules.current

    async def reload(self, source: Source) -> Reload:
        """Read a configuration, and put its rules in force. An unchanged rule continues to count.

        Raises UserError for an invalid configuration, OSError if the kernel has no memory for the rules. The old ones
        then stay in force.
        """
        # The process knows the ids of the rules in force, and does not give them to others either.
        loaded = self.matcher.reload(source, self._rules.by_id.keys() - self.rules.by_id.keys())
        try:
            while loaded.table is None:
                await _readable(loaded.channel.fileno())
                loaded.read()
            await run_in_turns(self._rules.replacing(loaded.table, lambda: self.matcher.adopt(loaded)))
        finally:
            self.matcher.end_unused(loaded)
        await run_in_turns(self._decisions.deciding_again())
        return loaded

    def queries(self) -> Iterator[tuple[Query, Identity]]:
        """Yield the next queries: see :meth:`Entries.next`."""
        return self._entries.next()

    @property
    def seconds_left(self) -> float | None:
        """How long until :meth:`queries` has one more, whatever happens; None if it waits for the kernel side."""
        return self._entries.seconds_left

    def remaining_queries(self) -> Iterator[tuple[Query, Identity]]:
        """Yield all queries that were not written yet. Ends only if the session is detached."""
        return self._entries.remaining()

    def collect(self) -> Mapping[Series, int]:
        """Return all series with their totals up to now. Waits a moment for names that are not decided yet."""
        run(self._counters.asking())
        asked = self.matcher.asked
        until = time.monotonic() + _LAST_DECISIONS_SECONDS
        while self.matcher.oldest_open <= asked and (left := until - time.monotonic()) > 0:
            self.matcher.wait(left)
            self._decisions.take_answers()
        return self._counters.collect()

    async def collect_in_turns(self) -> Mapping[Series, int]:
        """Return all series with their totals up to now, and let the event loop work meanwhile.

        Waits a moment for names that are not decided yet, so that the result has what was sent before the call.
        """
        async with self._counting:
            await run_in_turns(self._counters.asking())
            asked = self.matcher.asked
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DECISIONS_SECONDS):
                    while self.matcher.oldest_open <= asked:
                        await asyncio.sleep(_POLL_SECONDS)
                        self._decisions.take_answers()
            return await run_in_turns(self._counters.collecting())

    def sweep_if_due(self) -> bool:
        """Make room in the kernel's maps if it is time. Call about once a second. Return whether it was time."""
        self._maintain()
        statistics = self.probe.statistics()
        if self._lineage.is_sweep_due(statistics):
            self._lineage.sweep()
        if self.answers is not None:
            run(self.answers.giving_up())
        if not self._is_sweep_due(statistics):
            return False
        run(self._counters.sweeping())
        return True

    async def sweep_in_turns_if_due(self) -> bool:
        """Do what :meth:`sweep_if_due` does, and let the event loop work meanwhile."""
        self._maintain()
        statistics = self.probe.statistics()
        if self._lineage.is_sweep_due(statistics):
            await run_in_turns(as_steps(self._lineage.sweeping()))
        if self.answers is not None:
            async with self._counting:
                await run_in_turns(self.answers.giving_up())
        if not self._is_sweep_due(statistics):
            return False
        async with self._counting:
            await run_in_turns(self._counters.sweeping())
        return True

    def _maintain(self) -> None:
        self.matcher.maintain()
        self._storage_room.update()
        self._log_too_slow()
        self.exceeded_shares()

    def _is_sweep_due(self, statistics: Mapping[Statistic, int]) -> bool:
        # Each new process adds at least one counter, so the number of counters is an upper limit for that of processes.
        counters = statistics[Statistic.COUNTERS_ADDED]
        added = (counters, counters, statistics[Statistic.NAMES_ADDED])
        filling = any(
            now - before > size * _SWEEP_FILL
            for now, before, size in zip(added, self._added_before, self._sizes, strict=True)
        )
        if not filling and time.monotonic() - self._last_sweep <= _SWEEP_SECONDS:
            return False
        self.probe.maps.shares.sweep()
        self._last_sweep, self._added_before = time.monotonic(), added
        return True

    def _log_too_slow(self) -> None:
        names = self._decisions.too_slow - self._too_slow_logged
        if not names or time.monotonic() - self._too_slow_logged_at < _LOG_SECONDS:
            return
        self._too_slow_logged, self._too_slow_logged_at = self._decisions.too_slow, time.monotonic()
        _log.warning(
            "%s took the rules longer than %d ms of processor time: the queries count under %s",
            number(names, "name"),
            LIMIT_SECONDS * 1000,
            UNDECIDED,
        )

    def losses(self, journal_dropped: int = 0, log_dropped: int = 0) -> dict[Loss, int]:
        """Return every loss up to now. No number decreases. The arguments are those of the sink and of the log."""
        now = read_losses(
            {
                losses.Source.MISSED_RUNS: self.probe.prover.missed_runs(),
                losses.Source.LINEAGE_FULL: self.probe.lineage_table.full(),
                losses.Source.LINEAGE_MISSED_RUNS: self.probe.lineage_table.missed_runs(),
                losses.Source.IDENTITIES_FULL: self._processes.without_facts,
                losses.Source.JOURNAL_DROPPED: journal_dropped,
                losses.Source.LOG_DROPPED: log_dropped,
                losses.Source.SERIES_FOLDED: self.totals.series_folded,
                losses.Source.EVENTS_UNDECIDED: self._entries.refused,
                losses.Source.NAMES_UNDECIDED: self._decisions.too_slow,
                losses.Source.RESULTS_FORGOTTEN: self._entries.results_lost,
            },
            self.probe.statistics(),  # after the others
            self._lost_parts,
        )
        self._losses = {loss: max(times, self._losses[loss]) for loss, times in now.items()}
        return self._losses

    def exceeded_shares(self, journal: Mapping[int, int] = _NO_SHARES) -> dict[tuple[str, str, str], int]:
        """Return how often shares were exceeded up to now, by user, unit and resource; warn about it.

        ``journal`` is how often there was no room for an entry since the last call, by share.
        """
        refused: dict[int, Counter[str]] = {}
        for share, by_resource in self.probe.maps.shares.newly_refused().items():
            of_share = refused.setdefault(share, Counter())
            for resource, times in zip(Resource, by_resource, strict=True):
                of_share[_WORDS.get(resource, resource.name.lower())] += times
        for share, series in self.totals.take_over_share().items():
            refused.setdefault(share, Counter())["series"] += series
        for share, entries in journal.items():
            refused.setdefault(share, Counter())["journal"] += entries
        self._exceeded.add(refused)
        return dict(self._exceeded.counts)

    def other_messages(self) -> dict[str, int]:
        """Return how many messages were not standard queries up to now, by reason."""
        return read_other_messages(self.probe.statistics())

    def detach(self) -> None:
        """Detach the hooks. Counters and events can still be read."""
        self.probe.close()
        self._lost_parts.detach()

    def close(self) -> None:
        """Detach the hooks and free the maps."""
        self.matcher.close()
        self.probe.close()
        self.probe.release()


async def _readable(descriptor: int) -> None:
    """Wait until a descriptor is readable."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def note() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, note)
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)
