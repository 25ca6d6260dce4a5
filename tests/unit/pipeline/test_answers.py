"""What became of queries, added up while counters come and go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dnsprobe.kernel.abi import Noted, Result
from dnsprobe.kernel.maps import Counted, Note, SocketEvent
from dnsprobe.model import OTHER, Count, Rule, Series
from dnsprobe.pipeline.answers import RCODES, REASONS, Answers, Group, Sums
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.steps import run

KEY = (1, 2, 3, 1, 0, 0)
GROUP = Group("example.test", "udp")
SECOND = 10**9


class Notes:
    """The map of notes. ``taken`` are those that a BPF program takes before user space does."""

    def __init__(self) -> None:
        self.entries: dict[int, Note] = {}
        self.taken: set[int] = set()
        self.given_up: list[int] = []
        self.sockets: dict[int, list[SocketEvent]] = {1: []}

    def items(self) -> Iterator[tuple[int, Note]]:
        yield from list(self.entries.items())

    def take_own(self, keys: Iterable[int]) -> Iterator[tuple[int, Note]]:
        for key in keys:
            note = self.entries.pop(key)
            if key not in self.taken:
                yield key, note

    def delete_many(self, keys: Iterable[int]) -> None:
        for key in keys:
            del self.entries[key]


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def answers(notes: Notes) -> Answers:
    unmatched = SimpleNamespace(read=lambda reasons: [(reason, 7) for reason in reasons])
    sockets = SimpleNamespace(get_many=lambda keys: [(key, notes.sockets.get(key)) for key in keys])
    maps = SimpleNamespace(
        notes=notes,
        canary_notes=notes,
        sockets=sockets,
        put_given_up=notes.given_up.extend,
        unmatched=unmatched,
    )
    probe: Any = SimpleNamespace(maps=maps)
    return Answers(probe, 5 * SECOND, lambda: 10 * SECOND)


def counted(queries: int, **results: int) -> Counted:
    """Return a counter with these results."""
    return Counted(queries, tuple(results.get(result.name.lower(), 0) for result in Result))


def collect(answers: Answers, live: Counted | None = None) -> dict[str, int]:
    """Collect, and return the numbers of the group that are not 0."""
    answers.begin_collection()
    if live is not None:
        answers.seen(KEY, live)
        results = answers.add_live(KEY, GROUP)
        assert sum(results) <= live.queries
    run(answers.ending_collection(Totals(8), [GROUP.domain]))
    sums = answers.collected.get(GROUP, Sums())
    assert answers.outcomes.waiting[GROUP] == sums.waiting
    assert answers.outcomes.untracked[GROUP] == sums.results[Result.UNTRACKED]
    found = {result.name.lower(): times for result, times in zip(Result, sums.results, strict=True) if times}
    return found | ({"waiting": sums.waiting} if sums.waiting else {})


def test_a_query_without_result_waits(answers: Answers) -> None:
    assert collect(answers, counted(5, noerror=2, closed=1)) == {"noerror": 2, "closed": 1, "waiting": 2}


def test_a_query_is_given_up_once_unless_another_event_was_first(answers: Answers, notes: Notes) -> None:
    notes.entries = {
        1: Note(4 * SECOND, KEY, Noted.COUNT, 7, 1),
        2: Note(4 * SECOND, KEY, Noted.COUNT, 7, 1),
        3: Note(6 * SECOND, KEY, Noted.COUNT, 7, 1),
    }
    notes.taken = {2}
    run(answers.giving_up())
    run(answers.giving_up())
    assert list(notes.entries) == [3]
    assert notes.given_up == [1]
    assert collect(answers, counted(3, noerror=1)) == {"noerror": 1, "timeout": 1, "waiting": 1}


def test_a_query_that_is_sent_again_at_the_timeout_has_one_result(
    answers: Answers, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = (9, *KEY[1:])

    def items() -> Iterator[tuple[int, Note]]:
        yield 1, Note(4 * SECOND, KEY, Noted.COUNT, 7, 1)
        # A BPF program has counted that one as superseded. The new one has another counter.
        notes.entries = {1: Note(9 * SECOND, other, Noted.COUNT, 7, 1)}

    monkeypatch.setattr(notes, "items", items)
    run(answers.giving_up())
    assert collect(answers, counted(1, superseded=1)) == {"superseded": 1}
    answers.seen(other, counted(1))
    assert not answers.is_waiting(other)
    answers.seen(other, counted(1))
    assert answers.add_final(other, GROUP)[Result.UNTRACKED] == 1


@pytest.mark.parametrize(
    ("events", "result"),
    [
        ({}, "timeout"),
        ({5: "closed"}, "closed"),
        ({5: "unreachable", 6: "closed"}, "unreachable"),
        ({5: "untracked", 6: "closed"}, "untracked"),
        # What happened before the query was another socket at the same address, or another query.
        ({1: "untracked", 3: "closed"}, "timeout"),
        ({3: "unreachable", 5: "closed", 6: "unreachable", 7: "closed"}, "closed"),
    ],
)
def test_what_happened_to_the_socket_says_why_there_is_no_answer(
    answers: Answers, notes: Notes, events: dict[int, str], result: str
) -> None:
    notes.entries = {1: Note(4 * SECOND, KEY, Noted.COUNT, 7, 1)}
    notes.sockets = {1: [SocketEvent(at * SECOND, Result[what.upper()]) for at, what in events.items()]}
    run(answers.giving_up())
    assert collect(answers, counted(1)) == {result: 1}


@pytest.mark.parametrize(("transport", "result"), [(0, "timeout"), (1, "untracked"), (0x81, "untracked")])
def test_a_socket_that_is_forgotten_may_have_missed_answers_over_tcp(
    answers: Answers, notes: Notes, transport: int, result: str
) -> None:
    key = (*KEY[:-2], transport, 1)
    notes.entries = {1: Note(4 * SECOND, key, Noted.COUNT, 7, 2)}
    run(answers.giving_up())
    answers.begin_collection()
    answers.seen(key, counted(1))
    assert answers.add_live(key, GROUP)[Result[result.upper()]] == 1


def test_a_counter_without_queries_is_not_final(answers: Answers) -> None:
    for queries, is_waiting in ((0, True), (1, False)):
        answers.seen(KEY, counted(queries))
        assert answers.is_waiting(KEY, has_results=False) == is_waiting


def test_a_canary_is_given_up_without_a_trace(answers: Answers, notes: Notes) -> None:
    notes.entries = {
        1: Note(4 * SECOND, (1, 2, 3, 0, 0, 0), Noted.CANARY, 7, 1),
        2: Note(6 * SECOND, (1, 2, 3, 0, 0, 0), Noted.CANARY, 7, 1),
    }
    run(answers.giving_up())
    assert list(notes.entries) == [2]
    assert notes.given_up == []
    assert not answers._given_up


def test_a_counter_is_final_when_no_query_waits(answers: Answers, notes: Notes) -> None:
    answers.seen(KEY, counted(2, noerror=1))
    assert answers.is_waiting(KEY)
    notes.entries = {1: Note(4 * SECOND, KEY, Noted.COUNT, 7, 1)}
    run(answers.giving_up())
    answers.seen(KEY, counted(2, noerror=1))
    assert not answers.is_waiting(KEY)
    answers.seen(KEY, counted(2, noerror=1))
    answers.add_final(KEY, GROUP)
    assert collect(answers) == {"noerror": 1, "timeout": 1}
    # The process asks again later, under the same key.
    assert collect(answers, counted(1)) == {"noerror": 1, "timeout": 1, "waiting": 1}


def test_what_waits_when_its_counter_goes_is_untracked(answers: Answers) -> None:
    answers.seen(KEY, counted(3, noerror=1))
    answers.add_final(KEY, GROUP)
    assert collect(answers) == {"noerror": 1, "untracked": 2}


def test_queries_without_process_are_untracked(answers: Answers) -> None:
    answers.add_untracked(GROUP, 4, final=True)
    assert collect(answers) == {"untracked": 4}


def test_the_metrics_of_a_domain_begin_at_zero(answers: Answers) -> None:
    run(answers.ending_collection(Totals(8), ["example.test", "*.test"]))
    groups = {(domain, transport) for domain in ("example.test", "*.test") for transport in ("udp", "tcp")}
    assert answers.outcomes.waiting == answers.outcomes.untracked == dict.fromkeys(groups, 0)
    assert answers.outcomes.unmatched == dict.fromkeys(["late", "duplicate", "unsolicited", "unreadable", "forged"], 7)


def test_results_have_the_labels_of_their_series(answers: Answers) -> None:
    rule, totals = Rule(1, "example.test", "example.test"), Totals(8, tracks_answers=True)
    of_dig, of_others = ([3, 0, 1, 0, 0, 0, 0, 0, 0, 2], [0] * Result.UNTRACKED + [4])
    totals.collect(
        [
            Count(rule, "A", "udp", "local", "dig", "sh;dig", "a.service", "", 7, results=tuple(of_dig)),
            Count(rule, OTHER, OTHER, OTHER, OTHER, OTHER, "", "", 4, results=tuple(of_others)),
        ]
    )
    run(answers.ending_collection(totals, []))
    series = Series("example.test", "A", "udp", "local", "dig", "sh;dig", "a.service", "")
    assert answers.outcomes.responses == {(series, "NOERROR"): 3, (series, "SERVFAIL"): 1, (series, "NODATA"): 2}
    assert answers.outcomes.unanswered == {}


def test_each_result_has_a_metric() -> None:
    assert RCODES.keys() | REASONS.keys() | {Result.UNTRACKED} == set(Result)
    assert not RCODES.keys() & REASONS.keys()
    assert set(REASONS.values()) == {"timeout", "closed", "unreachable", "superseded"}
