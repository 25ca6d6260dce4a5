"""The shipped rules and panels about answers in a real Prometheus, which scrapes a real dnsprobe that tracks answers.

A small server answers the processes of askers.py with each kind of answer. Nobody answers the queries for silent.test.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from conftest import HERE, IN_OWN_NET, PATIENCE, Service
from scraper import Prometheus
from test_prometheus_rules import CHOSEN, HOSTS, dashboard_queries, filled, names, needs_answers, play, scraping

CONFIGURATION = "domains: [answers.test, silent.test]\nanswers: {timeout: 300ms}"
FIRING = 'count(ALERTS{alertname="%s",alertstate="firing"}) >= 2'
#: Alerts that fire for one domain.
OF_DOMAINS = ("DnsprobeDomainFails", "DnsprobeDomainSilent")


def ask() -> None:
    """Send the queries of askers.py."""
    command = [*IN_OWN_NET, sys.executable, str(HERE / "askers.py")]
    subprocess.run(command, input=b"\n" * 3, stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Return a Prometheus that has results of every kind, and in which a domain without answers is noticed."""
    with ExitStack() as stack:
        service = Service(CONFIGURATION, tmp_path_factory.mktemp("service"))
        stack.callback(service.kill)
        server = scraping(service.url, tmp_path_factory.mktemp("prometheus"))
        stack.callback(server.stop)
        server.wait_for(f"count(dnsprobe_queries_waiting) >= {2 * 2 * len(HOSTS)}")
        until = time.monotonic() + PATIENCE
        # A rate sees a series from its second scrape on, so everybody asks more than once.
        while not all(server.query(FIRING % alert) for alert in (*OF_DOMAINS, "DnsprobeTreeSilent")):
            assert time.monotonic() < until
            ask()
            play("many", 1, 13, 2, "www.silent.test")
        server.wait_for("domain:dnsprobe_failures_per_result:ratio_rate5m > 0")
        server.wait_for("unit:dnsprobe_response_latency_seconds:p95_rate5m > 0")
        yield server


@pytest.mark.parametrize("record", sorted(record for record in names("record") if needs_answers(record)))
def test_recording_rules_have_data(prometheus: Prometheus, record: str) -> None:
    series = prometheus.query(record)
    assert series
    for labels, value in series:
        assert ("instance" in labels) is record.startswith("instance")
        assert value >= 0
        if "ratio" in record:
            assert value <= 1


def test_shares_of_failures(prometheus: Prometheus) -> None:
    for host in HOSTS:
        share = "instance_domain:dnsprobe_failures_per_result:ratio_rate5m"
        ((_, silent),) = prometheus.query(f'{share}{{instance="{host}",domain="silent.test"}}')
        ((_, answered),) = prometheus.query(f'{share}{{instance="{host}",domain="answers.test"}}')
        assert silent == 1
        # 34 of the 165 queries of askers.py fail. Some series may be in one scrape more than others.
        assert 0.1 < answered < 0.35


def test_alerts_name_the_domain_without_answers_and_no_other(prometheus: Prometheus) -> None:
    alerts = [alert for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"]
    firing = {(alert["labels"]["alertname"], alert["labels"].get("domain")) for alert in alerts}
    # Without its "for", one scrape in a burst is enough.
    firing.discard(("DnsprobeAnswersLate", "answers.test"))
    assert {(name, domain) for name, domain in firing if domain} == {(name, "silent.test") for name in OF_DOMAINS}
    trees = {alert["labels"]["tree"] for alert in alerts if alert["labels"]["alertname"] == "DnsprobeTreeSilent"}
    assert trees
    assert not any("ask-" in tree for tree in trees)
    for alert in alerts:
        assert "{{" not in str(alert["annotations"])


@pytest.mark.parametrize("query", dashboard_queries(of_answers=True))
def test_each_query_of_the_dashboard_has_data(prometheus: Prometheus, query: str) -> None:
    chosen = CHOSEN | {"domain": r"answers\\.test|silent\\.test"}
    found = prometheus.query(filled(query, chosen))
    assert found
    assert all(value >= 0 for _, value in found)
