"""A process tree that asks more often than the alert of a rule allows has an entry, although its queries repeat."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conftest import IN_OWN_NET, PATIENCE, Program, Service, until

RULE = "domains:\n  - pattern: rates.test\n    alert: {{rate: {rate}, priority: err}}\njournal: {{unread: false}}\n"
#: Sends the same query until its standard input ends, at most 100,000 times, and prints how often.
ASKER = """
import select, socket, sys
query = bytes.fromhex("000101000001000000000000") + b"\\5often\\5rates\\4test\\0" + bytes.fromhex("00010001")
sent = 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.bind(("127.0.0.1", 0))
    while sent < 100_000 and not select.select([sys.stdin], [], [], 0.05)[0]:
        for _ in range(20):
            sent += client.sendto(query, ("127.0.0.1", 53)) == len(query)
print(sent)
"""


@contextlib.contextmanager
def asking() -> Iterator[Callable[[], int]]:
    """Ask meanwhile. Yield a function that ends it, and returns how many queries were sent."""
    command = [*IN_OWN_NET, sys.executable, "-c", ASKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asker:
        yield lambda: int(asker.communicate(timeout=PATIENCE)[0])
    assert asker.returncode == 0


def alerts(service: Service) -> list[int]:
    """Return the number of queries of each alert in the log."""
    pattern = re.compile(r"(?:^|;)python[0-9.]* sent ([0-9]+) queries of rates\.test within 86400 s, ", re.MULTILINE)
    return [int(queries) for queries in pattern.findall(service.err.read_text("utf-8"))]


def test_a_reload_changes_the_rate_and_keeps_the_counts(start: Callable[..., Service]) -> None:
    service = start(RULE.format(rate="1000000/10s"))
    with asking() as end:
        service.wait_for("asked for often.rates.test")
        until(lambda: service.value("dnsprobe_events_total") > 0 and queries(service) > 200, "200 queries")
        assert "(alert: rate)" not in service.err.read_text("utf-8")
        service.configuration.write_text(RULE.format(rate="100/1d"), encoding="utf-8")
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("(alert: rate)")
        before = queries(service)
        until(lambda: queries(service) > before + 1000, "1000 more queries")
        sent = end()
    until(lambda: queries(service) == sent, "the last query")
    # There is one in each window at most. The queries repeat, so they have one entry.
    (shown,) = alerts(service)
    assert 100 < shown <= before
    assert len(service.entries()) == 1
    assert service.stop() == 0


def queries(service: Service) -> int:
    return service.by("dnsprobe_queries_total", "domain").get("rates.test", 0)


def test_watch_shows_trees_above_the_rate(start_watch: Callable[..., Program], tmp_path: Path) -> None:
    path = tmp_path / "rate.yaml"
    path.write_text(RULE.format(rate="100/1d"))
    watch = start_watch("--config", str(path), "--json")

    def found() -> list[dict[str, Any]]:
        return [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]

    with asking() as end:
        until(lambda: any(entry["alert"] for entry in found()), "the alert")
        sent = end()
    assert watch.stop() == 0
    (alert,) = [entry for entry in found() if entry["alert"]]
    (query,) = [entry for entry in found() if not entry["alert"]]
    assert (alert["domain"], alert["alert"], alert["window_usec"]) == ("rates.test", ["rate"], 86400 * 10**6)
    assert alert["tree"] == query["tree"]
    assert 100 < alert["queries"] <= sent
    assert f"{sent} queries from 1 process tree, 1 shown, " in watch.err.read_text("utf-8")
