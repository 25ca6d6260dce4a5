"""Answers over TCP in odd segments: each query has the right result, or none that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from conftest import HERE, IN_OWN_NET
from odd_segments import QUERIES, SCENES, rcode_of

from dnsprobe.config.main import AnswersConfig, Config
from dnsprobe.kernel.abi import Result
from dnsprobe.pipeline.session import Session

#: No query is given up before the test says so.
NEVER = 1 << 62
#: Scenes in which the client receives all answers, in an order that can be followed.
FOLLOWED = ("octets", "repeated", "overlapping", "swapped", "forged")


@pytest.fixture
def session() -> Iterator[Session]:
    config = Config(answers=AnswersConfig(timeout_ns=NEVER, queries=4096))
    session = Session(config, [(f"{scene}.test", f"{scene}.test", 6) for scene in SCENES])
    try:
        session.start()
        yield session
    finally:
        session.close()


def results_of(session: Session) -> dict[str, Counter[str]]:
    """Return how many queries have which result, by scene."""
    session.collect()
    assert session.answers is not None
    found = {}
    for group, sums in session.answers.collected.items():
        assert (sums.queries, group.transport) == (QUERIES, "tcp")
        named = {result.name: sums.results[result] for result in Result}
        found[group.domain.removesuffix(".test")] = +Counter({**named, "waiting": sums.waiting})
    return found


def test_answers_in_odd_segments_have_the_right_result(session: Session) -> None:
    assert session.answers is not None
    command = [*IN_OWN_NET, sys.executable, str(HERE / "odd_segments.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as peers:
        assert peers.stdin is not None
        assert peers.stdout is not None
        assert json.loads(peers.stdout.readline()) == dict.fromkeys(SCENES, QUERIES)
        session.answers._timeout_ns = -NEVER
        session.sweep_if_due()
        found = results_of(session)
        peers.stdin.close()
    right = Counter(map(rcode_of, range(QUERIES)))
    assert {scene: found[scene] for scene in FOLLOWED} == dict.fromkeys(FOLLOWED, right)
    half = Counter(map(rcode_of, range(QUERIES // 2)))
    assert found["reset"] == half + Counter(CLOSED=QUERIES // 2)
    # What cannot be followed is untracked, or ends with the connection. It has no wrong response code, and is no
    # timeout: the client received all of the first one.
    for scene, reason in (("shuffled", "UNTRACKED"), ("lossy", "CLOSED")):
        answered = found[scene] - Counter({reason: QUERIES})
        assert answered <= right
        assert found[scene].total() == QUERIES
        assert found[scene].keys() <= {*right, reason}
        assert found[scene][reason] > 0
