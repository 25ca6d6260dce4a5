"""Flood a daemon that tracks answers with queries that nobody answers, and with answers that fit no query.

Usage, as root: .venv/bin/python benchmarks/answer_floods.py [COUNT]

Sends COUNT (1000000) queries from one process, COUNT from four users while another user asks, too, and COUNT forged
answers to each of two sockets that wait. Scrapes all the time. Ends with status 1 if at any scrape the sums do not
close, if an answer is counted wrongly, or if another user loses anything. Prints how long scrapes took, how long the
page waited, and how the memory grew.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from daemon import Daemon

_HERE = Path(__file__).parent
_IN_OWN_NET = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]
_CONFIGURATION = """\
domains: [flood.test, victim.test]
answers: {{timeout: {timeout}, queries: 65536}}
"""
_FIRST_USER, _VICTIM, _VICTIM_QUERIES = 64001, 64900, 200
#: Seconds.
_POLL, _PATIENCE = 0.02, 120.0


class WrongCountError(Exception):
    """A count is wrong."""


def compiled(folder: Path) -> Path:
    """Compile and return the program that floods."""
    program = folder / "answer_flood"
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", program, _HERE / "answer_flood.c"], check=True)
    return program


class Watcher:
    """Scrapes a daemon, and checks the sums of each scrape."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.scrapes: list[float] = []
        self.pages: list[float] = []
        self.most_waiting = 0
        self._ends = threading.Event()

    def scrape(self) -> Counter[tuple[str, str]]:
        """Return the numbers of queries, by what became of them and by domain; check that they close."""
        began = time.monotonic()
        text = self._daemon.metrics()
        self.scrapes.append(time.monotonic() - began)
        found = Counter[tuple[str, str]]()
        pattern = (
            r"^dnsprobe_(queries|responses|unanswered|queries_waiting|queries_untracked)(?:_total)?\{(.*)\} (\S+)$"
        )
        for what, labels, number in re.findall(pattern, text, re.MULTILINE):
            kept = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            domain = kept["domain"]
            found[what, domain] += int(float(number))
            if reason := kept.get("reason"):
                found[reason, domain] += int(float(number))
        for reason, number in re.findall(
            r'^dnsprobe_responses_unmatched_total\{reason="(\w+)"\} (\S+)$', text, re.MULTILINE
        ):
            found["unmatched", reason] = int(float(number))
        for domain in ("flood.test", "victim.test"):
            parts = ("responses", "unanswered", "queries_waiting", "queries_untracked")
            if found["queries", domain] != sum(found[part, domain] for part in parts):
                raise WrongCountError(f"the sum of {domain} does not close: {dict(found)}")
        self.most_waiting = max(self.most_waiting, found["queries_waiting", "flood.test"])
        return found

    def _visit(self) -> None:
        while not self._ends.wait(_POLL):
            began = time.monotonic()
            with urllib.request.urlopen(f"http://{self._daemon.address}/-/healthy", timeout=60) as answer:
                answer.read()
            self.pages.append(time.monotonic() - began)

    @contextlib.contextmanager
    def visiting(self) -> Iterator[None]:
        """Visit a page all the time: its time shows how long the event loop is busy with something else."""
        thread = threading.Thread(target=self._visit)
        thread.start()
        try:
            yield
        finally:
            self._ends.set()
            thread.join()


@contextlib.contextmanager
def flooding(program: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start the program that floods; it ends with the block."""
    command = [*_IN_OWN_NET, str(program), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        _go_on(process)


def _go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _number(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def _scrape_until_done(watcher: Watcher, process: subprocess.Popen[str]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(_number(process)))
    thread.start()
    while thread.is_alive():
        watcher.scrape()
        thread.join(_POLL)
    return found[0]


def silence(daemon: Daemon, program: Path, count: int, users: int) -> str:
    """Send queries that nobody answers, and return a line about it."""
    watcher = Watcher(daemon)
    before, memory = watcher.scrape(), daemon.memory
    began = time.monotonic()
    with watcher.visiting(), flooding(program, "silent", "flood.test", count, _FIRST_USER, users) as flood:
        sent = _scrape_until_done(watcher, flood)
        took = time.monotonic() - began
        with flooding(program, "silent", "victim.test", _VICTIM_QUERIES, _VICTIM, 1) as victim:
            _number(victim)
            untracked = watcher.scrape()["queries_untracked", "victim.test"]
            until = time.monotonic() + _PATIENCE
            while (now := watcher.scrape())["queries_waiting", "flood.test"] and time.monotonic() < until:
                time.sleep(_POLL)
    if (counted := now["queries", "flood.test"] - before["queries", "flood.test"]) != sent:
        raise WrongCountError(f"{sent} queries were sent, {counted} counted")
    if now["queries_waiting", "flood.test"] or untracked:
        raise WrongCountError(f"queries wait, or those of the victim are untracked: {dict(now)}")
    if now["responses", "flood.test"] != before["responses", "flood.test"]:
        raise WrongCountError(f"there are responses: {dict(now)}")
    results = {
        what: now[what, "flood.test"] - before[what, "flood.test"]
        for what in ("timeout", "superseded", "closed", "queries_untracked")
    }
    return (
        f"silent: {sent} queries by {users} users in {took:.1f} s: {results}; at most {watcher.most_waiting} waited; "
        f"{len(watcher.scrapes)} scrapes took {max(watcher.scrapes) * 1000:.0f} ms at most, "
        f"the page {max(watcher.pages) * 1000:.0f} ms; memory {memory} to {daemon.memory} kB"
    )


def forgery(daemon: Daemon, program: Path, count: int) -> str:
    """Send answers that fit no query, and return a line about it."""
    watcher = Watcher(daemon)
    before, memory = watcher.scrape(), daemon.memory
    began = time.monotonic()
    with flooding(program, "forge", "flood.test", count) as flood:
        sent = _scrape_until_done(watcher, flood)
        took = time.monotonic() - began
        waits = watcher.scrape()
        _go_on(flood)
        _number(flood)
        after = watcher.scrape()
    # To each socket, one of four is to a name without a rule.
    forged = 2 * (sent - (sent + 1) // 4)
    changed = {key: number - before[key] for key, number in waits.items() if number != before[key]}
    expected = {
        ("queries", "flood.test"): 2,
        ("queries_waiting", "flood.test"): 2,
        ("unmatched", "forged"): forged,
    }
    if changed != expected:
        raise WrongCountError(f"{changed} in place of {expected}")
    changed = {key: number - before[key] for key, number in after.items() if number != before[key]}
    expected = {("queries", "flood.test"): 2, ("responses", "flood.test"): 2, ("unmatched", "forged"): forged}
    if changed != expected:
        raise WrongCountError(f"{changed} in place of {expected}")
    return (
        f"forged: {2 * sent} answers in {took:.1f} s, {forged} counted; the true ones are matched; "
        f"memory {memory} to {daemon.memory} kB"
    )


def main(arguments: list[str]) -> None:
    """Flood, and print what came of it."""
    count = int(arguments[0]) if arguments else 1_000_000
    command = [Path(sys.executable).with_name("dnsprobe")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        program = compiled(folder)
        for timeout, floods in (("2s", "silent"), ("10m", "forge")):
            daemon = Daemon(command, _CONFIGURATION.format(timeout=timeout), folder / "cache")
            try:
                if floods == "silent":
                    for users in (1, 4):
                        print(silence(daemon, program, count, users), flush=True)
                else:
                    print(forgery(daemon, program, count), flush=True)
            except WrongCountError as error:
                sys.exit(str(error))
            finally:
                daemon.close()


if __name__ == "__main__":
    main(sys.argv[1:])
