"""A real Prometheus, with the shipped rules or as an agent."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from conftest import HERE, PATIENCE, free_ports

SHIPPED = HERE.parents[1] / "packaging" / "prometheus"


def without_waits(path: Path) -> str:
    """Return a file of rules without the time that an alert has to last, and without intervals of its groups."""
    groups = yaml.safe_load(path.read_text("utf-8"))["groups"]
    for group in groups:
        group.pop("interval", None)
        for rule in group["rules"]:
            rule.pop("for", None)
    return yaml.safe_dump({"groups": groups})


class Prometheus:
    """A running Prometheus with its files in ``folder``. It listens on ``address``; port 0 means any free port."""

    def __init__(
        self, folder: Path, config: dict[str, Any], *options: str, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        port = port or free_ports(1)[0]
        self.url = f"http://{address}:{port}"
        self._log = folder / "log"
        command = ["prometheus", "--config.file=prometheus.yaml", f"--web.listen-address={address}:{port}", *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def ask(self, what: str, **parameters: str) -> Any:
        """Return the data in the answer of its API."""
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str, **parameters: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series."""
        found = self.ask("query", query=expression, **parameters)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def wait_for(self, expression: str) -> None:
        """Wait until an expression has a value."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self._process.poll() is None:
            with suppress(OSError):  # not listening yet
                if self.query(expression):
                    return
            time.sleep(0.2)
        raise AssertionError(f"nothing came of {expression}:\n{self._log.read_text('utf-8')}")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(PATIENCE)


def with_rules(folder: Path) -> dict[str, Any]:
    """Put the shipped rules into a folder, and return a configuration that evaluates them each second."""
    for path in SHIPPED.glob("*.yaml"):
        (folder / path.name).write_text(without_waits(path))
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    return {"global": every, "rule_files": ["dnsprobe-*.yaml"]}


def documented(number: int) -> Any:
    """Return an example of docs/fleet.md: the configuration of 0 an agent, 1 the server that scrapes; 2 the targets."""
    page = (HERE.parents[1] / "docs" / "fleet.md").read_text("utf-8")
    return yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[number])
