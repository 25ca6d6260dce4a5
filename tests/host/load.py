"""dnsperf(1) at full speed, while the metrics are scraped once a second: each scrape, and what dnsperf saw."""

from __future__ import annotations

import re
import subprocess
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from real_resolvers import Resolver, Zone
from running import PATIENCE, Service
from scraped import samples_of

ZONE = Zone("load.test", {"www": "192.0.2.1"}, {"alias": "www"})
#: What is asked, one after the other.
QUESTIONS = "www.load.test A\nnone.load.test A\nalias.load.test A\nwww.load.test AAAA\n"
CONFIGURATION = "domains: [load.test]\njournal: {repeat: 1h}\nanswers: {timeout: 5s}\n"
#: How many queries wait at a time, and on how many sockets.
WAITING, SOCKETS = 100, 8
_LATENCY = "dnsprobe_response_latency_seconds"


@dataclass(frozen=True)
class Sums:
    """The sums of a scrape, of one transport. Each query should be in one of the others."""

    queries: int
    responses: int
    unanswered: int
    waiting: int
    untracked: int

    @property
    def results(self) -> int:
        """Return the sum of what becomes of queries."""
        return self.responses + self.unanswered + self.waiting + self.untracked


_METRICS = {
    "queries": "dnsprobe_queries_total",
    "responses": "dnsprobe_responses_total",
    "unanswered": "dnsprobe_unanswered_total",
    "waiting": "dnsprobe_queries_waiting",
    "untracked": "dnsprobe_queries_untracked_total",
}


def sums_of(text: str, transport: str) -> Sums:
    """Return the sums of a scrape."""
    return Sums(*(int(_total(text, _METRICS[field.name], transport)) for field in fields(Sums)))


def _total(text: str, metric: str, transport: str) -> float:
    return sum(value for labels, value in samples_of(metric, text) if labels["transport"] == transport)


@dataclass(frozen=True)
class Told:
    """What dnsperf says: how many queries it sent, how many got each response code, and the mean latency in seconds."""

    sent: int
    rcodes: Counter[str]
    latency: float


@dataclass(frozen=True)
class Load:
    """A run of dnsperf: all scrapes during it, and the numbers at its end: by rcode, and the mean latency."""

    told: Told
    scrapes: list[Sums]
    rcodes: Counter[str]
    latency: float
    #: The upper bounds of the buckets, in seconds.
    bounds: list[float]


def read(output: str) -> Told:
    """Return what dnsperf has printed."""

    def found(pattern: str) -> str:
        match = re.search(pattern, output)
        assert match, output
        return match[1]

    codes = re.findall(r"([A-Z]+) (\d+) \(", found(r"Response codes:(.*)"))
    return Told(
        int(found(r"Queries sent: +(\d+)")),
        Counter({name: int(times) for name, times in codes}),
        float(found(r"Average Latency \(s\): +(\S+)")),
    )


def measure(service: Service, resolver: Resolver, transport: str, seconds: int, folder: Path) -> Load:
    """Run dnsperf against a resolver that has ZONE. Nobody else may have asked for its names over this transport."""
    questions = folder / "questions"
    questions.write_text(QUESTIONS)
    options = ["-m", transport, "-l", str(seconds), "-q", str(WAITING), "-c", str(SOCKETS), "-T", "2"]
    command = ["dnsperf", "-s", "127.0.0.1", "-d", str(questions), *options]
    scrapes = []
    with resolver.net.entered():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while process.poll() is None:
            scrapes.append(sums_of(service.get("/metrics"), transport))
            time.sleep(1)
    finally:
        process.kill()
        output, _ = process.communicate(timeout=PATIENCE)
    told = read(output)
    until = time.monotonic() + PATIENCE
    while (last := sums_of(text := service.get("/metrics"), transport)).waiting:
        assert time.monotonic() < until, last
        time.sleep(0.1)
    rcodes: Counter[str] = Counter()
    for labels, value in samples_of(_METRICS["responses"], text):
        if labels["transport"] == transport:
            # For dnsperf, both are NOERROR.
            rcodes[labels["rcode"].replace("NODATA", "NOERROR")] += int(value)
    mean = _total(text, f"{_LATENCY}_sum", transport) / _total(text, f"{_LATENCY}_count", transport)
    bounds = sorted({float(labels["le"]) for labels, _ in samples_of(f"{_LATENCY}_bucket", text)})
    return Load(told, [*scrapes, last], rcodes, mean, bounds)


def differences(load: Load) -> list[str]:
    """Return what differs between the metrics and what dnsperf says, and which sums do not close."""
    last, told = load.scrapes[-1], load.told
    found = [f"a scrape does not close: {sums}" for sums in load.scrapes if sums.queries != sums.results]
    if last.queries != told.sent:
        found.append(f"{told.sent} queries were sent, {last.queries} are counted")
    if load.rcodes != told.rcodes:
        found.append(f"{told.rcodes} were answered, {load.rcodes} are counted")
    if last.unanswered != told.sent - told.rcodes.total() or last.untracked:
        found.append(f"{told.sent - told.rcodes.total()} had no answer, but {last}")
    buckets = [bisect_left(load.bounds, latency) for latency in (told.latency, load.latency)]
    if abs(buckets[0] - buckets[1]) > 1:
        found.append(f"the mean latencies are {told.latency} s and {load.latency} s, in buckets {buckets}")
    return found
