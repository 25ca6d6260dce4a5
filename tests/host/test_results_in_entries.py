"""Entries say what became of their query: in time, or in an entry of their own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import answerer
import pytest
from conftest import HERE, IN_OWN_NET, Program, Service, until

#: A slow answer takes longer than an entry waits, and less than the timeout. Others take less, on a busy host, too.
CONFIG = "answers: {timeout: 5s, wait: 2s}"
ZONE = answerer.ZONE
#: A rule whose alerts are failures and slow answers.
ALERTING = f"""domains:
  - pattern: {ZONE}
    alert: {{rcode: [NXDOMAIN, NODATA], unanswered: true, latency: 2s, priority: err}}
"""
Entry = dict[str, Any]

#: What becomes of each query: rcode or reason, records, whether the entry has all of them, and whether it comes later.
EXPECTED: dict[str, tuple[str, list[str], bool | None, bool]] = {
    "address": ("NOERROR", ["192.0.2.7", "192.0.2.8"], True, False),
    "alias": ("NOERROR", ["b.entries.test.", "192.0.2.9"], True, False),
    "https": ("NOERROR", ['1 svc.entries.test. alpn="h2,h3"'], True, False),
    "text": ("NOERROR", ['"\\027[31m\\010red" "\\226\\128\\174"'], True, False),
    "many": ("NOERROR", [f"198.51.100.{number}" for number in range(32)], False, False),
    "nxdomain": ("NXDOMAIN", [], True, False),
    "nodata": ("NODATA", [], True, False),
    "broken": ("NOERROR", [], False, False),
    "loop": ("NOERROR", [], False, False),
    "again": ("NOERROR", ["192.0.2.7"], True, False),
    "stream": ("NOERROR", ["192.0.2.7"], True, False),
    # The result is known with the last octet of the question.
    "pieces": ("NOERROR", [], False, False),
    "slow": ("NOERROR", ["192.0.2.7"], True, True),
    "silent": ("timeout", [], None, True),
    "closed": ("closed", [], None, False),
    "unreachable": ("unreachable", [], None, False),
}
#: Why the results of some queries are alerts.
ALERTS = {
    **{key: ["rcode"] for key in ("nxdomain", "nodata")},
    **{key: ["unanswered"] for key in ("silent", "closed", "unreachable")},
    "slow": ["latency"],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "answers.yaml"
    path.write_text(CONFIG)
    return path


@contextlib.contextmanager
def asked() -> Iterator[dict[str, int]]:
    """Ask for all names, and yield how long answers took at most, in nanoseconds. One query waits until the end."""
    command = [*IN_OWN_NET, sys.executable, str(HERE / "answerer.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asker:
        assert asker.stdin is not None
        assert asker.stdout is not None
        yield json.loads(asker.stdout.readline())
        asker.stdin.close()
    assert asker.returncode == 0


def entries(watch: Program) -> list[Entry]:
    return [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]


def result(entry: Entry) -> tuple[str, list[str], bool | None, bool]:
    records = [record["data"] for record in entry["answer"] or ()]
    whole = None if entry["answer_cut"] is None else not entry["answer_cut"]
    return entry["rcode"] or entry["unanswered"], records, whole, entry["late"]


def test_entries_have_the_results_of_their_queries(start_watch: Callable[..., Program], config: Path) -> None:
    config.write_text(f"{CONFIG}\n{ALERTING}")
    watch = start_watch("--config", str(config), "--json")
    with asked() as waited:
        until(lambda: any(entry["unanswered"] == "timeout" for entry in entries(watch)), "the timeout")
    assert watch.stop() == 0
    found = entries(watch)
    with_result = {entry["qname"].partition(".")[0]: entry for entry in found if result(entry)[0]}
    assert {kind: result(entry) for kind, entry in with_result.items()} == EXPECTED
    assert {kind: entry["alert"] for kind, entry in with_result.items() if entry["alert"]} == ALERTS
    # A query has one entry, or a second one with the same id, name and process.
    without = {entry["query_id"]: entry for entry in found if not result(entry)[0]}
    later = {entry["query_id"]: entry for entry in found if entry["late"]}
    assert without.keys() == later.keys()
    assert len(found) == len(EXPECTED) + len(later)
    of_results = ("rcode", "latency_usec", "answer", "answer_cut", "unanswered", "alert", "late")
    for query_id, entry in later.items():
        for each in (entry, without[query_id]):
            for key in of_results:
                del each[key]
        assert entry == without[query_id]
    assert len({entry["query_id"] for entry in found}) == len(EXPECTED)
    for kind, nanoseconds in waited.items():
        latency = with_result[kind].get("latency_usec")
        assert latency is None or 0 <= latency * 1000 <= nanoseconds
    assert with_result["again"]["latency_usec"] >= 50_000


def test_a_terminal_shows_results_in_lines_that_fit(start_watch: Callable[..., Program], config: Path) -> None:
    config.write_text(f"{CONFIG}\n{ALERTING}")
    watch = start_watch("--config", str(config))
    with asked():
        until(lambda: "no answer (alert: unanswered)\n" in watch.out.read_text("utf-8"), "the timeout")
    assert watch.stop() == 0
    text = watch.out.read_text("utf-8")
    for kind, words in (
        ("address", "→ 192.0.2.7, 192.0.2.8 in "),
        ("nxdomain", "NXDOMAIN in "),
        ("nodata", "NODATA in "),
        ("unreachable", "refused by ICMP"),
        ("text", '→ "\\027[31m\\010red"'),
    ):
        _, _, behind = text.partition(f"{kind}.{ZONE} ")
        line = behind.splitlines()[1]
        assert line.startswith(words)
        assert line.partition(" (alert: ")[2] == "".join(f"{reason})" for reason in ALERTS.get(kind, []))
    assert text.replace("\n", "").isprintable()
    # What other programs of this host send may count as lost.
    assert f", {len(EXPECTED)} shown, " in watch.err.read_text("utf-8")


def test_the_service_writes_results_and_those_that_wait_at_its_end(start: Callable[..., Service]) -> None:
    service = start(f"{ALERTING}answers: {{timeout: 10m, wait: 10s}}\n")
    with asked():
        # The first entry waits for an answer that never comes, and the others for it.
        assert service.value("dnsprobe_events_total") == len(EXPECTED)
        assert service.entries() == []
        assert service.stop() == 0
    lines = service.entries()
    assert len(lines) == len(EXPECTED)
    assert f"asked for silent.{ZONE} (A, udp) by " in lines[0]
    (failed,) = [line for line in lines if f" nxdomain.{ZONE} (" in line]
    assert re.search(r": NXDOMAIN in [0-9.]+ m?s \(alert: rcode\), server ", failed)
    assert ": 192.0.2.7, 192.0.2.8, server " in next(line for line in lines if f" address.{ZONE} (" in line)


def test_without_answers_entries_have_no_results(start_watch: Callable[..., Program], tmp_path: Path) -> None:
    path = tmp_path / "off.yaml"
    path.write_text("answers: off\n")
    watch = start_watch("--config", str(path), "--json", ZONE)
    with asked():
        until(lambda: len(entries(watch)) == len(EXPECTED), "all entries")
    assert watch.stop() == 0
    assert len(entries(watch)) == len(EXPECTED)
    for entry in entries(watch):
        assert (entry["query_id"], entry["rcode"], entry["answer"]) == (None, None, None)
