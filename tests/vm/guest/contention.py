"""Askers that interrupt each other, a program that hammers maps, and rules that change meanwhile.

What was sent is compared with what dnsprobe counted and showed.

Shared by the tests on the host, the tests in guests, and benchmarks/exactness.py. ``senders/contend.c`` sends, and
``senders/hammer.c`` hammers.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from scraped import add_up, samples_of

#: Two sets of rules that take turns. Some kinds of names have the same rule in both, the others change theirs.
_COMMON = [
    "exact.test",
    "matched.exact.test",
    "ads*.wild.exact.test",
    "deep.exact.test",
    "long.exact.test",
    "parts.exact.test",
]
RULE_SETS = ([*_COMMON, "new.exact.test"], [*_COMMON, "=other.exact.test", "'*.exact.invalid'"])

#: The kind of names that a rule counts, by the domain of the rule. The kinds whose rule changes are one.
CHANGING = "changing"
_KINDS = {
    "matched.exact.test": "matched",
    "ads*.wild.exact.test": "wild",
    "deep.exact.test": "deep",
    "long.exact.test": "long",
    "parts.exact.test": "parts",
    "exact.test": CHANGING,
    "=other.exact.test": CHANGING,
    "new.exact.test": CHANGING,
}

#: Seconds after a change of the rules until the next one.
_RELOAD_EVERY = 0.3

#: How often to look whether the rules have changed, and whether the counts have all queries.
_LOOKS, _SCRAPES = 120, 30
_PROCESSES = 4
_URGENT = 4
_SEGMENTS = 4

#: Numbers of queries by comm of the process and kind of name.
Table = Counter[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Sent:
    """What the askers sent: by comm and kind of name, and by pid; and the comm of each pid."""

    table: Table
    by_pid: Counter[int]
    comms: dict[int, str]

    @property
    def total(self) -> int:
        return self.table.total()

    def __add__(self, more: Sent) -> Sent:
        """Return both. The processes must not be the same."""
        return Sent(self.table + more.table, self.by_pid + more.by_pid, self.comms | more.comms)

    @property
    def calls(self) -> int:
        """Return the number of sends: some have several queries."""
        parts = sum(count for (_, kind), count in self.table.items() if kind == "parts")
        return self.total - parts + parts // _SEGMENTS


def send(program: Path, queries: int, protocol: str = "udp", *, new_names: bool = False) -> Sent:
    """Send ``queries`` from ordinary processes, while real-time processes interrupt them and send, too."""
    command = [str(program), protocol, str(queries), str(_PROCESSES), str(_URGENT), "new" if new_names else "few"]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    table: Table = Counter()
    by_pid: Counter[int] = Counter()
    comms = {}
    for line in output.splitlines():
        comm, pid, kind, count = line.split()
        table[comm, CHANGING if kind in {"other", "new"} else kind] += int(count)
        by_pid[int(pid)] += int(count)
        comms[int(pid)] = comm
    return Sent(table, by_pid, comms)


@contextmanager
def hammering(hammer: Path) -> Iterator[None]:
    """Keep the maps of another program busy, on all processors."""
    with subprocess.Popen([str(hammer)], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            yield
        finally:
            program.terminate()
            calls = int(program.stdout.read()) if program.stdout else 0
    assert calls > 0


@dataclass(frozen=True, slots=True)
class Counted:
    """What dnsprobe counted.

    ``table`` has the queries, ``missed`` the runs that the kernel skipped, ``gaps`` the writes before which dnsprobe
    found that something had been skipped, and ``lost`` what it saw and could not count: for want of room for a name, or
    because it could not be read.
    """

    table: Table
    missed: int
    gaps: int
    lost: int

    @classmethod
    def of(cls, metrics: str) -> Counted:
        """Return the counts in the text of a scrape."""
        table: Table = Counter()
        for labels, value in samples_of("dnsprobe_queries_total", metrics):
            table[labels["process"], _KINDS.get(labels["domain"], labels["domain"])] += int(value)
        events = add_up(samples_of("dnsprobe_events_lost_total", metrics), "reason")
        unparsed = add_up(samples_of("dnsprobe_packets_unparsed_total", metrics), "reason")
        gaps = unparsed.pop("unaligned")
        return cls(+table, events["run_missed"], gaps, events["names_full"] + sum(unparsed.values()))

    def since(self, before: Counted) -> Counted:
        """Return what was added since an earlier scrape."""
        return Counted(
            self.table - before.table, self.missed - before.missed, self.gaps - before.gaps, self.lost - before.lost
        )

    @property
    def total(self) -> int:
        return self.table.total()


class Daemon:
    """``dnsprobe run`` with the first set of rules, after it is ready.

    ``program`` is dnsprobe, and ``probe`` a part of the section ``probe`` of its configuration. If it names no hook for
    TCP, TCP is not watched: a missed run is counted whatever it would have counted, so there must be no other runs.
    """

    def __init__(self, program: Path, folder: Path, probe: str = "") -> None:
        #: What is sent by default.
        self.protocol = "tcp" if "tcp_hook" in probe else "udp"
        options = [
            "verify_interval: 0",
            *(["tcp_hook: none"] if self.protocol == "udp" else []),
            *([probe] if probe else []),
        ]
        self._more = f"probe: {{{', '.join(options)}}}"
        self._configuration, self._log = folder / "dnsprobe.yaml", folder / "log"
        # The thread that reloads looks for reloads, too.
        self._lock, self._read, self._reloaded = threading.Lock(), 0, 0
        self._configure(RULE_SETS[0])
        command = [str(program), "run", "--config", str(self._configuration), "--listen", "127.0.0.1:0"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([*command, "--log-target", "console"], stderr=log)
        while not (ready := re.search(r"ready after.*(http://[^/ ]*)/metrics", self.log())):
            if self._process.poll() is not None:
                raise RuntimeError(f"dnsprobe has ended:\n{self.log()}")
            time.sleep(0.1)
        self._url = ready[1]

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self._url}/metrics") as answer:
            return str(answer.read().decode())

    def hooks(self, protocol: str) -> set[str]:
        """Return the hooks for a protocol, such as ``ip_send_skb (kprobe)``."""
        return {
            f"{labels['hook']} ({labels.get('attach', labels['symbol'])})"
            for labels, _ in samples_of("dnsprobe_hook_info", self.metrics())
            if labels["path"].startswith(protocol)
        }

    def _configure(self, rules: Sequence[str]) -> None:
        new = self._configuration.with_suffix(".new")
        new.write_text(f"domains: [{', '.join(rules)}]\n{self._more}\n", encoding="utf-8")
        new.rename(self._configuration)

    @contextmanager
    def reloading(self, every: float = _RELOAD_EVERY) -> Iterator[None]:
        """Put the sets of rules in force in turns, the next one ``every`` seconds after the last."""
        stop = threading.Event()

        def reload() -> None:
            number = 0
            while not stop.wait(every):
                number += 1
                self._configure(RULE_SETS[number % len(RULE_SETS)])
                reloads = self.reloads()
                self._process.send_signal(signal.SIGHUP)
                while self.reloads() == reloads and not stop.wait(_RELOAD_EVERY / 10):
                    pass

        thread = threading.Thread(target=reload)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def contend(self, senders: Path, queries: int) -> Result:
        """See :func:`contend`."""
        return contend([self], senders, queries, self.protocol)[0]

    def reloads(self) -> int:
        """Return how often the rules have changed."""
        with self._lock, self._log.open("rb") as log:
            log.seek(self._read)
            # The last line may not be whole.
            lines, newline, _ = log.read().rpartition(b"\n")
            self._read += len(lines) + len(newline)
            self._reloaded += lines.count(b"reloaded: ")
            return self._reloaded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def contend(daemons: Sequence[Daemon], senders: Path, queries: int, protocol: str) -> list[Result]:
    """Send at least ``queries`` queries from four processes while all others interfere; return what each daemon has.

    Sends as many again if the rules of a daemon have not changed, after they have: a process of low priority reads
    them, and gets hardly any time while all senders run on one processor. ``senders`` is the folder with ``contend``
    and ``hammer``, and ``protocol`` is ``udp`` or ``tcp``.
    """
    before = [(Counted.of(daemon.metrics()), daemon.reloads()) for daemon in daemons]

    def changed() -> bool:
        return all(daemon.reloads() > reloads for daemon, (_, reloads) in zip(daemons, before, strict=True))

    started = time.monotonic()
    with hammering(senders / "hammer"), ExitStack() as stack:
        for daemon in daemons:
            stack.enter_context(daemon.reloading(_RELOAD_EVERY * len(daemons)))
        sent = send(senders / "contend", queries, protocol)
        if not changed():
            for _ in range(_LOOKS):
                if changed():
                    break
                time.sleep(0.5)
            sent += send(senders / "contend", queries, protocol)
    seconds = time.monotonic() - started
    for _ in range(_SCRAPES):
        results = [
            Result(
                sent,
                Counted.of(daemon.metrics()).since(counted),
                daemon.hooks(protocol),
                daemon.reloads() - reloads,
                seconds,
            )
            for daemon, (counted, reloads) in zip(daemons, before, strict=True)
        ]
        # A scrape does not have the queries for names that the daemon has not decided yet.
        if all(result.unaccounted <= 0 for result in results):
            break
        time.sleep(0.5)
    return results


@dataclass(frozen=True, slots=True)
class Result:
    """What was sent and counted, by which hooks, how often the rules changed, and how many seconds the sending took."""

    sent: Sent
    counted: Counted
    hooks: set[str]
    reloads: int
    seconds: float

    @property
    def unaccounted(self) -> int:
        """Return how many queries were neither counted nor counted as missed or lost.

        If the kernel skips the run for a write over TCP, the next write shows a gap: this is the same loss.
        """
        unexplained = max(self.counted.gaps - self.counted.missed, 0)
        return self.sent.total - self.counted.total - self.counted.missed - self.counted.lost - unexplained

    @property
    def mistakes(self) -> list[str]:
        """Return what was counted without being sent: too many of a process and kind, or for others."""
        sent = self.sent.table
        return [
            f"{comm}, {kind}: {count} counted, {sent[comm, kind]} sent"
            for (comm, kind), count in sorted(self.counted.table.items())
            if count > sent[comm, kind]
        ]

    def __str__(self) -> str:
        return (
            f"{', '.join(sorted(self.hooks))}: {self.sent.total} sent, {self.counted.total} counted, "
            f"{self.counted.missed} runs missed, {self.counted.gaps} gaps, {self.counted.lost} lost, "
            f"{self.unaccounted} unaccounted for, {self.reloads} reloads, {self.seconds:.0f} s"
        )


def _filled(front: str, letter: str, label: int, suffix: str, octets: int) -> str:
    """Return a name of ``octets`` in wire format: between front and suffix, labels that repeat a letter."""
    room = octets - len(front) - len(suffix) - 2
    labels = ""
    while room > 1:
        size = min(label, room - 1)
        labels += f"{letter * size}."
        room -= size + 1
    return f"{front}{labels}{suffix}"


def new_name(number: int, pid: int) -> str:
    """Return the name that ``contend`` with new names sends from a process as its query with this number."""
    front = f"n{number}.p{pid}."
    return (
        f"{front}new.exact.test",
        _filled(front, "l", 63, "long.exact.test", 255),
        _filled(front, "d", 1, "deep.exact.test", 120),
        f"ads{number}p{pid}.wild.exact.test",
    )[number % 4]


#: The rules for new names, by number.
EVENT_RULES = ("new.exact.test", "long.exact.test", "deep.exact.test", "ads*.wild.exact.test")


def new_event(number: int, pid: int, comm: str) -> dict[str, object]:
    """Return what ``dnsprobe watch --json`` has to show of such a query, if each of EVENT_RULES is a rule."""
    return {
        "qname": new_name(number, pid),
        "domain": EVENT_RULES[number % 4],
        "qtype": "AAAA" if number & 1 else "A",
        "server": "::1" if number & 2 else "127.0.0.1",
        "transport": "udp",
        "port": 53,
        "comm": comm,
        "repeats": 0,
    }


def number_in(name: str) -> int:
    """Return the number in a new name; -1 if there is none."""
    digits = name.removeprefix("ads").removeprefix("n").partition(".")[0].partition("p")[0]
    return int(digits) if digits.isdecimal() else -1


def wrong_events(lines: Iterable[str], sent: Sent) -> tuple[int, list[str]]:
    """Return the number of events in the output of ``dnsprobe watch --json``, and those that were not sent like this.

    An event is right if the process that it names has sent a query with this number, which has this name, type and
    server, and if no other event has this query.
    """
    seen: set[tuple[int, int]] = set()
    wrong = []
    for line in lines:
        event = json.loads(line)
        pid, number = event["pid"], number_in(event["qname"])
        right = new_event(number, pid, sent.comms.get(pid, ""))
        if (
            not 0 <= number < sent.by_pid[pid]
            or (pid, number) in seen
            or {key: event[key] for key in right} != right
            or event["ancestors"][0]["comm"] != "contend"
        ):
            wrong.append(line)
        seen.add((pid, number))
    return len(seen), wrong


def totals_in(summary: str) -> tuple[int, int, int]:
    """Return what the summary of ``dnsprobe watch`` says: queries counted, events shown, and queries not counted."""
    counted = re.search(r"^([0-9,]+) quer(?:y|ies) .* ([0-9,]+) shown", summary, re.MULTILINE)
    assert counted, summary
    lost = re.findall(r"([0-9,]+) times? [^;]*\(not counted\)", summary)
    queries, shown = (int(number.replace(",", "")) for number in counted.groups())
    return queries, shown, sum(int(number.replace(",", "")) for number in lost)
