"""Measure what the series of many hosts cost: memory of a Prometheus server and an agent, and octets of remote write.

Usage: .venv/bin/python benchmarks/fleet_cost.py [HOSTS [SERIES [SCRAPES]]]

Needs prometheus on the PATH, or where scripts/test unpacks it. An agent scrapes one dnsprobe with the made-up series of
scrape_cost.py as if it were many hosts, and writes to another Prometheus. Reads the metrics of both before and after.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families
from scrape_cost import Served

_INTERVAL = 10
_UNPACKED = Path(__file__).parents[1] / ".venv/prometheus/usr/bin"
_MB = 1 << 20


class _Prometheus:
    """A running Prometheus."""

    def __init__(self, stack: ExitStack, configuration: Mapping[str, object], *options: str) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "config.yaml").write_text(yaml.safe_dump(configuration))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        command = ["prometheus", "--config.file=config.yaml", f"--web.listen-address={self.address}", *options]
        path = f"{_UNPACKED}{os.pathsep}{os.environ['PATH']}"
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, env={**os.environ, "PATH": path}
            )
        stack.callback(self._process.wait)
        stack.callback(self._process.terminate)
        while self._process.poll() is None:
            with suppress(OSError):
                self.numbers()
                return
            time.sleep(0.1)
        sys.exit((folder / "log").read_text())

    def numbers(self) -> dict[str, float]:
        """Return its metrics about itself, each added up over its labels."""
        with urllib.request.urlopen(f"http://{self.address}/metrics") as answer:
            text = answer.read().decode()
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call,unused-ignore]
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
        return totals


def main() -> None:
    """Print the cost of a series and of a sample."""
    hosts, series, scrapes = (
        int(sys.argv[at]) if len(sys.argv) > at else default for at, default in ((1, 10), (2, 10_000), (3, 6))
    )
    with ExitStack() as stack:
        served = Served("dnsprobe", series)
        stack.callback(served.stop)
        job = {
            "job_name": "dnsprobe",
            "static_configs": [
                # Prometheus scrapes a target only once, whatever its labels. __param_ makes a target different.
                {
                    "targets": [f"127.0.0.1:{served.port}"],
                    "labels": {"instance": f"web{host}.example", "__param_host": str(host)},
                }
                for host in range(hosts)
            ],
        }
        middle = _Prometheus(stack, {}, "--web.enable-remote-write-receiver", "--storage.tsdb.path=data")
        config = {
            "global": {"scrape_interval": f"{_INTERVAL}s"},
            "scrape_configs": [job],
            "remote_write": [{"url": f"http://{middle.address}/api/v1/write"}],
        }
        before = middle.numbers()
        agent = _Prometheus(stack, config, "--enable-feature=agent", "--storage.agent.path=data")
        agent_before = agent.numbers()
        wanted = hosts * series * scrapes
        while middle.numbers().get("prometheus_tsdb_head_samples_appended_total", 0) < wanted:
            served.count_more()
            time.sleep(_INTERVAL / 2)
        after, agent_after = middle.numbers(), agent.numbers()
        held = after["prometheus_tsdb_head_series"]
        samples = agent_after["prometheus_remote_storage_samples_total"]
        octets = agent_after["prometheus_remote_storage_bytes_total"]
        print(f"{hosts} hosts with {series:,} series each, {scrapes} scrapes: {held:,.0f} series in the middle")
        for name, was, now in (("the middle", before, after), ("the agent", agent_before, agent_after)):
            for what in ("process_resident_memory_bytes", "go_memstats_heap_inuse_bytes"):
                more = now[what] - was[what]
                print(f"{name:<10} {what:<30} {now[what] / _MB:7.1f} MB, {more / held:6.0f} octets more a series")
        print(f"remote write {octets / _MB:.1f} MB for {samples:,.0f} samples: {octets / samples:.1f} octets each")


if __name__ == "__main__":
    main()
