"""Each query has one result: it is answered, refused, given up, or waits. The sums are those of what was sent."""

from __future__ import annotations

import json
import math
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from asker import ADDRESSES, CROWD, FORGED, MANY, VAGUE
from askers import PLANS, transport_of
from conftest import HERE, IN_OWN_NET

from dnsprobe.config.main import BUCKETS_NS, AnswersConfig, Config
from dnsprobe.kernel.abi import SOCKET_NOTES, Noted, Result
from dnsprobe.model import Series
from dnsprobe.names.qtype import qtype_name
from dnsprobe.pipeline.answers import Outcomes, Sums
from dnsprobe.pipeline.latencies import COUNT_AT, SUM_AT, Sample
from dnsprobe.pipeline.session import Session
from dnsprobe.process.cgroup import container_of, unit_of

#: The kernel side decides about names by the first rule, user space by the second one.
RULES = ("answers.test", "noerror*.wild.test")
#: No query of the test is given up before the test says so.
NEVER = 1 << 62
#: Kinds of queries that have an answer with a record.
ANSWERED = ("noerror", "wild", "again", "twice", "parts", "options", "together")
ANSWERED_STREAMS = ("stream", "pieces", "large", "pipelined")


@pytest.fixture
def session() -> Iterator[Session]:
    config = Config(answers=AnswersConfig(timeout_ns=NEVER, queries=4096))
    session = Session(config, [(rule, rule, 6) for rule in RULES])
    try:
        session.start()
        yield session
    finally:
        session.close()


def collect(session: Session) -> Sums:
    """Collect, and return the sums of the rules, which are also those of their queries."""
    counts = session.collect()
    assert session.answers is not None
    sums = Sums()
    for group, of_group in session.answers.collected.items():
        assert group.transport in {"udp", "tcp"}
        assert of_group.waiting >= 0
        sums.add(of_group.queries, of_group.results)
    assert sums.queries == sum(counts.values())
    return sums


def test_each_query_has_one_result(session: Session) -> None:
    answers = session.answers
    assert answers is not None
    assert session.probe.answers.unproved == {}
    command = [*IN_OWN_NET, sys.executable, str(HERE.parent / "vm/guest/asker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asker:
        assert asker.stdin is not None
        assert asker.stdout is not None
        while not select.select([asker.stdout], [], [], 0.02)[0]:
            collect(session)
        sent = json.loads(asker.stdout.readline())
        waits = collect(session)
        # Canaries from before the hooks of answers were attached are among them.
        noted = sum(note.noted is not Noted.CANARY for _, note in session.probe.maps.notes.items())
        answers._timeout_ns = -NEVER
        session.sweep_if_due()
        ends = collect(session)
        asker.stdin.write(b"\n")
        asker.stdin.flush()
        late = int(asker.stdout.readline())
        unmatched = answers.unmatched()
        assert collect(session) == ends
        asker.stdin.write(b"\n")
        asker.stdin.close()
    assert sum(sent.values()) == waits.queries == ends.queries == 2856
    # Of many queries on a socket that has ended, the older ones wait as well: on four sockets for each version of IP.
    many = sent["crowd"] // CROWD * (3 * MANY + 1) + ends.results[Result.UNTRACKED] - sent["raw"]
    assert waits.waiting == noted == sent["timeout"] + many - 4 * len(ADDRESSES) * SOCKET_NOTES
    found = {result.name.lower(): ends.results[result] for result in Result if ends.results[result]}
    assert found == {
        "noerror": sum(sent[kind] for kind in (*ANSWERED, *ANSWERED_STREAMS, "crowd", "raw")) - found["untracked"],
        "untracked": found["untracked"],
        **{kind: sent[kind] for kind in ("formerr", "nodata", "nxdomain", "servfail", "refused")},
        **{kind: sent[kind] for kind in ("timeout", "closed", "unreachable", "superseded")},
    }
    # A part of the answers in one segment is not read.
    assert 0 < found["untracked"] - sent["raw"] < sent["crowd"]
    assert ends.waiting == 0
    assert late == sent["timeout"] + sent["superseded"]
    assert (unmatched["duplicate"], unmatched["unreadable"]) == (sent["twice"], len(ADDRESSES) * VAGUE)
    assert unmatched["forged"] == len(ADDRESSES) * FORGED
    # What was taken back is remembered in slots, which others may have taken since.
    assert unmatched["late"] + unmatched["unsolicited"] == late + sent["raw"]
    assert unmatched["late"] > late / 2
    # The counter of a process that has ended, and whose queries all have a result, moves to the totals.
    session._last_sweep = -NEVER
    session.sweep_if_due()
    assert list(session.probe.maps.counters.items()) == []
    assert collect(session) == ends


#: What becomes of the queries of the other processes, by the kind of their name.
RCODES = {
    **{kind: kind.upper() for kind in ("noerror", "nodata", "nxdomain", "servfail", "refused", "badvers", "badcookie")},
    "yxdomain": "(other)",
    **dict.fromkeys(["edns", "dangling"], "NODATA"),
    **dict.fromkeys(["truncated", "chain", "long", "spelled", "alias"], "NOERROR"),
}
REASONS = {"silent": "timeout", "closed": "closed"}


def outcomes(session: Session) -> Outcomes:
    assert session.answers is not None
    return session.answers.outcomes


def expected(trees: dict[str, list[str]]) -> tuple[dict[Series, int], dict[tuple[Series, str], int]]:
    """Return the queries of the processes, and what became of them, by all labels."""
    cgroup = Path("/proc/self/cgroup").read_text("utf-8").rpartition("::")[2].rstrip("\n")
    container = container_of(cgroup)
    where = (unit_of(cgroup) or "", container.short_id if container else "")
    queries: Counter[Series] = Counter()
    results: Counter[tuple[Series, str]] = Counter()
    for name, plan in PLANS.items():
        for kind, qtype, times in plan:
            labels = ("answers.test", qtype_name(qtype), transport_of(name), "local", name, ";".join(trees[name]))
            series = Series(*labels, *where)
            queries[series] += times
            result = kind.partition("-")[0]
            results[series, RCODES.get(result) or REASONS[result]] += times
    return queries, results


def check_latencies(
    samples: Mapping[Sample, float], group: tuple[str, str, str], took: list[int], had: list[int]
) -> None:
    """Compare a histogram with what the processes and the server measured.

    dnsprobe measures from the send to the arrival of the answer. So a query took at least as long as the server had it,
    and at most as long as the process waited.
    """
    for at, bound in enumerate((*BUCKETS_NS, math.inf)):
        below = samples[Sample(*group, at, bound / 1e9)]
        assert sum(time <= bound for time in took) <= below <= sum(time <= bound for time in had)
    assert samples[Sample(*group, COUNT_AT, math.inf)] == len(took) == len(had)
    assert sum(had) <= samples[Sample(*group, SUM_AT, math.inf)] * 1e9 <= sum(took)


def test_results_have_all_labels_of_their_queries(session: Session) -> None:
    answers = session.answers
    assert answers is not None
    command = [*IN_OWN_NET, sys.executable, str(HERE / "askers.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as askers:
        assert askers.stdin is not None
        assert askers.stdout is not None
        session.collect()
        zero = outcomes(session)
        assert (
            zero.waiting == zero.untracked == {(rule, transport): 0 for rule in RULES for transport in ("udp", "tcp")}
        )
        assert zero.unmatched == dict.fromkeys(["late", "duplicate", "unsolicited", "unreadable", "forged"], 0)
        askers.stdin.write(b"\n")
        askers.stdin.flush()
        asked = [json.loads(askers.stdout.readline()) for _ in PLANS]
        queries, results = expected({one["name"]: one["tree"] for one in asked})
        silent = {key: times for key, times in results.items() if key[1] == "timeout"}
        assert session.collect() == queries
        now = outcomes(session)
        assert {**now.responses, **now.unanswered} == {key: results[key] for key in results.keys() - silent.keys()}
        assert now.waiting["answers.test", "udp"] == sum(silent.values())  # type: ignore[index]
        answers._timeout_ns = -NEVER
        session.sweep_if_due()
        askers.stdin.write(b"\n")
        askers.stdin.flush()
        had = json.loads(askers.stdout.readline())
        # The processes have ended. Their numbers move to the totals, and stay the same.
        for is_final in (False, True):
            if is_final:
                session._last_sweep = -NEVER
                session.sweep_if_due()
                assert [*session.probe.maps.counters.keys(), *session.probe.maps.latencies.keys()] == []
            assert session.collect() == queries
            now = outcomes(session)
            assert {**now.responses, **now.unanswered} == results
            assert not any([*now.waiting.values(), *now.untracked.values(), *now.unmatched.values()])
            unit = next(iter(queries)).unit
            groups = {("answers.test", transport, unit): transport for transport in had}
            assert {sample[:3] for sample, number in now.latencies.items() if number} == groups.keys()
            for group, transport in groups.items():
                took = [time for one in asked if transport_of(one["name"]) == transport for time in one["took"]]
                check_latencies(now.latencies, group, took, had[transport])
        askers.stdin.close()
