"""Runs asynchronous tests, and reads answers of HTTP servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

#: Seconds. No test needs that long.
PATIENCE = 120.0


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test in an event loop of its own."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    while not condition():
        await asyncio.sleep(0.01)


@dataclass
class Answer:
    """A response, with the names of its headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


async def read_answer(reader: asyncio.StreamReader, *, head: bool = False) -> Answer:
    """Read one response; ``head`` is true for the answer to a HEAD request, which has no body."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    size = 0 if head else int(headers["content-length"])
    return Answer(int(status.split(" ")[1]), headers, await reader.readexactly(size))
