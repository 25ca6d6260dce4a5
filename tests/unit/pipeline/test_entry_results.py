"""Entries wait for the result of their query, in order and not too long."""

from __future__ import annotations

from dataclasses import replace

import dns.message
import dns.rrset
import pytest
from made_up import IDENTITY, query

from dnsprobe.kernel.abi import Ended, Result
from dnsprobe.model import Alert, Outcome, Query, Record, Rule
from dnsprobe.pipeline.results import Results

MS = 10**6
WAIT, TIMEOUT = 300 * MS, 5000 * MS
SENT = 1_000_000 * MS


def answer() -> bytes:
    response = dns.message.make_response(dns.message.make_query("www.example.test", "A"))
    response.answer.append(dns.rrset.from_text("www.example.test.", 300, "IN", "A", "192.0.2.7"))
    return response.to_wire()


class Stage:
    """Results with a made-up clock. Entries are shown as query_id, result, and whether it comes later."""

    def __init__(self, wait: int = WAIT, **sizes: int) -> None:
        self.now = SENT
        self.results = Results(wait, TIMEOUT, lambda: self.now, **sizes)

    def ask(self, *ids: int, share: int = 0) -> None:
        self.results.add((query(query_id=one, time_ns=self.now, share=share), IDENTITY) for one in ids)

    def end(self, query_id: int, result: Result = Result.NXDOMAIN, message: bytes = b"") -> None:
        self.results.end([Ended(self.now, query_id, 0, result, message)])

    def due(self, *, at_end: bool = False) -> list[tuple[int, str, bool]]:
        return [(one.query_id, short(one), one.is_late) for one, _ in self.results.due(at_end=at_end)]


def short(made: Query) -> str:
    return "" if made.outcome is None else made.outcome.rcode or made.outcome.reason


def test_an_entry_has_a_result_that_comes_in_time() -> None:
    stage = Stage()
    stage.ask(1)
    assert stage.due() == []
    assert stage.results.seconds_left == WAIT / 1e9
    stage.now += 12 * MS
    stage.end(1, Result.NOERROR, answer())
    assert stage.results.seconds_left == 0
    ((made, identity),) = stage.results.due()
    assert identity == IDENTITY
    assert made.time_ns == SENT
    assert made.outcome == Outcome(
        "NOERROR", latency_ns=12 * MS, records=(Record("www.example.test.", 300, "IN", "A", "192.0.2.7"),)
    )
    assert not made.is_late
    assert stage.results.seconds_left is None
    stage.now += 2 * TIMEOUT
    assert stage.due(at_end=True) == []


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (Result.NODATA, "NODATA"),
        (Result.OTHER_RCODE, "(other)"),
        (Result.BADVERS, "BADVERS"),
        (Result.TIMEOUT, "timeout"),
        (Result.CLOSED, "closed"),
        (Result.UNREACHABLE, "unreachable"),
        (Result.SUPERSEDED, "superseded"),
    ],
)
def test_a_later_result_has_an_entry_of_its_own(result: Result, words: str) -> None:
    stage = Stage()
    stage.results.add([(query(query_id=1, time_ns=SENT, repeats=7), IDENTITY)])
    stage.now += WAIT - 1
    assert stage.due() == []
    stage.now += 1
    assert [(one.repeats, one.outcome, one.is_late) for one, _ in stage.results.due()] == [(7, None, False)]
    stage.now += 1000 * MS
    stage.end(1, result)
    ((made, identity),) = stage.results.due()
    assert (made.query_id, short(made), made.is_late, made.repeats, identity) == (1, words, True, 0, IDENTITY)
    assert made.time_ns == SENT


def test_entries_stay_in_the_order_of_their_queries() -> None:
    stage = Stage()
    stage.ask(1, 2)
    stage.now += 100 * MS
    stage.ask(0, 3)
    stage.end(2)
    stage.end(3)
    assert stage.due() == []
    stage.now += 200 * MS
    assert stage.due() == [(1, "", False), (2, "NXDOMAIN", False), (0, "", False), (3, "NXDOMAIN", False)]


def test_an_entry_whose_query_has_no_id_does_not_wait() -> None:
    stage = Stage()
    stage.ask(0)
    assert stage.due() == [(0, "", False)]


def test_no_entry_waits_with_0() -> None:
    stage = Stage(wait=0)
    stage.ask(1)
    assert stage.due() == [(1, "", False)]
    stage.end(1)
    assert stage.due() == [(1, "NXDOMAIN", True)]


def test_an_untracked_query_is_not_waited_for_any_more() -> None:
    stage = Stage()
    stage.ask(1, 2)
    stage.end(1, Result.UNTRACKED)
    assert stage.due() == [(1, "", False)]
    stage.now += WAIT
    assert stage.due() == [(2, "", False)]
    stage.end(2, Result.UNTRACKED)
    assert stage.due() == []


def test_a_result_may_come_before_its_query() -> None:
    stage = Stage()
    stage.end(1)
    stage.ask(1)
    assert stage.due() == [(1, "NXDOMAIN", False)]


def test_all_entries_are_written_at_the_end() -> None:
    stage = Stage()
    stage.ask(1, 2, 3)
    stage.end(2)
    assert stage.due(at_end=True) == [(1, "", False), (2, "NXDOMAIN", False), (3, "", False)]


def test_a_bounded_number_of_entries_waits() -> None:
    stage = Stage(held=3)
    stage.ask(1, 2, 3, 4, 5)
    assert stage.due() == [(1, "", False), (2, "", False)]
    stage.end(1)
    stage.end(3)
    assert stage.due() == [(1, "NXDOMAIN", True), (3, "NXDOMAIN", False)]


def test_a_user_does_not_take_all_places_of_results() -> None:
    stage = Stage(known=64)
    stage.ask(*range(1, 101), share=7)
    refused = stage.results.lost
    assert 100 - 64 < refused < 100
    stage.ask(101, share=8)
    assert stage.results.lost == refused
    stage.now += WAIT
    assert len(stage.due()) == 101
    for one in range(1, 102):
        stage.end(one)
    assert len(stage.due()) == 101 - refused
    # Their places are free again.
    stage.ask(*range(201, 201 + 100 - refused), share=7)
    assert stage.results.lost == refused


def test_a_query_whose_result_was_lost_is_forgotten() -> None:
    stage = Stage(known=4)
    stage.ask(1, 2, share=7)
    lost = stage.results.lost
    stage.now += 70_000 * MS
    assert len(stage.due()) == 2
    stage.ask(3, share=7)
    assert stage.results.lost == lost
    stage.end(3)
    assert stage.due() == [(3, "NXDOMAIN", False)]
    stage.end(1)
    assert stage.due() == []


def test_results_of_unknown_queries_take_a_bounded_room() -> None:
    stage = Stage()
    for one in range(1, 3001):
        stage.end(one)
    stage.ask(1, 3000)
    assert stage.due() == []
    stage.now += WAIT
    assert stage.due() == [(1, "", False), (3000, "NXDOMAIN", False)]


def test_no_time_before_the_query_is_a_latency() -> None:
    """Another CPU may have read its clock after this one."""
    stage = Stage()
    stage.ask(1)
    stage.now -= 5
    stage.end(1)
    ((made, _),) = stage.results.due()
    assert made.outcome == replace(Outcome("NXDOMAIN", whole=False), latency_ns=0)


ALL_CONDITIONS = Alert(3, ("NXDOMAIN", "SERVFAIL"), unanswered=True, latency_ns=500 * MS)


@pytest.mark.parametrize(
    ("alert", "outcome", "reasons"),
    [
        (ALL_CONDITIONS, Outcome("NXDOMAIN", latency_ns=1), ("rcode",)),
        (ALL_CONDITIONS, Outcome("SERVFAIL", latency_ns=500 * MS), ("rcode", "latency")),
        (ALL_CONDITIONS, Outcome("NOERROR", latency_ns=500 * MS), ("latency",)),
        (ALL_CONDITIONS, Outcome("NOERROR", latency_ns=500 * MS - 1), ()),
        (ALL_CONDITIONS, Outcome(reason="timeout"), ("unanswered",)),
        (ALL_CONDITIONS, Outcome(reason="closed"), ("unanswered",)),
        (Alert(rcodes=("NODATA",)), Outcome("NXDOMAIN", latency_ns=1), ()),
        (Alert(rcodes=("NODATA",)), Outcome(reason="timeout"), ()),
        (Alert(latency_ns=1), Outcome(reason="timeout"), ()),
        (Alert(latency_ns=1), Outcome("NOERROR", latency_ns=0), ()),
    ],
)
def test_an_alert_has_the_conditions_that_are_met(alert: Alert, outcome: Outcome, reasons: tuple[str, ...]) -> None:
    assert alert.reasons(outcome) == reasons


@pytest.mark.parametrize(("of_rule", "of_alert", "priority"), [(6, 3, 3), (2, 3, 2), (7, 0, 0)])
@pytest.mark.parametrize("wait", [0, WAIT])
def test_a_result_that_meets_the_alert_of_its_rule_has_its_priority(
    wait: int, of_rule: int, of_alert: int, priority: int
) -> None:
    stage = Stage(wait)
    rule = Rule(1, "a.test", "a.test", of_rule, ALL_CONDITIONS._replace(priority=of_alert))
    stage.results.add((query(query_id=one, time_ns=SENT, rule=rule), IDENTITY) for one in (1, 2))
    before = [*stage.results.due()]
    stage.end(1, Result.NXDOMAIN)
    stage.end(2, Result.NODATA)
    alert, other = (made for made, _ in stage.results.due())
    assert (alert.alerts, alert.priority, alert.is_late) == (("rcode",), priority, not wait)
    assert (other.alerts, other.priority) == ((), of_rule)
    assert {(made.alerts, made.priority) for made, _ in before} == ({((), of_rule)} if not wait else set())
