"""The samples of one metric, from the text of a scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[dict[str, str], float]


def samples_of(metric: str, text: str) -> list[Sample]:
    """Return labels and value of each sample of a metric."""
    # Parsing the lines of all other metrics would take longer than the scrape.
    lines = [line for line in text.splitlines() if line.startswith((f"{metric}{{", f"{metric} "))]
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families("\n".join([*lines, ""]))  # type: ignore[no-untyped-call,unused-ignore]
        for sample in family.samples
    ]


def add_up(samples: Iterable[Sample], label: str) -> dict[str, int]:
    """Return the values of samples, added up by one label."""
    totals: Counter[str] = Counter()
    for labels, value in samples:
        totals[labels[label]] += int(value)
    return dict(totals)
