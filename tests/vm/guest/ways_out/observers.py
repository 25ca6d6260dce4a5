"""Several dnsprobe at once, one for each rung of the ladder, and what each has made of a situation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from running import Service
from scraped import samples_of

from ways_out.place import Asked
from ways_out.situations import LAST, TITLES

RIGHT, LOST, NOT_SEEN = "right", "counted as lost", "not seen"
#: This kernel does not have what the situation needs; or, for all situations of a rung, not the rung.
ABSENT = "-"

#: The losses of queries. The help text of each says which reasons mean that a query is not counted.
_LOSSES = ("dnsprobe_events_lost_total", "dnsprobe_packets_unparsed_total")
_UNCOUNTED = re.compile(r"(?:not counted|counted in part): ([^;)]*)")
#: The reason for runs that the kernel skipped, because they interrupted a run of the same program.
_SKIPPED = "run_missed"
#: The queries that are counted without their process.
_UNATTRIBUTED = "dnsprobe_queries_unattributed_total"

#: Seconds.
_UNTIL_LOST = 0.3

_LINE = re.compile(r"(\S+)\[\d+\] asked for (\S+) \(A, (\w+)\) by .*?, server (\S+)#(\d+), ")


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to see UDP: the hook as in ``probe.hook``, and how it is attached, as in ``dnsprobe_hook_info``."""

    hook: str
    attach: str

    @property
    def name(self) -> str:
        return f"{self.attach} {self.hook}"


RUNGS = (
    Rung("ip_send_skb", "fentry"),
    Rung("ip_send_skb", "kprobe"),
    Rung("udp_send_skb", "fentry"),
    Rung("udp_send_skb", "kprobe"),
    Rung("cgroup_skb", "cgroup"),
)


class Unavailable(Exception):
    """This kernel does not have a rung."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an observer has of a situation: the counts by process and transport, and the queries in the log.

    A query that is repeated is in the log once. ``losses`` has how many queries were counted as lost, or as without
    their process, since the observer looked last, by metric and reason. ``skipped`` is how many runs the kernel has
    skipped since then.
    """

    counted: Counter[tuple[str, str]]
    shown: set[Asked]
    losses: Mapping[str, int]
    skipped: int = 0

    @property
    def lost(self) -> int:
        return sum(self.losses.values())


class Observer:
    """A dnsprobe that uses one rung. Raises Unavailable if this kernel does not have it."""

    def __init__(self, rung: Rung, folder: Path) -> None:
        self.rung = rung
        domains = ", ".join([*(f"{situation}.ways.test" for situation in TITLES), LAST])
        attach = "kprobe" if rung.attach == "kprobe" else "auto"
        try:
            self._service = Service(
                f"domains: [{domains}]\n"
                f"probe: {{ports: [53, 5353], hook: {rung.hook}, attach: {attach}, verify_interval: 0}}\n"
                "journal: {repeat: 1d}\n",
                folder,
            )
        except AssertionError as error:
            if "no hook could be verified" in str(error):
                raise Unavailable(str(error)) from None
            raise
        found = {
            (labels["hook"], labels["attach"])
            for labels, _ in self._service.samples("dnsprobe_hook_info")
            if labels["path"].startswith("udp")
        }
        if found != {(rung.hook, rung.attach)}:
            self.close()
            raise Unavailable(f"{rung.name}: dnsprobe uses {found}")
        self._losses, self._skipped = _losses(self._service.get("/metrics"))

    def close(self) -> None:
        self._service.kill()

    def look(self, domain: str, last: str) -> Seen:
        """Return what there is of a rule, as soon as the query ``last`` is reported: everything before it is, too."""
        self._service.wait_for(f" asked for {last} ")
        text = self._service.get("/metrics")
        counted: Counter[tuple[str, str]] = Counter()
        for labels, value in samples_of("dnsprobe_queries_total", text):
            if labels["domain"] == domain:
                counted[labels["process"], labels["transport"]] += int(value)
        shown = {
            Asked(name, comm, transport, server, int(port))
            for comm, name, transport, server, port in _LINE.findall(self._service.err.read_text("utf-8"))
            if name.endswith(f".{domain}")
        }
        losses, skipped = _losses(text)
        new = {loss: count - self._losses[loss] for loss, count in losses.items() if count != self._losses[loss]}
        seen = Seen(counted, shown, new, skipped - self._skipped)
        self._losses, self._skipped = losses, skipped
        return seen

    def look_again(self, domain: str, last: str, before: Seen) -> Seen:
        """Look once more, after the daemon has had the time to find out that packets are lost: LostParts."""
        time.sleep(_UNTIL_LOST)
        seen = self.look(domain, last)
        losses = Counter(before.losses) + Counter(seen.losses)
        return replace(seen, losses=losses, skipped=before.skipped + seen.skipped)


def _losses(text: str) -> tuple[dict[str, int], int]:
    """Return how many queries a scrape has as lost, or as without their process, by metric and reason; and how many
    skipped runs it has.
    """
    losses: dict[str, int] = {}
    skipped = 0
    for metric in _LOSSES:
        (explained,) = re.findall(rf"^# HELP {metric} (.*)$", text, re.MULTILINE)
        reasons = {reason for part in _UNCOUNTED.findall(explained) for reason in part.split(", ")}
        counts = [(labels["reason"], int(value)) for labels, value in samples_of(metric, text)]
        losses |= {f"{metric} {reason}": count for reason, count in counts if reason in reasons - {_SKIPPED}}
        skipped += sum(count for reason, count in counts if reason == _SKIPPED)
    unattributed = samples_of(_UNATTRIBUTED, text)
    return losses | {f"{_UNATTRIBUTED} {labels['reason']}": int(value) for labels, value in unattributed}, skipped


def verdict(right: Counter[Asked], seen: Seen) -> str:
    """Return what a rung has made of a situation: RIGHT, LOST, NOT_SEEN, or a text that begins with ``wrong``.

    A query without its process counts as lost, because ``dnsprobe_queries_unattributed_total`` has it. It is wrong if a
    query is counted for another process, more often than it was sent, or shown with another server, or if it is counted
    both as seen and as lost. A run that the kernel skipped is not held against the rung: that depends on which process
    interrupts which, and not on the situation.
    """
    sent: Counter[tuple[str, str]] = Counter()
    for query, count in right.items():
        sent[query.comm, query.transport] += count
    known = Counter({key: count for key, count in seen.counted.items() if key[0] != "(unknown)"})
    if extra := known - sent:
        return f"wrong: {dict(extra)} more than {dict(sent)}"
    if others := {query for query in seen.shown if query.comm != "(unknown)"} - right.keys():
        return f"wrong: shown {sorted(map(str, others))}"
    missing = (sent - known).total()
    if seen.lost > missing:
        return f"wrong: {missing} missing, {seen.lost} counted as lost"
    if missing > seen.lost + seen.skipped:
        return NOT_SEEN
    return LOST if seen.lost else RIGHT


class Players:
    """The program that plays situations. It starts before dnsprobe does, and opens some sockets then."""

    def __init__(self, sender: Path) -> None:
        command = [sys.executable, "-m", "ways_out.situations", str(sender)]
        here = Path(__file__).parent.parent
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here)
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def play(self, situation: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{situation}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._answer())
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def observing(rungs: Iterable[Rung], folder: Path) -> Iterator[tuple[list[Observer], dict[str, str]]]:
    """Start a dnsprobe for each rung; yield them, and for each rung that this kernel does not have the reason."""
    with ExitStack() as stack:
        observers: list[Observer] = []
        unavailable: dict[str, str] = {}
        for rung in rungs:
            own = folder / rung.name.replace(" ", "-")
            own.mkdir()
            try:
                observer = Observer(rung, own)
            except Unavailable as reason:
                unavailable[rung.name] = str(reason)
                continue
            stack.callback(observer.close)
            observers.append(observer)
        yield observers, unavailable


def play(
    players: Players, observers: Sequence[Observer], situations: Iterable[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Play situations; return the verdicts by rung and situation, and whatever is worth reading about them."""
    verdicts: dict[str, dict[str, str]] = {observer.rung.name: {} for observer in observers}
    notes: list[str] = []
    for situation in situations:
        answer = players.play(situation)
        unknown = ""
        if "absent" in answer:
            unknown = ABSENT
            notes.append(f"{situation}: absent: {answer['absent']}")
        elif "failed" in answer:
            unknown = f"wrong: it could not be played: {answer['failed']}"
        right = Counter({Asked(*query): count for *query, count in answer.get("asked", [])})
        for observer in observers:
            rung = observer.rung.name
            seen = observer.look(f"{situation}.ways.test", answer["last"])
            if not unknown and verdict(right, seen) == NOT_SEEN:
                seen = observer.look_again(f"{situation}.ways.test", answer["last"], seen)
            found = unknown or verdict(right, seen)
            if found not in {ABSENT, RIGHT}:
                notes.append(f"{situation} at {rung}: {found}: {dict(seen.losses)}, counted {dict(seen.counted)}")
            verdicts[rung][situation] = found
    return verdicts, notes
