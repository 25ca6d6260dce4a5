"""Counts of made-up process trees, as a daemon serves them and as ``dnsprobe tree`` reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client.exposition import generate_latest

from dnsprobe.model import Series
from dnsprobe.pipeline.answers import Group, Outcomes
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

_DIG, _DIG_TCP, _CURL, _CURL_OTHER, _MAKE, _APP, _FOLDED, _ = COUNTS
#: What became of these queries. Of the 48 queries of app, 3 wait; of the 900 that are folded, 100 are untracked.
OUTCOMES = Outcomes(
    responses={
        (_DIG, "NOERROR"): 20,
        (_DIG, "NXDOMAIN"): 10,
        (_DIG_TCP, "NODATA"): 12,
        (_CURL, "SERVFAIL"): 4,
        (_CURL, "NOERROR"): 3,
        (_CURL_OTHER, "REFUSED"): 1,
        (_MAKE, "(other)"): 1,
        (_APP, "NOERROR"): 40,
        (_FOLDED, "NOERROR"): 800,
    },
    unanswered={(_MAKE, "superseded"): 1, (_APP, "timeout"): 5},
    waiting={Group("other.test", "udp"): 3, Group("example.test", "udp"): 0},
    untracked={Group("other.test", "udp"): 100},
    unmatched={"late": 0},
)


def scrape(
    counts: Mapping[Series, int] = COUNTS,
    labels: Sequence[str] = ("unit", "container"),
    outcomes: Outcomes | None = None,
) -> Scrape:
    """Return the parsed answer of a daemon with these counts, and outcomes if it tracks answers."""
    return parse(generate_latest(Registry(lambda: Snapshot(counts=counts, outcomes=outcomes), labels)).decode(), URL)


def chosen(
    choice: Choice = Choice(),  # noqa: B008 - it is frozen
    counts: Mapping[Series, int] = COUNTS,
    outcomes: Outcomes | None = None,
) -> TreeCounts:
    return aggregate(scrape(counts, outcomes=outcomes), choice)
