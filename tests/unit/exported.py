"""The metrics and labels that dnsprobe exports, taken from its registry with a sample in each metric."""

from __future__ import annotations

import math
from dataclasses import replace

from dnsprobe.model import OPTIONAL_LABELS, Series
from dnsprobe.pipeline.answers import Group, Outcomes
from dnsprobe.pipeline.latencies import COUNT_AT, SUM_AT, Sample
from dnsprobe.sinks.metrics import Registry, Snapshot

#: A snapshot that gives each metric at least one sample.
_FULL = Snapshot(
    counts={
        Series("watched.test", "A", "udp", "remote", "dig", "bash;dig", "session-3.scope", ""): 3,
        Series("", "", "dot", "remote", "firefox", "sway;firefox", "session-3.scope", ""): 1,
        Series("", "malformed", "udp", "remote", "nmap", "bash;nmap", "session-3.scope", ""): 1,
    },
    hooks=[("udp4", "ip_send_skb", "fentry", "ip_send_skb")],
    verified={"udp4": True},
    exceeded={("ada", "", "names"): 1},
)

_QUERIES = Series("watched.test", "A", "udp", "remote", "dig", "bash;dig", "session-3.scope", "")
#: What became of queries: exported only if answers are tracked.
_OUTCOMES = Outcomes(
    responses={(_QUERIES, "NXDOMAIN"): 1},
    unanswered={(_QUERIES, "timeout"): 1},
    responses_expired={("watched.test", "NOERROR"): 1},
    unanswered_expired={("watched.test", "closed"): 1},
    waiting={Group("watched.test", "udp"): 1},
    untracked={Group("watched.test", "udp"): 0},
    unmatched={"late": 1},
    latencies={Sample("watched.test", "udp", "session-3.scope", at, math.inf): 1 for at in (0, COUNT_AT, SUM_AT)},
)

#: Prometheus adds one metric for each target, and the labels that identify the target.
OF_PROMETHEUS = {"up": {"job", "instance"}}
OF_TARGETS = {"job", "instance"}


def exported() -> dict[str, set[str]]:
    """Return the labels of each metric by its name, with all optional ones, as a scrape shows them."""
    found: dict[str, set[str]] = {}
    for family in Registry(lambda: replace(_FULL, outcomes=_OUTCOMES), OPTIONAL_LABELS).collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def names_with_answers() -> set[str]:
    """Return the names of all metrics, those of answers and the names of histograms among them."""
    families = list(Registry(lambda: replace(_FULL, outcomes=_OUTCOMES)).collect())
    histograms = {family.name for family in families if family.type == "histogram"}
    return {sample.name for family in families for sample in family.samples} | histograms
