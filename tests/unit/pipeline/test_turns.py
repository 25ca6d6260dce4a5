"""Questions of many askers."""

from __future__ import annotations

import pytest

from dnsprobe.pipeline.turns import LIMIT_SECONDS, Question, Turns

SLOW, QUICK = 1, 2


def question(number: int) -> Question:
    return Question(number, 1, b"\0")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def serve(turns: Turns, seconds: dict[int, float]) -> list[int]:
    """Answer all questions, each of which takes the time of its asker; return the askers in the order of service."""
    order = []
    while turn := turns.next():
        asker, _ = turn
        order.append(asker)
        turns.charge(asker, turns.cost(asker), seconds[asker], over_limit=seconds[asker] >= LIMIT_SECONDS)
    return order


def test_an_asker_with_quick_names_does_not_wait_for_one_with_slow_names() -> None:
    turns = Turns(1000, Clock())
    for number in range(100):
        turns.add(SLOW, question(number))
    for number in range(100, 200):
        turns.add(QUICK, question(number))
    order = serve(turns, {SLOW: 0.05, QUICK: 0.0001})
    last = max(at for at, asker in enumerate(order) if asker == QUICK)
    assert order[:last].count(SLOW) <= 2


def test_a_pause_does_not_make_up_for_slow_names() -> None:
    turns = Turns(1000, Clock())
    for number in range(50):
        turns.add(QUICK, question(1000 + number))
    served = []
    for number in range(50):
        turns.add(SLOW, question(number))  # one at a time, each after the one before was served
        for _ in range(2):
            if turn := turns.next():
                asker, _ = turn
                served.append(asker)
                turns.charge(asker, turns.cost(asker), {SLOW: 0.05, QUICK: 0.0001}[asker], over_limit=asker == SLOW)
    assert served[:40].count(SLOW) <= 2


def test_a_new_asker_is_served_at_once() -> None:
    turns = Turns(1000, Clock())
    for number in range(100):
        turns.add(SLOW, question(number))
    for _ in range(50):
        turns.next()
        turns.charge(SLOW, turns.cost(SLOW), 0.01, over_limit=False)
    turns.add(QUICK, question(500))
    assert QUICK in {turn[0] for turn in (turns.next(), turns.next()) if turn}


def test_in_a_full_queue_the_asker_with_most_questions_loses_one() -> None:
    turns = Turns(10, Clock())
    for number in range(10):
        assert turns.add(SLOW, question(number)) is None
    assert turns.add(QUICK, question(100)) == question(9)
    assert turns.add(SLOW, question(10)) == question(10)
    assert len(turns) == 10


def test_the_limit_falls_with_slow_names_and_rises_again() -> None:
    clock = Clock()
    turns = Turns(100, clock)
    turns.add(SLOW, question(1))
    assert turns.limit(SLOW) == LIMIT_SECONDS
    for _ in range(3):
        turns.charge(SLOW, 0, LIMIT_SECONDS, over_limit=True)
    assert turns.limit(SLOW) == pytest.approx(LIMIT_SECONDS / 4)
    for _ in range(100):
        turns.charge(SLOW, 0, LIMIT_SECONDS, over_limit=True)
    assert turns.limit(SLOW) == 0.005
    clock.now += 3600
    assert turns.limit(SLOW) == pytest.approx(LIMIT_SECONDS)
    assert turns.limit(QUICK) == LIMIT_SECONDS


def test_askers_without_questions_are_not_remembered_without_limit() -> None:
    turns = Turns(10, Clock())
    for asker in range(5000):
        turns.add(asker, question(asker))
        turns.next()
    assert len(turns._askers) <= 1025
