"""The shipped rules and dashboard in a real Prometheus, which scrapes a real dnsprobe.

Prometheus finds dnsprobe twice, as two hosts of one job, so each sum over hosts is twice the number of one host.
Another Prometheus receives data from an agent.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dashboard
import pytest
import yaml
from conftest import HERE, IN_OWN_NET, PATIENCE, Service
from scraper import SHIPPED, Prometheus, documented, with_rules

HOSTS = ("one:10059", "two:10059")
UNIT = "nightly.service"
#: The limit is far below the number of trees.
CONFIGURATION = "domains: [watched.test, forbidden.test, oneshot.test, contained.test]\nmetrics: {max_series: 40}"

#: The variables of the dashboard: every choice is selected by name, and the windows contain scrapes.
CHOSEN = {
    "instance": "|".join(HOSTS),
    "domain": r"watched\\.test|forbidden\\.test|oneshot\\.test|contained\\.test",
    "unit": f".*|{UNIT}",
    "to": "local|remote",
    "__rate_interval": "1m",
    "__range": "1h",
}


def play(scene: str, *arguments: object) -> None:
    command = [*IN_OWN_NET, sys.executable, str(HERE / "scenes.py"), scene, *map(str, arguments)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)


def scraping(address: str, folder: Path) -> Prometheus:
    """Start a Prometheus that finds ``address`` in a file as each of the hosts."""
    targets = [{"targets": [address], "labels": {"instance": host}} for host in HOSTS]
    (folder / "targets.yaml").write_text(yaml.safe_dump(targets))
    job = {"job_name": "dnsprobe", "file_sd_configs": [{"files": ["targets.yaml"]}]}
    return Prometheus(folder, with_rules(folder) | {"scrape_configs": [job]}, "--storage.tsdb.path=data")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: run scripts/test, which unpacks Debian's")
    service = Service(CONFIGURATION, tmp_path_factory.mktemp("service"))
    yield service
    service.kill()


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Return a Prometheus that has data of every kind, and for which three alerts fire."""
    with ExitStack() as stack:
        play("many", 2, 13, 3, "www.watched.test")
        play("streams", "www.watched.test")
        play("contained", f"/system.slice/{UNIT}")
        server = scraping(service.url, tmp_path_factory.mktemp("prometheus"))
        stack.callback(server.stop)
        server.wait_for(f"count(instance_domain:dnsprobe_queries:rate5m) >= {len(HOSTS)}")
        play("many", 2, 101, 3, "www.watched.test")
        play("send", "www.forbidden.test", 1)
        # A scrape creates the series, so this one gets a place before the others reach the limit.
        service.get("/metrics")
        play("oneshots", 60, 8)
        service.configuration.write_text("domains: [a..b]")
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("reload failed")
        for alert in ("DnsprobeDomainSeen", "DnsprobeSeriesFolded", "DnsprobeReloadFailed"):
            server.wait_for(f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) >= {len(HOSTS)}')
        server.wait_for("domain:dnsprobe_queries:rate5m > 0")
        # No more queries are sent, so the numbers of the rules reach those of the metrics.
        server.wait_for("job:dnsprobe_queries_total:count == on () count(dnsprobe_queries_total)")
        yield server


def shipped() -> list[dict[str, Any]]:
    groups = [group for path in SHIPPED.glob("*.yaml") for group in yaml.safe_load(path.read_text("utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def names(kind: str) -> set[str]:
    return {rule[kind] for rule in shipped() if kind in rule}


def test_all_rules_are_loaded_and_evaluated(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == names("alert") | names("record")
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []


def test_exactly_the_expected_alerts_fire(prometheus: Prometheus) -> None:
    alerts = prometheus.ask("alerts")["alerts"]
    annotations = {
        (alert["labels"]["alertname"], alert["labels"].get("instance")): alert["annotations"] for alert in alerts
    }
    for host in HOSTS:
        assert {alert for alert, where in annotations if where == host} == {
            "DnsprobeDomainSeen",
            "DnsprobeSeriesFolded",
            "DnsprobeReloadFailed",
        }
        seen = annotations["DnsprobeDomainSeen", host]
        assert seen["summary"] == f"{host} asks for forbidden.test, which nobody should"
        assert re.match(rf"Asked by .*;{Path(sys.executable).name}( in \S+)?\. ", seen["description"])
    assert {where for _, where in annotations} == set(HOSTS)


def needs_answers(expression: str) -> bool:
    """Return whether an expression uses metrics that exist only if answers are tracked: see test_answer_rules.py."""
    return (
        re.search(r"dnsprobe_(responses?|unanswered|results|failures|queries_waiting|queries_untracked)", expression)
        is not None
    )


@pytest.mark.parametrize("record", sorted(record for record in names("record") if not needs_answers(record)))
def test_recording_rules_have_data(prometheus: Prometheus, record: str) -> None:
    series = prometheus.query(record)
    assert series
    if record.startswith("instance"):
        assert {labels["instance"] for labels, _ in series} == set(HOSTS)
    else:
        assert not any("instance" in labels for labels, _ in series)


def test_sums_over_hosts(prometheus: Prometheus) -> None:
    ((_, of_all),) = prometheus.query("job:dnsprobe_queries_total:count")
    of_each = {labels["instance"]: value for labels, value in prometheus.query("instance:dnsprobe_queries_total:count")}
    assert of_each.keys() == set(HOSTS)
    assert of_all == sum(of_each.values())
    for labels, without in prometheus.query("instance:dnsprobe_queries_total:count_without_tree"):
        assert without < of_each[labels["instance"]]


def test_reasons_in_the_rules_exist_in_the_metrics(prometheus: Prometheus) -> None:
    expressions = [rule["expr"] for rule in shipped() if not needs_answers(rule["expr"])]
    reasons = {reason for expression in expressions for reason in re.findall(r'reason!?="(\w+)"', expression)}
    assert reasons == {
        "ring_full",
        "segmented",
        "undecided",
        "results",
        "results_waiting",
        "firewall",
        "servers_full",
        "malformed",
        "more_questions",
    }
    found = prometheus.query('{__name__=~"dnsprobe_.+_total",reason!=""}')
    assert reasons <= {labels["reason"] for labels, _ in found}


def filled(text: str, chosen: dict[str, str] = CHOSEN) -> str:
    return re.sub(r"\$(\w+)", lambda name: chosen[name[1]], text)


def dashboard_queries(*, of_answers: bool) -> list[Any]:
    """Return the queries of the dashboard that need answers, or those that do not."""
    return [
        pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
        for panel in dashboard.dashboard()["panels"]
        for target in panel.get("targets", ())
        if needs_answers(target["expr"]) == of_answers
    ]


@pytest.mark.parametrize("query", dashboard_queries(of_answers=False))
def test_each_query_of_the_dashboard_has_data(prometheus: Prometheus, query: str) -> None:
    assert prometheus.query(filled(query))


def test_the_choices_of_the_dashboard(prometheus: Prometheus) -> None:
    offered = {}
    for variable in dashboard.variables():
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", filled(variable.get("definition", "")))
        if found:
            offered[variable["name"]] = set(prometheus.ask(f"label/{found[2]}/values", **{"match[]": found[1]}))
    assert offered["instance"] == set(HOSTS)
    assert offered["domain"] == {"watched.test", "forbidden.test", "oneshot.test", "contained.test"}
    assert UNIT in offered["unit"]


def test_an_agent_sends_the_data_that_the_rules_need(service: Service, tmp_path: Path) -> None:
    """The agent has the configuration of docs/fleet.md."""
    play("send", "www.watched.test", 7)
    config = documented(0)
    (target,), (receiver,) = config["scrape_configs"][0]["static_configs"], config["remote_write"]
    middle, host = tmp_path / "middle", tmp_path / "host"
    middle.mkdir()
    host.mkdir()
    with ExitStack() as stack:
        receiving = ("--web.enable-remote-write-receiver", "--storage.tsdb.path=data")
        server = Prometheus(middle, with_rules(middle), *receiving)
        stack.callback(server.stop)
        config["global"]["scrape_interval"] = "1s"
        target["targets"] = [service.url]
        receiver["url"] = f"{server.url}/api/v1/write"
        agent = Prometheus(host, config, "--enable-feature=agent", "--storage.agent.path=data")
        stack.callback(agent.stop)
        server.wait_for('instance_domain:dnsprobe_queries:rate5m{domain="watched.test",instance="web1.example"}')
        server.wait_for('domain:dnsprobe_queries:rate5m{domain="watched.test",job="dnsprobe"}')
        assert [value for _, value in server.query("up")] == [1]
        # docs/fleet.md says "about 65".
        exported = '{__name__=~"up|(dnsprobe|process)_.+",__name__!="dnsprobe_queries_total"}'
        ((_, own),) = server.query(f"count({exported})")
        assert 60 <= own <= 70
