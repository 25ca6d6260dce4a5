"""Series that leave for new ones, as a real Prometheus sees them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import HERE, IN_OWN_NET, PATIENCE, Service
from scraper import Prometheus

#: One series of eight is reserved for (other).
CONFIGURATION = "domains: [watched.test]\nmetrics: {max_series: 8, series_ttl: 4s}"
FIRST = [f"first{number}" for number in range(7)]


class Hosts:
    """A dnsprobe, the Prometheus that scrapes it, and the number of queries that were sent."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.sent = 0
        job = {"job_name": "dnsprobe", "static_configs": [{"targets": [service.url.removeprefix("http://")]}]}
        self.prometheus = Prometheus(
            folder, {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}, "--storage.tsdb.path=data"
        )

    def ask(self, comm: str) -> None:
        command = [*IN_OWN_NET, sys.executable, str(HERE / "scenes.py"), "named", comm, "www.watched.test"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)
        self.sent += 1

    def value(self, expression: str) -> float:
        ((_, value),) = self.prometheus.query(expression)
        return value

    def ask_until_named(self, comm: str) -> None:
        until = time.monotonic() + PATIENCE
        while not self.prometheus.query(f'dnsprobe_queries_total{{process="{comm}"}}'):
            assert time.monotonic() < until, f"{comm} got no series"
            self.ask(comm)
            time.sleep(1)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="takes prometheus: run scripts/test, which unpacks it")
def test_a_new_tree_gets_its_name_and_sums_stay_exact(tmp_path: Path) -> None:
    service = Service(CONFIGURATION, tmp_path)
    hosts = Hosts(service, tmp_path)
    try:
        for comm in FIRST:
            hosts.ask(comm)
        hosts.prometheus.wait_for("count(dnsprobe_queries_total) == 7")
        for comm in FIRST:
            hosts.ask(comm)
        hosts.prometheus.wait_for("sum(dnsprobe_queries_total) == 14")
        hosts.ask_until_named("late")
        everything = "sum(dnsprobe_queries_total) + sum(dnsprobe_queries_expired_total)"
        hosts.prometheus.wait_for(f"{everything} == {hosts.sent}")
        # At least one made room. Its series is stale: Prometheus does not go on showing its last value.
        left = int(hosts.value("dnsprobe_series_expired_total"))
        assert left >= 1
        assert hosts.value("sum(dnsprobe_queries_total)") == hosts.sent - 2 * left
        (gone, *_) = [
            comm for comm in FIRST if not hosts.prometheus.query(f'dnsprobe_queries_total{{process="{comm}"}}')
        ]
        # It comes back at zero, which Prometheus takes for what it is: a counter that began again.
        hosts.ask_until_named(gone)
        series = f'dnsprobe_queries_total{{process="{gone}"}}'
        hosts.prometheus.wait_for(f"{everything} == {hosts.sent}")
        assert hosts.value(f"resets({series}[5m])") == 1
        # From 1 to 2, and then what was asked since it came back.
        again = hosts.value(series)
        assert hosts.value(f"increase({series}[5m])") >= 1 + again
    finally:
        hosts.prometheus.stop()
        service.kill()
