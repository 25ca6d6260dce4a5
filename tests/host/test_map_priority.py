"""The priority of map calls and of the code that uses their results."""

from __future__ import annotations

import errno
import gc
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest
from conftest import PATIENCE
from fake_kernel import EVENT, chain_of

from dnsprobe.config.main import Config
from dnsprobe.kernel import abi, libbpf
from dnsprobe.model import DECIDE, Process
from dnsprobe.names import wire
from dnsprobe.pipeline.session import Session

Item = TypeVar("Item")


def policy() -> int:
    return os.sched_getscheduler(0)


@pytest.fixture
def numbers() -> Iterator[libbpf.Map]:
    """Yield a map with 100 numbers. The key of each is the number itself."""
    found = libbpf.Map(libbpf.HASH, "numbers", 4, 4, 1000)
    assert found.set_many((key, key) for key in NUMBERS) == {}
    yield found
    found.close()


NUMBERS = [struct.pack("=I", number) for number in range(100)]
#: Each calls a method with keys, and returns its results, each with the scheduling policy at its use.
BULK: dict[str, Callable[[libbpf.Map, Iterable[bytes]], object]] = {
    "get_many": lambda numbers, keys: [(policy(), *found) for found in numbers.get_many(keys)],
    "take_many": lambda numbers, keys: [(policy(), *found) for found in numbers.take_many(keys)],
    "set_many": lambda numbers, keys: numbers.set_many((key, key) for key in keys),
    "delete_many": lambda numbers, keys: numbers.delete_many(keys),
}


@pytest.mark.parametrize("method", BULK)
def test_only_map_calls_run_in_real_time(numbers: libbpf.Map, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[tuple[str, int]] = []

    def watch(name: str) -> None:
        call = getattr(libbpf.Map, name)

        def watched(self: libbpf.Map, *arguments: object) -> object:
            during.append((name, policy()))
            return call(self, *arguments)

        monkeypatch.setattr(libbpf.Map, name, watched)

    for name in ("_get", "_set", "_delete"):
        watch(name)
    sources = []

    def keys() -> Iterator[bytes]:
        for key in NUMBERS:
            sources.append(policy())
            yield key

    results = BULK[method](numbers, keys())
    if method in {"get_many", "take_many"}:
        assert results == [(os.SCHED_OTHER, key, key) for key in NUMBERS]
    assert sources == [os.SCHED_OTHER] * 100
    calls = {"get_many": ["_get"], "take_many": ["_get", "_delete"], "set_many": ["_set"], "delete_many": ["_delete"]}
    assert during == [(name, os.SCHED_FIFO) for _ in NUMBERS for name in calls[method]]
    assert policy() == os.SCHED_OTHER


def test_calls_for_many_keys_read_take_and_change_each_entry(numbers: libbpf.Map) -> None:
    absent = struct.pack("=I", 1000)
    assert dict(numbers.get_many([NUMBERS[1], absent])) == {NUMBERS[1]: NUMBERS[1], absent: None}
    assert list(numbers.take_many([NUMBERS[1], absent, NUMBERS[1]])) == [
        (NUMBERS[1], NUMBERS[1]),
        (absent, None),
        (NUMBERS[1], None),
    ]
    numbers.delete_many([NUMBERS[2], absent])
    assert numbers.set_many([(NUMBERS[3], absent), (absent, absent)], libbpf.EXIST) == {absent: errno.ENOENT}
    assert numbers.set_many([(NUMBERS[3], absent), (absent, absent)], libbpf.NOEXIST) == {NUMBERS[3]: errno.EEXIST}
    expected = {key: key for key in [NUMBERS[0], *NUMBERS[4:], absent]} | {NUMBERS[3]: absent}
    assert dict(numbers.items()) == expected
    assert dict(numbers.get_many(expected)) == expected


def test_real_time_ends_with_a_consumer_that_gives_up(numbers: libbpf.Map) -> None:
    for _ in numbers.get_many(NUMBERS):
        for _ in numbers.get_many(NUMBERS):
            break
        assert policy() == os.SCHED_OTHER
        break
    with pytest.raises(ZeroDivisionError):
        sum(1 // key[0] for key, _ in numbers.get_many(NUMBERS))
    gc.collect()
    assert policy() == os.SCHED_OTHER
    numbers.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        list(numbers.get_many(NUMBERS))
    assert policy() == os.SCHED_OTHER


def test_other_processes_get_the_processor_between_slices(numbers: libbpf.Map, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    change = os.sched_setscheduler

    def changing(pid: int, policy: int, param: os.sched_param) -> None:
        changes.append(policy)
        change(pid, policy, param)

    monkeypatch.setattr(os, "sched_setscheduler", changing)
    assert sum(1 for _ in numbers.get_many(NUMBERS * 10)) == 1000
    assert changes == [os.SCHED_FIFO, os.SCHED_OTHER] * 32


@pytest.fixture
def unattached() -> Iterator[Session]:
    """Yield a session that has its maps, but no hooks."""
    session = Session(Config(), [("ads*.test", "ads*.test", 6)])
    yield session
    session.close()


def asked(number: int) -> abi.Event:
    """Return an event of a query whose name is for user space to decide. Each is of another process."""
    return replace(
        EVENT,
        name_hash=number,
        rule=DECIDE,
        kind=abi.Kind.UNDECIDED,
        name=wire.from_text(f"ads{number}.test"),
        chain=chain_of(Process(tgid=(1 << 22) + number, start_ns=1, comm=b"asker")),
    )


def test_queries_are_used_at_ordinary_priority(unattached: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [asked(number) for number in range(100)]
    monkeypatch.setattr(unattached.probe.maps.events, "read", lambda: [events.pop() for _ in range(len(events))])
    used: list[tuple[int, bytes]] = []
    until = time.monotonic() + PATIENCE
    while len(used) < 100 and time.monotonic() < until:
        used += [(policy(), query.qname) for query, _ in unattached.queries()]
        unattached.matcher.wait(1)
    assert sorted(used) == sorted((os.SCHED_OTHER, wire.from_text(f"ads{number}.test")) for number in range(100))


def test_counters_and_lineages_are_used_at_ordinary_priority(unattached: Session) -> None:
    probe = unattached.probe
    policies: set[int] = set()

    def given(items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            policies.add(policy())
            yield item

    def used(results: Iterable[Item]) -> list[Item]:
        return list(given(results))

    processes = [(1, (1 << 22) + number) for number in range(100)]
    counters = [(*process, 1, 1, 0, 0) for process in processes]
    pending = [(1, number, (1 << 22) + number, 1, 1, 0, 0) for number in range(100)]
    programs = [(*process, 0) for process in processes]
    nobody = abi.AncestorKey(0, 0)
    ancestors = {
        abi.AncestorKey(1, tgid): abi.Ancestor(0, nobody, 0, False, False, False, False, b"sh") for _, tgid in processes
    }
    probe.maps.counters.set_many((key, 3) for key in counters)
    probe.maps.pending.set_many((key, 4) for key in pending)
    probe.lineage_table.add_ancestors(given(ancestors.items()))
    probe.lineage_table.set_ancestors(given(ancestors.items()))
    assert dict(used(probe.lineage_table.ancestors())) == ancestors
    probe.lineage_table.forget_ancestors(given(ancestors))
    assert used(probe.lineage_table.ancestors()) == []
    assert used(probe.maps.ancestries.get_many(given(processes))) == [(process, None) for process in processes]
    assert used(probe.maps.facts.get_many(given(programs))) == [(program, None) for program in programs]
    assert probe.decide(given((number, b"\0", 1) for number in range(100))) == []
    assert used(probe.maps.overflow.read(given(range(100)))) == [(rule, 0) for rule in range(100)]
    assert probe.maps.take_overflow(given(range(100))) == {}
    probe.maps.ancestries.delete_many(given(processes))
    probe.maps.facts.delete_many(given(programs))
    probe.maps.names.delete_many(given(range(100)))
    assert used(probe.maps.counters.take_many(given(counters))) == [(key, 3) for key in counters]
    assert used(probe.maps.pending.take_many(given(pending))) == [(key, 4) for key in pending]
    assert used(probe.maps.counters.items()) == []
    assert used(probe.maps.pending.items()) == []
    assert policies == {os.SCHED_OTHER}
