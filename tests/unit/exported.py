"""The metrics and labels that dnsprobe exports, taken from its registry with a sample in each metric."""

from __future__ import annotations

from dnsprobe.model import OPTIONAL_LABELS, Series
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

#: Prometheus adds one metric for each target, and the labels that identify the target.
OF_PROMETHEUS = {"up": {"job", "instance"}}
OF_TARGETS = {"job", "instance"}


def exported() -> dict[str, set[str]]:
    """Return the labels of each metric by its name, with all optional ones, as a scrape shows them."""
    found: dict[str, set[str]] = {}
    for family in Registry(lambda: _FULL, OPTIONAL_LABELS).collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found
