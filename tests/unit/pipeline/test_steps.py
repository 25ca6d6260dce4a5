"""Long work in steps."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from dnsprobe.pipeline.steps import Steps, run, run_in_turns


def work(calls: list[str], *, fails: bool = False) -> Steps[int]:
    def wait() -> None:
        calls.append("main" if threading.current_thread() is threading.main_thread() else "thread")
        if fails:
            raise OSError("refused")

    try:
        yield None
        yield wait
        yield None
    finally:
        calls.append("closed")
    return 5


def test_all_steps_are_done_at_once() -> None:
    calls: list[str] = []
    assert run(work(calls)) == 5
    assert calls == ["main", "closed"]


def test_a_step_that_waits_runs_in_a_thread_of_the_loop() -> None:
    calls: list[str] = []
    assert asyncio.run(run_in_turns(work(calls))) == 5
    assert calls == ["thread", "closed"]


@pytest.mark.parametrize("in_turns", [False, True])
def test_a_step_that_fails_closes_the_work(*, in_turns: bool) -> None:
    calls: list[str] = []
    do = (lambda steps: asyncio.run(run_in_turns(steps))) if in_turns else run
    with pytest.raises(OSError, match="refused"):
        do(work(calls, fails=True))
    assert calls[-1] == "closed"


def test_other_work_gets_its_turn() -> None:
    turns: list[int] = []

    def slow() -> Steps[None]:
        for step in range(10):
            turns.append(step)
            time.sleep(0.006)
            yield None

    async def both() -> None:
        task = asyncio.get_running_loop().create_task(run_in_turns(slow()))
        others = 0
        while not task.done():
            await asyncio.sleep(0)
            others += 1
        assert others >= 10

    asyncio.run(both())
    assert turns == list(range(10))
