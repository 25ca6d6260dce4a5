"""How much the kernel side may keep with sockets, by the memory that is left."""

from __future__ import annotations

import logging

import pytest

from dnsprobe.kernel import abi
from dnsprobe.pipeline.storage_room import STATE_SIZE, StorageRoom
from dnsprobe.process.memory import Memory

MIB = 1 << 20


def rooms(*memories: Memory | None) -> list[int | None]:
    """Return the room for each memory, one after the other."""
    put: list[int | None] = []
    left = list(memories)
    room = StorageRoom(put.append, lambda: left.pop(0))
    for _ in memories:
        room.update()
    return put


def test_three_quarters_of_the_memory_may_be_used() -> None:
    assert rooms(Memory(100 * MIB, 400 * MIB)) == [200 * MIB // STATE_SIZE]
    assert rooms(Memory(300 * MIB, 400 * MIB), Memory(399 * MIB, 400 * MIB)) == [0, 0]


def test_without_a_limit_the_room_has_none() -> None:
    assert rooms(None) == [None]


def test_a_state_is_not_larger_than_what_it_takes_from_the_room() -> None:
    """The kernel adds 72 octets, and rounds up. For the first state of a socket, it allocates 200 more."""
    assert abi.CONNECTION.size + 72 + 200 <= STATE_SIZE
    assert abi.BEGUN.size + 72 <= STATE_SIZE
    assert abi.OPENER.size + 72 + 200 <= STATE_SIZE


def test_the_log_says_once_that_memory_is_short_and_once_that_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        rooms(*(Memory(used * MIB, 400 * MIB) for used in (100, 310, 320, 290, 301, 270, 290, 100)))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages[0].startswith("310 of 400 MiB of memory are used: dnsprobe keeps no state of new TCP conn")
    assert caplog.messages[1] == "there is memory again: dnsprobe keeps the state of new TCP connections"
