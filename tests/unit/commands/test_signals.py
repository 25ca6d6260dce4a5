"""Signals of commands that run until they are interrupted."""

from __future__ import annotations

import asyncio
import os
import signal

from dnsprobe.commands.signals import once_for_all


def test_signals_that_arrive_during_a_call_cause_one_more_call() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            for _ in range(5):
                os.kill(os.getpid(), signal.SIGHUP)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, once_for_all(call))
        try:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.1)
            assert calls == [0, 1]
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.1)
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    asyncio.run(run())
    assert calls == [0, 1, 2]
