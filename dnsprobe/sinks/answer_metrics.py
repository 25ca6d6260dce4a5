"""What became of queries, and how long answers took, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from dnsprobe.model import Series
from dnsprobe.pipeline.answers import Group, Outcomes
from dnsprobe.pipeline.latencies import COUNT_AT, SUM_AT, Sample
from dnsprobe.text import shown


class AnswerFamilies:
    """The metrics of answers. ``labels`` are the labels of queries, each with its place in :class:`Series`."""

    def __init__(self, labels: Sequence[tuple[int, str]]) -> None:
        self._labels = labels

    def large(self, now: Outcomes) -> Iterator[tuple[Callable[[Mapping[Any, Any]], Metric], Mapping[Any, Any]]]:
        """Yield the metrics of answers with many series: for each, what makes its family, and its numbers."""
        yield self._responses, now.responses
        yield self._unanswered, now.unanswered
        yield self._waiting, now.waiting
        yield self._untracked, now.untracked
        yield self._latencies, now.latencies

    def _responses(self, numbers: Mapping[tuple[Series, str], int]) -> CounterMetricFamily:
        return self._by_result(
            "dnsprobe_responses",
            "DNS queries that were answered, by the response code and by the process tree that sent them.",
            "rcode",
            numbers,
        )

    def _unanswered(self, numbers: Mapping[tuple[Series, str], int]) -> CounterMetricFamily:
        return self._by_result(
            "dnsprobe_unanswered",
            "DNS queries that were not answered, by the reason and by the process tree that sent them.",
            "reason",
            numbers,
        )

    def _by_result(
        self, name: str, documentation: str, label: str, numbers: Mapping[tuple[Series, str], int]
    ) -> CounterMetricFamily:
        family = CounterMetricFamily(name, documentation, labels=[*(label for _, label in self._labels), label])
        for (series, result), number in sorted(numbers.items()):
            family.add_metric([*(shown(series[at]) for at, _ in self._labels), result], number)
        return family

    @staticmethod
    def _waiting(numbers: Mapping[Group, int]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "dnsprobe_queries_waiting", "DNS queries that wait for their answer.", labels=Group._fields
        )
        for group, number in sorted(numbers.items()):
            family.add_metric([shown(label) for label in group], number)
        return family

    @staticmethod
    def _untracked(numbers: Mapping[Group, int]) -> CounterMetricFamily:
        family = CounterMetricFamily(
            "dnsprobe_queries_untracked",
            "DNS queries of which dnsprobe cannot find out whether they were answered.",
            labels=Group._fields,
        )
        for group, number in sorted(numbers.items()):
            family.add_metric([shown(label) for label in group], number)
        return family

    def _latencies(self, numbers: Mapping[Sample, float]) -> Metric:
        name = "dnsprobe_response_latency_seconds"
        family = Metric(
            name, "How long answered DNS queries waited for their answer, by domain, transport and unit.", "histogram"
        )
        has_unit = any(label == "unit" for _, label in self._labels)
        for sample, number in sorted(numbers.items()):
            labels = {"domain": shown(sample.domain), "transport": sample.transport}
            if has_unit:
                labels["unit"] = shown(sample.unit)
            if sample.at == COUNT_AT:
                family.add_sample(f"{name}_count", labels, number)
            elif sample.at == SUM_AT:
                family.add_sample(f"{name}_sum", labels, number)
            else:
                family.add_sample(f"{name}_bucket", {**labels, "le": floatToGoString(sample.bound)}, number)
        return family

    @staticmethod
    def small(now: Outcomes) -> Iterator[Metric]:
        """Yield the metrics of answers with few series."""
        unmatched = CounterMetricFamily(
            "dnsprobe_responses_unmatched", "Answers that fit no query that waits, by reason.", labels=["reason"]
        )
        for reason, number in sorted(now.unmatched.items()):
            unmatched.add_metric([reason], number)
        yield unmatched
        for name, documentation, label, numbers in (
            ("responses", "Answered queries of series that have left, by domain.", "rcode", now.responses_expired),
            ("unanswered", "Unanswered queries of series that have left, by domain.", "reason", now.unanswered_expired),
        ):
            expired = CounterMetricFamily(f"dnsprobe_{name}_expired", documentation, labels=["domain", label])
            for (domain, result), number in sorted(numbers.items()):
                expired.add_metric([shown(domain), result], number)
            yield expired
