"""Each query has one result: it is answered, refused, given up, or waits. The sums are those of what was sent."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import HERE, IN_OWN_NET

from dnsprobe.config.main import Config
from dnsprobe.kernel.abi import Result
from dnsprobe.pipeline.answers import Sums
from dnsprobe.pipeline.session import Session

#: The kernel side decides about names by the first rule, user space by the second one.
RULES = ("answers.test", "noerror*.wild.test")
#: No query of the test is given up before the test says so.
NEVER = 1 << 62


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session(Config(), [(rule, rule, 6) for rule in RULES], notes=4096, answer_timeout_ns=NEVER)
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
        assert group.transport == "udp"
        assert of_group.waiting >= 0
        sums.add(of_group.queries, of_group.results)
    assert sums.queries == sum(counts.values())
    return sums


def test_each_query_has_one_result(session: Session) -> None:
    answers = session.answers
    assert answers is not None
    assert session.probe.answer_problems == {}
    command = [*IN_OWN_NET, sys.executable, str(HERE / "asker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asker:
        assert asker.stdin is not None
        assert asker.stdout is not None
        while not select.select([asker.stdout], [], [], 0.02)[0]:
            collect(session)
        sent = json.loads(asker.stdout.readline())
        waits = collect(session)
        noted = len(list(session.probe.maps.notes.items()))
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
    assert sum(sent.values()) == waits.queries == ends.queries == 2094
    assert waits.waiting == noted == sent["timeout"]
    found = {result.name.lower(): ends.results[result] for result in Result if ends.results[result]}
    assert found == {
        "noerror": sum(sent[kind] for kind in ("noerror", "wild", "again", "twice", "parts", "options", "together")),
        **{kind: sent[kind] for kind in ("nodata", "nxdomain", "servfail", "refused")},
        **{kind: sent[kind] for kind in ("timeout", "closed", "unreachable", "superseded")},
    }
    assert ends.waiting == 0
    assert late == sent["timeout"] + sent["superseded"]
    assert (unmatched["duplicate"], unmatched["unreadable"]) == (sent["twice"], 0)
    # What was taken back is remembered in slots, which others may have taken since.
    assert unmatched["late"] + unmatched["unsolicited"] == late
    assert unmatched["late"] > late / 2
    # The counter of a process that has ended, and whose queries all have a result, moves to the totals.
    session._last_sweep = -NEVER
    session.sweep_if_due()
    assert list(session.probe.maps.counters.items()) == []
    assert collect(session) == ends
