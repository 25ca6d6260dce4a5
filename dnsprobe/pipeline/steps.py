"""Long work in steps, between which the event loop does its other work.

A function that yields is such work. It yields None after each step. It yields a call if it has to wait for the kernel:
the call touches nothing that other work uses, so it can run in a thread. If the work is given up, or the call fails,
the function is closed, and finds that out in a ``finally`` clause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

_T = TypeVar("_T")

Steps = Generator[Callable[[], object] | None, None, _T]

#: Seconds after which other work gets its turn.
_TURN_SECONDS = 0.005


def as_steps(steps: Iterable[None]) -> Steps[None]:
    """Return what yields after each step, and never waits, as steps."""
    yield from steps


def run(steps: Steps[_T]) -> _T:
    """Do all steps, one after the other, and return the result."""
    try:
        while True:
            if call := next(steps):
                call()
    except StopIteration as end:
        result: _T = end.value
        return result
    finally:
        steps.close()


async def run_in_turns(steps: Steps[_T]) -> _T:
    """Do all steps, and let the loop do other work in between. Return the result."""
    began = time.monotonic()
    try:
        while True:
            if call := next(steps):
                await asyncio.to_thread(call)
            elif time.monotonic() - began > _TURN_SECONDS:
                await asyncio.sleep(0)
            else:
                continue
            began = time.monotonic()
    except StopIteration as end:
        result: _T = end.value
        return result
    finally:
        steps.close()
