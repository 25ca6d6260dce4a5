"""The daemon's numbers as Prometheus metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from dnsprobe import __version__
from dnsprobe.kernel.losses import METRICS, NO_LOSSES, Loss
from dnsprobe.kernel.other_messages import OTHER_MESSAGES
from dnsprobe.model import DEFAULT_LABELS, DOT, OPTIONAL_LABELS, Series
from dnsprobe.pipeline.answers import Outcomes
from dnsprobe.sinks.answer_metrics import AnswerFamilies
from dnsprobe.sinks.exposition import Encoder, SeriesLines, encode, end_of_document
from dnsprobe.text import shown

#: Formats whose lines are kept for the next scrape: two, the text format and OpenMetrics.
_FORMATS_KEPT = 2

#: Labels of queries that connections of DNS over TLS do not have.
_OF_QUERIES = ("domain", "qtype")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The numbers that a scrape shows, at one moment.

    ``hooks`` has a (path, hook, attach, symbol) for each path with a hook. ``verified`` is True for a path whose last
    canary queries came back. ``losses`` has every loss from the start, at zero, and ``other_messages`` every reason of
    :data:`OTHER_MESSAGES`. ``exceeded`` is how often a share was exceeded, by user, unit and resource. ``reload_time``
    is in seconds since the epoch. ``series_expired`` is how many series have left; ``expired`` has their queries by
    domain, ``expired_connections`` their connections. ``outcomes`` is what became of the queries, None if answers are
    not tracked.
    """

    counts: Mapping[Series, int] = field(default_factory=dict)
    hooks: Sequence[tuple[str, str, str, str]] = ()
    verified: Mapping[str, bool] = field(default_factory=dict)
    events: int = 0
    losses: Mapping[Loss, int] = field(default_factory=lambda: NO_LOSSES)
    other_messages: Mapping[str, int] = field(default_factory=lambda: {kind.reason: 0 for kind in OTHER_MESSAGES})
    exceeded: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    journal_entries: int = 0
    rules: int = 0
    reload_successful: bool = True
    reload_time: float = 0.0
    web_config_good: bool = True
    series_expired: int = 0
    expired: Mapping[str, int] = field(default_factory=dict)
    expired_connections: int = 0
    expired_unread: int = 0
    outcomes: Outcomes | None = None


class DaemonCollector(Collector):
    """Turns a snapshot into metrics at each scrape. ``labels`` are the optional labels that series have."""

    def __init__(self, snapshot: Callable[[], Snapshot], labels: Collection[str] = DEFAULT_LABELS) -> None:
        self._snapshot = snapshot
        left_out = set(OPTIONAL_LABELS) - set(labels)
        self._labels = [(at, label) for at, label in enumerate(Series._fields) if label not in left_out]
        self._of_answers = AnswerFamilies(self._labels)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric. Those without labels and those by reason exist from the start, at zero."""
        now = self._snapshot()
        yield from self._small_metrics(now)
        queries, encrypted, unread = _split(now.counts)
        yield self._queries(queries)
        yield self._encrypted(encrypted)
        yield self._unread(unread)
        if now.outcomes is not None:
            for family, numbers in self._of_answers.large(now.outcomes):
                yield family(numbers)

    def lines(self, encoder: Encoder) -> DaemonLines:
        """Return what renders :meth:`collect` with ``encoder``, and keeps the lines of all series."""
        queries, encrypted = SeriesLines(encoder, self._queries), SeriesLines(encoder, self._encrypted)
        unread = SeriesLines(encoder, self._unread)

        outcomes = [SeriesLines(encoder, family) for family, _ in self._of_answers.large(Outcomes())]

        def with_numbers(now: Outcomes) -> Iterator[tuple[SeriesLines[Any, Any], Mapping[Any, Any]]]:
            for lines, (_, numbers) in zip(outcomes, self._of_answers.large(now), strict=True):
                yield lines, numbers

        def small_metrics() -> tuple[bytes, Snapshot]:
            now = self._snapshot()
            return encode(encoder, self._small_metrics(now)), now

        return DaemonLines(small_metrics, queries, encrypted, unread, with_numbers)

    def _small_metrics(self, now: Snapshot) -> Iterator[Metric]:
        """Yield the metrics whose number of series does not depend on processes."""
        yield from self._state(now)
        yield from self._losses(now)
        yield self._exceeded(now)
        other = CounterMetricFamily(
            "dnsprobe_messages_other",
            "Messages to a watched port that are not standard queries, by reason.",
            labels=["reason"],
        )
        for reason, messages in sorted(now.other_messages.items()):
            other.add_metric([reason], messages)
        yield other
        yield from self._expired(now)
        if now.outcomes is not None:
            yield from self._of_answers.small(now.outcomes)

    @staticmethod
    def _exceeded(now: Snapshot) -> CounterMetricFamily:
        family = CounterMetricFamily(
            "dnsprobe_share_exceeded",
            "How often a user, or a unit of root, wanted more than its fair share of a resource.",
            labels=["user", "unit", "resource"],
        )
        by_labels: Counter[tuple[str, ...]] = Counter()
        for labels, times in now.exceeded.items():
            # Two long paths of control groups may be shown as the same text.
            by_labels[tuple(shown(label) for label in labels)] += times
        for shown_labels, times in sorted(by_labels.items()):
            family.add_metric(shown_labels, times)
        return family

    @staticmethod
    def _expired(now: Snapshot) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "dnsprobe_series_expired", "Series that have left to make room for new ones.", now.series_expired
        )
        queries = CounterMetricFamily(
            "dnsprobe_queries_expired", "Queries of series that have left, by domain.", labels=["domain"]
        )
        shown_domains = {series.domain for series in now.counts if series.of_queries}
        for domain in sorted(shown_domains | set(now.expired)):
            queries.add_metric([shown(domain)], now.expired.get(domain, 0))
        yield queries
        yield CounterMetricFamily(
            "dnsprobe_encrypted_connections_expired", "Connections of series that have left.", now.expired_connections
        )
        yield CounterMetricFamily(
            "dnsprobe_messages_unread_expired", "Messages of series that have left.", now.expired_unread
        )

    @staticmethod
    def _state(now: Snapshot) -> Iterator[Metric]:
        yield InfoMetricFamily("dnsprobe_build", "The version of dnsprobe that runs.", {"version": __version__})
        hooks = InfoMetricFamily(
            "dnsprobe_hook",
            "The hook that sees the queries of a path, how it is attached, and its symbol in the kernel.",
            labels=["path", "hook", "attach", "symbol"],
        )
        for labels in now.hooks:
            hooks.add_metric([shown(label) for label in labels], {})
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
        yield CounterMetricFamily("dnsprobe_journal_entries", "Entries sent to the journal.", now.journal_entries)
        for metric, help_text in METRICS.items():
            of_metric = {loss.reason: times for loss, times in now.losses.items() if loss.metric == metric}
            labels = ["reason"] if any(of_metric) else []
            family = CounterMetricFamily(metric, help_text, labels=labels)
            for reason, times in sorted(of_metric.items()):
                family.add_metric([reason] if reason else [], times)
            yield family

    def _queries(self, counts: Mapping[Series, int]) -> CounterMetricFamily:
        return self._by_series(
            "dnsprobe_queries", "DNS queries sent, by the process tree that sent them.", self._labels, counts
        )

    def _encrypted(self, counts: Mapping[Series, int]) -> CounterMetricFamily:
        return self._by_series(
            "dnsprobe_encrypted_connections",
            "Connections to a port of DNS over TLS, whose queries cannot be read, by the process tree that made them.",
            [(at, label) for at, label in self._labels if label not in _OF_QUERIES],
            counts,
        )

    def _unread(self, counts: Mapping[Series, int]) -> CounterMetricFamily:
        return self._by_series(
            "dnsprobe_messages_unread",
            "Messages to a watched port that could not be read as a query, by reason and by the process tree that sent "
            "them.",
            [(at, "reason" if label == "qtype" else label) for at, label in self._labels if label != "domain"],
            counts,
        )

    @staticmethod
    def _by_series(
        name: str, documentation: str, labels: Sequence[tuple[int, str]], counts: Mapping[Series, int]
    ) -> CounterMetricFamily:
        family = CounterMetricFamily(name, documentation, labels=[label for _, label in labels])
        for series, number in sorted(counts.items()):
            family.add_metric([shown(series[at]) for at, _ in labels], number)
        return family


def _split(counts: Mapping[Series, int]) -> tuple[dict[Series, int], dict[Series, int], dict[Series, int]]:
    """Return the series of queries, of connections whose queries cannot be read, and of messages that are not read."""
    queries: dict[Series, int] = {}
    encrypted: dict[Series, int] = {}
    unread: dict[Series, int] = {}
    for series, number in counts.items():
        of_kind = queries if series.domain else encrypted if series.transport == DOT else unread
        of_kind[series] = number
    return queries, encrypted, unread


class DaemonLines:
    """The metrics of the daemon in one format.

    ``small_metrics`` returns those without series, and the snapshot. ``outcomes`` yields the lines of the metrics of
    answers, with their numbers.
    """

    def __init__(
        self,
        small_metrics: Callable[[], tuple[bytes, Snapshot]],
        queries: SeriesLines[Series, int],
        encrypted: SeriesLines[Series, int],
        unread: SeriesLines[Series, int],
        outcomes: Callable[[Outcomes], Iterable[tuple[SeriesLines[Any, Any], Mapping[Any, Any]]]],
    ) -> None:
        self._small_metrics, self._queries, self._encrypted, self._unread = small_metrics, queries, encrypted, unread
        self._outcomes = outcomes

    def render(self) -> Iterator[bytes]:
        """Yield all metrics of this moment."""
        small_metrics, now = self._small_metrics()
        yield small_metrics
        of_queries, of_encrypted, of_unread = _split(now.counts)
        yield self._queries.render(of_queries)
        yield self._encrypted.render(of_encrypted)
        yield self._unread.render(of_unread)
        if now.outcomes is not None:
            for lines, numbers in self._outcomes(now.outcomes):
                yield lines.render(numbers)

    def preparing(self, counts: Mapping[Series, int], outcomes: Outcomes | None = None) -> Iterator[None]:
        """Render the lines of new series, and yield after each part of them."""
        of_queries, of_encrypted, of_unread = _split(counts)
        yield
        yield from self._queries.preparing(of_queries)
        yield from self._encrypted.preparing(of_encrypted)
        yield from self._unread.preparing(of_unread)
        if outcomes is not None:
            for lines, numbers in self._outcomes(outcomes):
                yield from lines.preparing(numbers)


class Registry(CollectorRegistry):
    """dnsprobe's own metrics and the usual ``process_*``. ``labels`` are the optional labels that series have.

    An encoder of prometheus_client can use it like any other registry. :meth:`encode` returns the same faster.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], labels: Collection[str] = DEFAULT_LABELS) -> None:
        super().__init__()
        self._daemon = DaemonCollector(snapshot, labels)
        self.register(self._daemon)
        self._process = ProcessCollector(registry=self)
        self._rendered: dict[str, DaemonLines] = {}

    @staticmethod
    def content_type(accept: str) -> str:
        """Return the content type of the format that an Accept header asks for."""
        _, content_type = choose_encoder(accept)
        return content_type

    def encode(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that an Accept header asks for, and its content type."""
        encoder, content_type = choose_encoder(accept)
        # Keep the lines of the formats that were asked for last only: a stranger can ask for many.
        rendered = self._rendered.pop(content_type, None) or self._daemon.lines(encoder)
        self._rendered[content_type] = rendered
        if len(self._rendered) > _FORMATS_KEPT:
            del self._rendered[next(iter(self._rendered))]
        return b"".join(
            (*rendered.render(), encode(encoder, self._process.collect()), end_of_document(encoder))
        ), content_type

    def preparing(self, counts: Mapping[Series, int], outcomes: Outcomes | None = None) -> Iterator[None]:
        """Render the lines of new series in the formats that were asked for last, and yield after each part of them.

        The next :meth:`encode` of these numbers is fast then.
        """
        for rendered in list(self._rendered.values()):
            yield from rendered.preparing(counts, outcomes)
