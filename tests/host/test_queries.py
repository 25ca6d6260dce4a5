"""Every way to ask, and who asked: exact counts with the right process and the whole tree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from conftest import Program, Service

from dnsprobe.kernel.abi import CHAIN_SIZE
from dnsprobe.qname import qtype_name
from dnsprobe.text import printable

Start = Callable[..., Service]
Scene = Callable[..., Any]

DOMAINS = (
    "dig dig6 getent getaddrinfo connected sendto sendmsg sendmmsg ipv6 ipv6connected mapped thread".split()  # noqa: SIM905
)


def tree_of(lineage: list[tuple[int, str]], comm: str) -> str:
    comms = [printable(name, also=";") for pid, name in reversed(lineage) if pid != 1]
    return ";".join([*comms, comm])


def test_every_client_is_counted_exactly(start: Start, scene: Scene) -> None:
    service = start("domains: [" + ", ".join(f"{domain}.test" for domain in DOMAINS) + "]")
    truth = scene("clients")
    expected: Counter[tuple[str, str, str, str]] = Counter()
    for name, qtype, count in truth["received"]:
        domain = name.removesuffix(".test").rpartition(".")[2]
        if domain in DOMAINS:
            comm = truth["comms"][domain]
            key = (f"{domain}.test", qtype_name(qtype), comm, tree_of(truth["lineage"], comm))
            expected[key] += count
    assert {key[0].removesuffix(".test") for key in expected} == set(DOMAINS)
    seen = {
        (labels["domain"], labels["qtype"], labels["process"], labels["tree"]): value
        for labels, value in service.samples("dnsprobe_queries_total")
    }
    assert seen == expected
    # Totals do not change when the processes are folded, nor when dnsprobe is asked again.
    assert service.by("dnsprobe_queries_total", "domain") == service.by("dnsprobe_queries_total", "domain")
    assert service.stop() == 0
    entries = service.entries()
    for domain, pid in truth["pids"].items():
        assert any(f"{truth['comms'][domain]}[{pid}] asked for www.{domain}.test" in entry for entry in entries), domain


def test_processes_that_exit_at_once(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("--json", "oneshot.test")
    truth = scene("oneshots", 1000, 16)
    watch.stop()
    queries = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert len(queries) == 1000
    parents = truth["lineage"]
    for query in queries:
        comm = query["qname"].removesuffix(".oneshot.test")
        assert (query["comm"], query["pid"]) == (comm, truth["pids"].pop(comm))
        assert [(parent["pid"], parent["comm"]) for parent in query["ancestors"]] == [
            (pid, printable(name)) for pid, name in parents
        ]
        assert query["complete"]
        assert query["tree"] == tree_of(parents, comm)
    assert not truth["pids"]
    assert "1000 queries from 1000 process trees, 1000 shown, 0 lost" in watch.err.read_text("utf-8")


def test_processes_that_exit_at_once_keep_their_counts(start: Start, scene: Scene) -> None:
    service = start("domains: [oneshot.test]")
    truth = scene("oneshots", 1000, 16)
    trees = service.by("dnsprobe_queries_total", "tree")
    assert trees == {tree_of(truth["lineage"], f"p{index}"): 1 for index in range(1000)}


def test_chain_deeper_than_the_kernel_follows(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("--json", "deep.test")
    scene("deep", CHAIN_SIZE + 10)
    watch.stop()
    (query,) = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert len(query["ancestors"]) == CHAIN_SIZE - 1
    assert not query["complete"]
    assert query["tree"].startswith("...;")
    assert [parent["comm"] for parent in query["ancestors"]] == [
        f"level{level}" for level in range(CHAIN_SIZE + 8, 9, -1)
    ]


def test_chain_of_more_than_32_levels_is_whole(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("--json", "deep.test")
    truth = scene("deep", 1)
    levels = 32 - len(truth["lineage"])
    scene("deep", levels)
    watch.stop()
    *_, query = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert query["complete"]
    assert [parent["comm"] for parent in query["ancestors"][: levels - 1]] == [
        f"level{level}" for level in range(levels - 2, -1, -1)
    ]


def test_repeats_cause_no_event_until_their_time(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]")
    scene("send", "www.watched.test", 101)
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": 101}
    assert service.value("dnsprobe_events_total") == 1
    assert len(service.entries()) == 1


def test_each_query_is_an_event_when_asked_for(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]\njournal: {repeat: 0}")
    scene("send", "www.watched.test", 101)
    assert service.stop() == 0
    assert len(service.entries()) == 101


def test_what_no_rule_wants_causes_nothing(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]")
    scene("send_others", 500)
    assert service.samples("dnsprobe_queries_total") == []
    assert service.value("dnsprobe_events_total") == 0
    assert service.value("dnsprobe_journal_entries_total") == 0
