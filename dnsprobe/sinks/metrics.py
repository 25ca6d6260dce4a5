"""The daemon's numbers as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from dnsprobe import __version__
from dnsprobe.counts import OPTIONAL_LABELS, Series
from dnsprobe.sinks.facts import shown

#: Labels that only a query has whose name can be read.
_OF_QUERIES = ("domain", "qtype")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a scrape shows, at one moment.

    ``hooks`` has a (path, hook, symbol) for each path that is served, ``verified`` whether canary queries came back
    through it. The mappings by reason hold every reason from the start, at zero. ``reload_time`` is in seconds since
    the epoch.
    """

    counts: Mapping[Series, int] = field(default_factory=dict)
    series_folded: int = 0
    hooks: Sequence[tuple[str, str, str]] = ()
    verified: Mapping[str, bool] = field(default_factory=dict)
    events: int = 0
    events_lost: Mapping[str, int] = field(default_factory=dict)
    queries_unattributed: Mapping[str, int] = field(default_factory=dict)
    packets_unparsed: Mapping[str, int] = field(default_factory=dict)
    lineage_lost: Mapping[str, int] = field(default_factory=dict)
    journal_entries: int = 0
    journal_dropped: int = 0
    rules: int = 0
    reload_successful: bool = True
    reload_time: float = 0.0
    web_config_good: bool = True


def _by_reason(name: str, documentation: str, numbers: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=["reason"])
    for reason, number in sorted(numbers.items()):
        family.add_metric([shown(reason)], number)
    return family


class DaemonCollector(Collector):
    """Asks ``snapshot`` at each scrape and shows what it says; of the optional labels those in ``labels``."""

    def __init__(self, snapshot: Callable[[], Snapshot], labels: Collection[str] = OPTIONAL_LABELS) -> None:
        self._snapshot = snapshot
        left_out = set(OPTIONAL_LABELS) - set(labels)
        self._labels = [(at, label) for at, label in enumerate(Series._fields) if label not in left_out]

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; those without labels, and those by reason, are there from the start."""
        now = self._snapshot()
        yield from self._about(now)
        yield from self._losses(now)
        yield self._queries(now)
        yield self._encrypted(now)

    @staticmethod
    def _about(now: Snapshot) -> Iterator[Metric]:
        yield InfoMetricFamily("dnsprobe_build", "The version of dnsprobe that runs.", {"version": __version__})
        hooks = InfoMetricFamily(
            "dnsprobe_hook", "Where in the kernel the queries of a path are seen.", labels=["path", "hook", "symbol"]
        )
        for path, hook, symbol in now.hooks:
            hooks.add_metric([shown(path), shown(hook), shown(symbol)], {})
        yield hooks
        verified = GaugeMetricFamily(
            "dnsprobe_path_verified", "Whether the last canary query down this path was seen, 1 or 0.", labels=["path"]
        )
        for path, proved in now.verified.items():
            verified.add_metric([shown(path)], int(proved))
        yield verified
        yield GaugeMetricFamily("dnsprobe_rules", "Rules in force.", now.rules)
        yield GaugeMetricFamily(
            "dnsprobe_config_last_reload_successful",
            "Whether the configuration was good when it was last read, 1 or 0.",
            int(now.reload_successful),
        )
        yield GaugeMetricFamily(
            "dnsprobe_config_last_reload_success_timestamp_seconds",
            "When the configuration was last read and good, since the epoch.",
            now.reload_time,
        )
        yield GaugeMetricFamily(
            "dnsprobe_web_config_last_reload_successful",
            "Whether the web configuration and its certificates were good when they were last read, 1 or 0.",
            int(now.web_config_good),
        )

    @staticmethod
    def _losses(now: Snapshot) -> Iterator[Metric]:
        yield CounterMetricFamily("dnsprobe_events", "Events received from the kernel.", now.events)
        yield _by_reason(
            "dnsprobe_events_lost",
            "Events lost, by reason. With ring_full the query is counted all the same; with the others it is not.",
            now.events_lost,
        )
        yield _by_reason(
            "dnsprobe_queries_unattributed",
            "Queries counted without their process (counters_full), processes without their tree (processes_full), and "
            "programs of which only /proc can tell what they are (identities_full).",
            now.queries_unattributed,
        )
        yield _by_reason(
            "dnsprobe_packets_unparsed",
            "Packets and writes to a watched port that could not be read as a query, or not in full.",
            now.packets_unparsed,
        )
        yield _by_reason(
            "dnsprobe_lineage_lost",
            "Processes whose lineage is not followed for want of room (full); "
            "forks, exits and changes of name that were not seen (run_missed).",
            now.lineage_lost,
        )
        yield CounterMetricFamily("dnsprobe_journal_entries", "Entries sent to the journal.", now.journal_entries)
        yield CounterMetricFamily(
            "dnsprobe_journal_dropped", "Entries that could not be sent to the journal.", now.journal_dropped
        )
        yield CounterMetricFamily(
            "dnsprobe_series_folded",
            "Different series that were refused for the limit on series and count under (other).",
            now.series_folded,
        )

    def _queries(self, now: Snapshot) -> Metric:
        queries = CounterMetricFamily(
            "dnsprobe_queries",
            "DNS queries sent, by the process tree that sent them.",
            labels=[label for _, label in self._labels],
        )
        for series, number in sorted(now.counts.items()):
            if not series.encrypted:
                queries.add_metric([shown(series[at]) for at, _ in self._labels], number)
        return queries

    def _encrypted(self, now: Snapshot) -> Metric:
        labels = [(at, label) for at, label in self._labels if label not in _OF_QUERIES]
        connections = CounterMetricFamily(
            "dnsprobe_encrypted_connections",
            "Connections to a port of DNS over TLS, whose queries cannot be read, by the process tree that made them.",
            labels=[label for _, label in labels],
        )
        for series, number in sorted(now.counts.items()):
            if series.encrypted:
                connections.add_metric([shown(series[at]) for at, _ in labels], number)
        return connections


def build_registry(snapshot: Callable[[], Snapshot], labels: Collection[str] = OPTIONAL_LABELS) -> CollectorRegistry:
    """Return a registry with dnsprobe's own metrics and the usual ``process_*``."""
    registry = CollectorRegistry()
    registry.register(DaemonCollector(snapshot, labels))
    ProcessCollector(registry=registry)
    return registry
