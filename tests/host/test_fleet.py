"""A small fleet: a dnsprobe in each of several networks, and a central Prometheus that adds up their counts.

Both ways of docs/fleet.md are tested: one Prometheus finds the hosts in a file and scrapes them; or an agent on each
host scrapes over loopback and writes to another Prometheus. Hooks see the senders of all networks, so each host
watches different names, by a rule that has the same name on all hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import HERE, PATIENCE, Service
from networks import Net
from scraper import SHIPPED, Prometheus, documented, with_rules

HOSTS = ("web1.example", "web2.example", "db1.example")
PORT = 10059
CENTRE = "192.0.2.1"
RULE = "watched names"
RECEIVING = ("--web.enable-remote-write-receiver", "--storage.tsdb.path=data")


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    net: Net
    service: Service

    @property
    def asked(self) -> str:
        """The domain that only this host watches."""
        return f"{self.name.partition('.')[0]}.fleet.test"

    def play(self, scene: str, *arguments: object) -> int:
        """Run a scene in its network and return the number of queries that were sent."""
        command = [sys.executable, str(HERE / "scenes.py"), scene, *map(str, arguments)]
        with self.net.entered():
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=PATIENCE)
        return int(json.loads(done.stdout)["sent"])

    def target(self) -> dict[str, Any]:
        target: dict[str, Any] = documented(2)[0]
        return target | {"targets": [f"{self.address}:{PORT}"], "labels": {"instance": self.name}}


@dataclass(frozen=True)
class Fleet:
    """The queries sent on each host, and the two servers that collected the counts."""

    sent: dict[str, int]
    servers: dict[str, Prometheus]


def make_host(stack: ExitStack, centre: Net, number: int, folder: Path) -> Host:
    net, address = Net(), f"192.0.2.{10 + number}"
    stack.callback(net.close)
    cable = ["ip", "link", "add", "eth0", "netns", net.path, "type", "veth"]
    subprocess.run([*cable, "peer", "name", f"host{number}", "netns", centre.path], check=True)
    net.link("eth0", address, CENTRE)
    centre.link(f"host{number}", CENTRE, address)
    name = HOSTS[number]
    folder.mkdir()
    rules = [{"name": RULE, "pattern": f"{name.partition('.')[0]}.fleet.test"}]
    with net.entered():
        service = Service(yaml.safe_dump({"domains": rules}), folder, listen=f"0.0.0.0:{PORT}")
    stack.callback(service.kill)
    return Host(name, address, net, service)


def start_agent(stack: ExitStack, host: Host, receiver: Prometheus, folder: Path) -> None:
    config = documented(0)
    config["global"]["scrape_interval"] = "1s"
    (target,), (write,) = config["scrape_configs"][0]["static_configs"], config["remote_write"]
    assert target["targets"] == [f"127.0.0.1:{PORT}"]
    target["labels"] = {"instance": host.name}
    write["url"] = f"{receiver.url}/api/v1/write"
    folder.mkdir()
    with host.net.entered():
        stack.callback(Prometheus(folder, config, "--enable-feature=agent", "--storage.agent.path=data").stop)


def write_targets(folder: Path, hosts: list[Host]) -> None:
    """Write the file of targets and replace the old one in one step, as the page recommends."""
    (folder / "new").write_text(yaml.safe_dump([host.target() for host in hosts]))
    os.replace(folder / "new", folder / "hosts.yaml")


def play_all(hosts: list[Host], sent: dict[str, int], times: int) -> None:
    for number, host in enumerate(hosts, 2):
        sent[host.name] += host.play("many", number, 7 * times, 3, host.asked)
        sent[host.name] += host.play("send", f"www.{host.asked}", 101 * number * times)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Return a fleet whose queries have been sent and collected. The tests run in the network of the centre."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: run scripts/test, which unpacks Debian's")
    folder = tmp_path_factory.mktemp("fleet")
    folders = {name: folder / name for name in ("scraping", "receiving")}
    for each in folders.values():
        each.mkdir()
    sent = dict.fromkeys(HOSTS, 0)
    with ExitStack() as stack:
        centre = Net()
        stack.callback(centre.close)
        hosts = [make_host(stack, centre, number, folder / f"host{number}") for number in range(len(HOSTS))]
        stack.enter_context(centre.entered())
        (job,) = documented(1)["scrape_configs"]
        job["file_sd_configs"][0]["files"] = ["hosts.yaml"]
        write_targets(folders["scraping"], hosts[:-1])
        config = with_rules(folders["scraping"]) | {"scrape_configs": [job]}
        scraping = Prometheus(folders["scraping"], config, "--storage.tsdb.path=data")
        stack.callback(scraping.stop)
        receiving = Prometheus(folders["receiving"], with_rules(folders["receiving"]), *RECEIVING, address=CENTRE)
        stack.callback(receiving.stop)
        receiving.wait_for("vector(1)")
        for number, host in enumerate(hosts):
            start_agent(stack, host, receiving, folder / f"agent{number}")
        play_all(hosts, sent, 1)
        scraping.wait_for(f"count(count by (instance) (dnsprobe_queries_total)) == {len(HOSTS) - 1}")
        assert {labels["instance"] for labels, _ in scraping.query("up == 1")} == set(HOSTS[:-1])
        # Add one more host while the others run.
        write_targets(folders["scraping"], hosts)
        for server in (scraping, receiving):
            server.wait_for(f"count(up == 1) == {len(HOSTS)}")
            server.wait_for(f"count(count by (instance) (dnsprobe_queries_total)) == {len(HOSTS)}")
        play_all(hosts, sent, 2)
        for server in (scraping, receiving):
            server.wait_for(f"sum(dnsprobe_queries_total) == {sum(sent.values())}")
            server.wait_for(f"count(instance:dnsprobe_queries:rate5m > 0) == {len(HOSTS)}")
            server.wait_for("job:dnsprobe_queries_total:count == on () count(dnsprobe_queries_total)")
        yield Fleet(sent, {"scraping": scraping, "receiving": receiving})


@pytest.fixture(params=["scraping", "receiving"])
def server(fleet: Fleet, request: pytest.FixtureRequest) -> Prometheus:
    return fleet.servers[request.param]


def test_the_sum_of_each_host_is_exact(fleet: Fleet, server: Prometheus) -> None:
    of_each = server.query("sum by (instance) (dnsprobe_queries_total)")
    assert {labels["instance"]: value for labels, value in of_each} == fleet.sent


def test_the_sum_of_all_hosts_is_exact(fleet: Fleet, server: Prometheus) -> None:
    (of_all,) = server.query("sum by (domain, transport) (dnsprobe_queries_total)")
    assert of_all == ({"domain": RULE, "transport": "udp"}, sum(fleet.sent.values()))


def test_both_ways_have_the_same_series(fleet: Fleet) -> None:
    scraped, written = (
        {frozenset(labels.items()): value for labels, value in server.query("dnsprobe_queries_total")}
        for server in fleet.servers.values()
    )
    assert scraped == written
    # On each host, one process sends one type, and two, three or four other processes send three types each.
    assert len(scraped) == sum(1 + 3 * processes for processes in (2, 3, 4))


def recorded(level: str) -> list[str]:
    groups = yaml.safe_load((SHIPPED / "dnsprobe-recording.yaml").read_text("utf-8"))["groups"]
    names = [rule["record"] for group in groups for rule in group["rules"]]
    return [name for name in names if name.startswith(level)]


#: The rules for all hosts, each with the rule for one host that it adds up. These hosts do not track answers:
#: tests/unit/prometheus/recording.yaml has the rules about them, on several hosts.
ADDED_UP = {
    name: name.replace("job:", "instance:") if name.startswith("job:") else f"instance_{name}"
    for name in recorded("")
    if not name.startswith("instance") and ":dnsprobe_queries" in name
}


@pytest.mark.parametrize("of_all", ADDED_UP)
def test_the_rules_add_up_all_hosts(server: Prometheus, of_all: str) -> None:
    of_each = ADDED_UP[of_all]
    assert {labels["instance"] for labels, _ in server.query(of_each)} == set(HOSTS)
    # One query for one moment, because the rules have new values each second.
    joined = server.query(f"{of_all} / sum without (instance) ({of_each})")
    assert joined
    for labels, ratio in joined:
        assert "instance" not in labels
        assert ratio == pytest.approx(1, abs=1e-12)  # floating point: the order of additions differs
    ((_, series),) = server.query("job:dnsprobe_queries_total:count")
    assert series == sum(1 + 3 * processes for processes in (2, 3, 4))


def test_a_domain_of_all_hosts_is_one_series(server: Prometheus) -> None:
    ((labels, value),) = server.query("domain:dnsprobe_queries:rate5m")
    assert labels == {"__name__": "domain:dnsprobe_queries:rate5m", "job": "dnsprobe", "domain": RULE}
    assert value > 0
