"""Reloads on demand, and counts that are collected once for all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from dnsprobe.commands import reload
from dnsprobe.commands.fresh_counts import FreshCounts
from dnsprobe.commands.reload import reload_on_demand
from dnsprobe.model import Series

SERIES = Series("test", "A", "udp", "remote", "dig", "dig", "", "")


def test_demands_during_a_reload_cause_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "_PAUSE_SECONDS", 0.01)
    reloads = 0

    async def run() -> None:
        demand, ended = asyncio.Event(), asyncio.Event()

        async def one() -> None:
            nonlocal reloads
            reloads += 1
            for _ in range(1000 if reloads == 1 else 0):
                demand.set()
                await asyncio.sleep(0)
            if reloads == 2:
                ended.set()

        task = asyncio.create_task(reload_on_demand(demand, one))
        for _ in range(100):
            demand.set()
        await asyncio.wait_for(ended.wait(), 60)
        await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(run())
    assert reloads == 2


def test_who_comes_during_a_collection_gets_the_next_one() -> None:
    collections = 0
    seen: list[int] = []

    async def run() -> None:
        gate = asyncio.Event()

        async def collect() -> Mapping[Series, int]:
            nonlocal collections
            collections += 1
            await gate.wait()
            return {SERIES: collections}

        counts = FreshCounts(collect)
        for _ in range(3):
            counts.when_collected(lambda: seen.append(counts.last[SERIES]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        counts.when_collected(lambda: seen.append(counts.last[SERIES]))
        gate.set()
        await counts.collect()

    asyncio.run(run())
    assert seen == [1, 1, 1, 2]
    assert collections == 2


def test_a_collection_that_fails_is_an_error_for_who_needs_it_and_the_next_one_works() -> None:
    async def run() -> None:
        results: list[Mapping[Series, int] | Exception] = [OSError("no memory"), {SERIES: 1}]

        async def collect() -> Mapping[Series, int]:
            result = results.pop(0)
            if isinstance(result, Exception):
                raise result
            return result

        counts = FreshCounts(collect)
        await counts.collect()
        with pytest.raises(OSError, match="no memory"):
            _ = counts.last
        await counts.collect()
        assert counts.last == {SERIES: 1}

    asyncio.run(run())
