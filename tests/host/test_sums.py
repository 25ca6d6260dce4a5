"""The sums of results are those of queries in each scrape, whoever else reads the counts at the same time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from conftest import HERE, IN_OWN_NET, Service
from prometheus_client import parser

#: Some versions of prometheus_client have no type hints.
_families: Any = parser.text_string_to_metric_families

#: Scrapes of each reader, and readers at the same time.
SCRAPES, READERS = 25, 3

# Processes that each ask a server of their own for a while, so that there are new series all the time.
ASKERS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from scenes import Server, message, set_comm
import socket
Server().start()
at = 0
while not os.path.exists(sys.argv[2]):
    at += 1
    child = os.fork()
    if child == 0:
        set_comm(b"ask-%d" % (at % 500))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.connect(("127.0.0.1", 53))
            for number in range(20):
                asker.send(message(f"n{number}.sums.test"))
                if number % 4:
                    asker.recv(512)
        os._exit(0)
    os.waitpid(child, 0)
"""


def sums(text: str) -> tuple[int, Counter[str]]:
    """Return the queries of a scrape, and their results with those that wait or are untracked."""
    queries, results = 0, Counter[str]()
    for family in _families(text):
        for sample in family.samples:
            if sample.name in {"dnsprobe_queries_total", "dnsprobe_queries_expired_total"}:
                queries += int(sample.value)
            elif re.fullmatch(
                r"dnsprobe_(responses|unanswered)(_expired)?_total|dnsprobe_queries_(waiting|untracked_total)",
                sample.name,
            ):
                results[sample.name] += int(sample.value)
    return queries, results


def of_page(text: str) -> tuple[int, int]:
    """Return the queries of a page, and the sum of their results with those that wait or are untracked."""
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    (table,) = re.findall(r'<div id="results" data-live>(.*?)</table>', text, re.DOTALL)
    numbers = re.findall(r'data-label="Queries">(?:<span class="bad">)?([\d,]+)', table)
    return json.loads(data)["nodes"][0][2], sum(int(number.replace(",", "")) for number in numbers)


def test_the_sums_close_while_others_read_and_series_leave(start: Callable[..., Service], tmp_path: Path) -> None:
    service = start("domains: [sums.test]\nanswers: {timeout: 100ms}\nmetrics: {max_series: 200, series_ttl: 1s}")
    end = tmp_path / "end"
    read: list[tuple[int, int]] = []
    pages: list[tuple[int, int]] = []
    command = [*IN_OWN_NET, sys.executable, "-c", ASKERS, str(HERE), str(end)]

    def scrape(_reader: int) -> None:
        for _ in range(SCRAPES):
            queries, results = sums(service.get("/metrics"))
            read.append((queries, results.total()))
            pages.append(of_page(service.get("/")))

    with subprocess.Popen(command) as askers, ThreadPoolExecutor(READERS) as readers:
        try:
            list(readers.map(scrape, range(READERS)))
        finally:
            end.touch()
        assert askers.wait(30) == 0
    assert [numbers for numbers in read if numbers[0] != numbers[1]] == []
    assert [numbers for numbers in pages if numbers[0] != numbers[1]] == []
    assert max(read)[0] > min(read)[0]
