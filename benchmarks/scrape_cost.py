"""Measure what a scrape of many series costs: time until the last octet, size, and memory of the daemon.

Usage: .venv/bin/python benchmarks/scrape_cost.py [SCRAPES [SERIES]]

Two daemons without hooks hold the same made-up series. Most belong to ended processes; one in ten belongs to a process
that still runs, so its counter is in the maps of the kernel and has grown before each scrape. One daemon is plain
dnsprobe, the other uses the encoder of prometheus_client for all series. They are scraped alternately over loopback.
Prints medians of all rounds: time until everything has arrived, and CPU time of the daemon.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

from prometheus_client.exposition import choose_encoder

from dnsprobe.commands.run import Daemon
from dnsprobe.config import main as config
from dnsprobe.config.source import Source
from dnsprobe.kernel import abi
from dnsprobe.model import Count
from dnsprobe.sinks.metrics import Registry

_FORMATS = {"text": "text/plain;version=0.0.4", "OpenMetrics": "application/openmetrics-text;version=1.0.0"}
_CODINGS = {"": "identity", "gzip": "gzip"}
_KINDS = [(form, coding) for form in _FORMATS for coding in _CODINGS]
_ENCODERS = ("dnsprobe", "prometheus_client")

_DOMAINS = 8
_QTYPES = (1, 28)
#: One of this number of series belongs to a process that still runs.
_LIVE_SHARE = 10
_WORDS = (
    "sshd",
    "bash",
    "make",
    "python3",
    "gitlab-runner",
    "containerd-shi",
    "kworker/u8:1-ev",
    "cron",
    "sh",
    "node",
    "curl",
)


def _tree(number: int) -> list[str]:
    """Return the comms of a tree from below pid 1 on: 60 to 200 octets, different for each number."""
    choose = random.Random(number)
    wanted = choose.randint(60, 190)
    names = [f"job{number}"]
    while len(";".join(names)) < wanted:
        names.append(choose.choice(_WORDS))
    return names


def _fill(daemon: Daemon, series: int) -> None:
    session = daemon._session
    rules = session.rules.rules
    for number in range(series):
        at, qtype = divmod(number, len(_QTYPES))
        at, domain = divmod(at, _DOMAINS)
        names = _tree(at)
        queries = random.Random(number).randint(1, 10_000_000)
        if at % _LIVE_SHARE:
            unit = f"session-{at % 30}.scope"
            session.totals.add_final(
                Count(
                    rules[domain], ("A", "AAAA")[qtype], "udp", "remote", names[-1], ";".join(names), unit, "", queries
                )
            )
            continue
        # The entries that the BPF program makes at the first query of a process. No process has such a pid.
        start_ns, tgid = 10**9 + at, (1 << 22) + at
        chain = [(start_ns - level, tgid - level, name) for level, name in enumerate(reversed(names))] + [
            (1, 1, "systemd")
        ]
        packed = abi.CHAIN_HEAD.pack(len(chain), 0, 1, len(chain), 0, 0, 0) + b"".join(
            abi.PROCESS.pack(start, pid, 0, name.encode()) for start, pid, name in chain
        )
        maps = session.probe.maps
        # Only the kernel writes ancestries, so the typed map cannot.
        maps.ancestries._raw.set(abi.PROCESS_KEY.pack(start_ns, tgid, 0), packed.ljust(abi.CHAIN_BYTES, b"\0"))
        key = (start_ns, tgid, rules[domain].id, _QTYPES[qtype], abi.TRANSPORTS.index("udp"), abi.OTHER_SERVER)
        maps.counters.put(key, queries)


def _encode(registry: Registry, accept: str) -> tuple[bytes, str]:
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


def _count_more(daemon: Daemon) -> None:
    counters = daemon._session.probe.maps.counters
    counters.set_many([(key, queries + 1) for key, queries in counters.items()])


async def _serve(daemon: Daemon) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, _count_more, daemon)
    daemon._server.start()
    print(daemon._server.address[1], flush=True)
    await stop.wait()
    await daemon._server.stop()


def _daemon(encoder: str, series: int) -> None:
    """Serve made-up series until SIGTERM; print the port."""
    if encoder == "prometheus_client":
        Registry.encode = _encode  # type: ignore[method-assign, assignment] # the same call, without keeping lines
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        domains = [f"service{number}.example.test" for number in range(_DOMAINS)]
        # An eighth of the limit is reserved for queries without a series of their own.
        file.write(f"domains: {domains}\nmetrics: {{listen: '127.0.0.1:0', max_series: {series * 8 // 7 + 8}}}\n")
        file.flush()
        settings = config.load(file.name)
    daemon = Daemon(settings, "console", Source())
    _fill(daemon, series)
    asyncio.run(_serve(daemon))


class Served:
    """A daemon in a separate process, and one connection to it."""

    def __init__(self, encoder: str, series: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", encoder, str(series)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self._client = http.client.HTTPConnection("127.0.0.1", self.port)

    def _ask(self, path: str, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        self._client.request("GET", path, headers=headers)
        answer = self._client.getresponse()
        return answer, answer.read()

    def _cpu(self) -> float:
        # Nanoseconds of the main thread (Documentation/scheduler/sched-stats.rst), which is the only thread.
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[0]) / 1e6

    def count_more(self) -> None:
        """Add one query to each process that still runs."""
        self._process.send_signal(signal.SIGUSR1)

    def scrape(self, form: str, coding: str) -> tuple[tuple[float, float], bytes]:
        """Return milliseconds, milliseconds on a CPU, and the body."""
        self.count_more()
        for _ in range(2):  # when the second is answered, the event loop has handled the signal
            self._ask("/-/healthy", {})
        cpu, before = self._cpu(), perf_counter()
        answer, body = self._ask("/metrics", {"Accept": _FORMATS[form], "Accept-Encoding": _CODINGS[coding]})
        taken = (perf_counter() - before) * 1000, self._cpu() - cpu
        if answer.status != 200 or (answer.headers["Content-Encoding"] or "") != coding:
            sys.exit(f"{answer.status} {answer.headers}")
        return taken, body

    def memory(self) -> tuple[float, float]:
        """Return the MB that are resident now, and their peak since :meth:`forget_peak`."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        resident, peak = (int(re.findall(rf"{name}:\s*(\d+)", status)[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return resident, peak

    def forget_peak(self) -> None:
        """Reset the peak of memory to the present size (proc(5), clear_refs)."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def _compare(served: dict[str, Served], scrapes: int, series: int) -> None:
    for encoder, daemon in served.items():
        before, _ = daemon.memory()
        daemon.forget_peak()
        (taken, cpu), body = daemon.scrape("text", "")
        found = body.count(b"\ndnsprobe_queries_total{")
        if found != series:
            sys.exit(f"{encoder} serves {found} of {series} series")
        resident, peak = daemon.memory()
        print(
            f"{encoder:<18} first scrape {taken:.0f} ms, {cpu:.0f} of them on a CPU; "
            f"{before:.1f} MB resident before it, {peak:.1f} at most in it, {resident:.1f} after"
        )
        daemon.forget_peak()
    times: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    sizes: dict[tuple[str, str], int] = {}
    for _ in range(scrapes):
        for kind in _KINDS:
            for encoder, daemon in served.items():
                durations, body = daemon.scrape(*kind)
                times[encoder, *kind].append(durations)
                sizes[kind] = len(body)
    for kind in _KINDS:
        (ours, our_cpu), (library, library_cpu) = (
            map(median, zip(*times[encoder, *kind], strict=True)) for encoder in _ENCODERS
        )
        print(
            f"{' '.join(kind):<18}{sizes[kind]:9,} octets, {sizes[kind] / series:5.1f} a series  {ours:5.1f} ms, "
            f"{our_cpu:5.1f} on a CPU; with prometheus_client alone {library:5.1f}, {library_cpu:5.1f}: "
            f"{ours / library:.2f} and {our_cpu / library_cpu:.2f} times"
        )
    for encoder, daemon in served.items():
        resident, peak = daemon.memory()
        print(f"{encoder:<18} {resident:.1f} MB resident after {scrapes * len(_KINDS)} more, {peak:.1f} at most")


def main() -> None:
    """Print the cost of a scrape."""
    if sys.argv[1:2] == ["--serve"]:
        _daemon(sys.argv[2], int(sys.argv[3]))
        return
    scrapes = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    series = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, {series:,} series, {scrapes} rounds")
    with ExitStack() as stack:
        served = {}
        for encoder in _ENCODERS:
            served[encoder] = Served(encoder, series)
            stack.callback(served[encoder].stop)
        _compare(served, scrapes, series)


if __name__ == "__main__":
    main()
