"""Counts of made-up process trees, as a daemon serves them and as ``dnsprobe tree`` reads them."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.exposition import generate_latest

from dnsprobe.model import Series
from dnsprobe.sinks.metrics import Registry, Snapshot
from dnsprobe.treeview.aggregate import Choice, TreeCounts, aggregate
from dnsprobe.treeview.client import Scrape, parse

URL = "http://127.0.0.1:10059/metrics"

COUNTS = {
    Series("example.test", "A", "udp", "remote", "dig", "nightly;make;sh;dig", "nightly.service", ""): 30,
    Series("example.test", "AAAA", "tcp", "remote", "dig", "nightly;make;sh;dig", "nightly.service", ""): 12,
    Series("example.test", "A", "udp", "remote", "curl", "nightly;make;curl", "nightly.service", ""): 7,
    Series("*.other.test", "A", "udp", "remote", "curl", "nightly;make;curl", "nightly.service", ""): 1,
    Series("other.test", "A", "udp", "remote", "make", "nightly;make", "cron.service", "3f4e3f4e3f4e"): 2,
    Series("other.test", "A", "udp", "remote", "app", "app", "", ""): 48,
    Series("other.test", "A", "udp", "remote", "(other)", "(other)", "", ""): 900,
    Series("", "", "dot", "remote", "browser", "sway;browser", "user@1000.service", ""): 13,
}


def scrape(counts: dict[Series, int] = COUNTS, labels: Sequence[str] = ("unit", "container")) -> Scrape:
    """Return the parsed answer of a daemon with these counts."""
    return parse(generate_latest(Registry(lambda: Snapshot(counts=counts), labels)).decode(), URL)


def chosen(choice: Choice = Choice(), counts: dict[Series, int] = COUNTS) -> TreeCounts:  # noqa: B008 - it is frozen
    return aggregate(scrape(counts), choice)
