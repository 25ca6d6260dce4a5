"""Events that wait until their name is decided."""

from __future__ import annotations

from dataclasses import replace

from fake_kernel import EVENT

from dnsprobe.kernel.abi import Event
from dnsprobe.model import Rule
from dnsprobe.pipeline.held_events import HeldEvents

RULE = Rule(1, "test", "test")


def event(number: int, share: int) -> Event:
    return replace(EVENT, name_hash=number, chain=replace(EVENT.chain, share=share))


def test_events_leave_when_their_name_is_decided() -> None:
    held = HeldEvents()
    for number in (1, 1, 2, 3):
        held.add(event(number, 7))
    assert [(one.name_hash, rule) for one, rule in held.take({(1, 1): RULE, (2, 1): None, (9, 1): RULE})] == [
        (1, RULE),
        (1, RULE),
    ]
    assert (len(held), held.refused) == (1, 0)


def test_the_user_with_most_events_loses_one() -> None:
    held = HeldEvents(limit=10)
    for number in range(10):
        held.add(event(number, 7))
    for number in range(100, 104):
        held.add(event(number, 8))
    assert (len(held), held.refused) == (10, 4)
    decided = {(number, 1): RULE for number in range(200)}
    assert sorted(one.name_hash for one, _ in held.take(decided)) == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103]
    assert len(held) == 0


def test_a_user_with_most_events_gets_no_more() -> None:
    held = HeldEvents(limit=3)
    for number in range(5):
        held.add(event(number, 7))
    assert (len(held), held.refused) == (3, 2)
    held.drop()
    assert (len(held), held.refused) == (0, 5)
