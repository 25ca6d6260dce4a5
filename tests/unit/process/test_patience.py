"""Calls that may take long."""

from __future__ import annotations

import threading

import pytest

from dnsprobe.process.patience import Patience


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_a_quick_call_returns_comes_at_once() -> None:
    patience: Patience[int] = Patience("test", Clock())
    assert [patience.call(lambda: number) for number in range(5)] == [0, 1, 2, 3, 4]  # noqa: B023 - runs now


def test_a_call_that_fails_returns_nothing() -> None:
    def fail() -> int:
        raise PermissionError

    patience: Patience[int] = Patience("test", Clock())
    assert patience.call(fail) is None
    assert patience.call(lambda: 1) == 1


@pytest.mark.parametrize("took", [0.006, 0.05, 0.099])
def test_slow_calls_take_a_tenth_of_the_time(took: float) -> None:
    clock = Clock()
    patience: Patience[bool] = Patience("test", clock)

    def slowly() -> bool:
        clock.now += took
        return True

    spent = 0.0
    while clock.now < 60:
        before = clock.now
        if not patience.call(slowly):
            clock.now += 0.001
        else:
            spent += clock.now - before
    assert 60 * 0.1 < spent < 60 * 0.1 + 2.2


def test_calls_that_are_slow_now_and_then_are_made() -> None:
    clock = Clock()
    patience: Patience[bool] = Patience("test", clock)

    def slowly() -> bool:
        clock.now += 0.05
        return True

    for _ in range(1000):
        assert patience.call(slowly)
        clock.now += 0.5


def test_without_threads_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    patience: Patience[int] = Patience("test", Clock())
    assert patience.call(lambda: 1) is None
