"""Fair shares: what user space gives back, with maps in memory."""

from __future__ import annotations

import sys
from typing import cast

import pytest
from test_maps import SIZES, MapInMemory, in_memory

from dnsprobe.kernel import abi, libbpf
from dnsprobe.kernel.abi import Resource
from dnsprobe.kernel.maps import CountKey, EventRing, Maps, NameVerdict
from dnsprobe.kernel.servers import Server
from dnsprobe.model import DECIDE
from dnsprobe.names.qtype import QTYPES

ADA, BOB = abi.SHARE_OF_USER | 1000, abi.SHARE_OF_USER | 1001


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, MapInMemory]:
    """Return the maps of ``maps`` by their names."""
    created: list[MapInMemory] = []
    monkeypatch.setattr(MapInMemory, "made", created, raising=False)
    monkeypatch.setattr(libbpf, "possible_cpus", lambda: 3)
    in_memory(SIZES)
    return {each.name: each for each in created}


@pytest.fixture
def maps(made: dict[str, MapInMemory], monkeypatch: pytest.MonkeyPatch) -> Maps:
    created: list[MapInMemory] = []
    monkeypatch.setattr(MapInMemory, "made", created, raising=False)
    maps = in_memory(SIZES)
    made.clear()
    made.update({each.name: each for each in created})
    return maps


def room(made: dict[str, MapInMemory], resource: Resource) -> int:
    return int.from_bytes(made["room"].data[resource.to_bytes(4, sys.byteorder)], sys.byteorder, signed=True)


def returned(made: dict[str, MapInMemory], share: int, resource: Resource) -> int:
    units: int = abi.RETURNED.unpack(made["returned"].data[share.to_bytes(8, sys.byteorder)])[resource]
    return units


def take(made: dict[str, MapInMemory], share: int, used: int, refused: int = 0) -> None:
    """Do as the kernel side: note what a share takes of the counters, and what it was refused."""
    numbers = [0] * (2 * len(Resource))
    numbers[Resource.COUNTERS], numbers[len(Resource) + Resource.COUNTERS] = used, refused
    made["shares"].data[share.to_bytes(8, sys.byteorder)] = abi.SHARE.pack(*numbers)


def count(made: dict[str, MapInMemory], key: CountKey, queries: int, share: int) -> None:
    made["counts"].data[abi.COUNT_KEY.pack(*key)] = abi.COUNT.pack(queries, share)


def test_the_room_is_that_of_the_maps(maps: Maps, made: dict[str, MapInMemory]) -> None:
    assert {resource: room(made, resource) for resource in Resource} == {
        Resource.COUNTERS: 12,
        Resource.NAMES: 13,
        Resource.PENDING: 13,
        Resource.PROCESSES: 11,
        Resource.IDENTITIES: 11,
        Resource.LINEAGE: 15,
        Resource.EVENTS: 4096,
        Resource.NOTES: 1,
        Resource.SERVERS: 1,
    }


def test_deleted_entries_give_back_the_room_of_their_share(maps: Maps, made: dict[str, MapInMemory]) -> None:
    keys = [(number, 1, 1, 1, 0, 0) for number in range(4)]
    for key, share in zip(keys, (ADA, ADA, BOB, ADA), strict=True):
        count(made, key, 5, share)
    missing = (9, 9, 9, 9, 0, 0)
    assert [queries for _, queries in maps.counters.take_many([*keys[:3], missing])] == [5, 5, 5]
    assert (returned(made, ADA, Resource.COUNTERS), returned(made, BOB, Resource.COUNTERS)) == (2, 1)
    maps.counters.delete_many([keys[3], missing])
    assert returned(made, ADA, Resource.COUNTERS) == 3
    assert room(made, Resource.COUNTERS) == 12 + 4
    assert room(made, Resource.NAMES) == 13


def test_the_share_is_where_the_kernel_side_puts_it(maps: Maps, made: dict[str, MapInMemory]) -> None:
    def with_share(size: int, at: int) -> bytes:
        return bytes(at) + ADA.to_bytes(8, sys.byteorder) + bytes(size - at - 8)

    process = abi.PROCESS_KEY.pack(1, 2, 0)
    made["processes"].data[process] = with_share(abi.CHAIN_BYTES, abi.CHAIN_HEAD.size - 8)
    made["identities"].data[process] = with_share(abi.IDENTITY.size, abi.IDENTITY_SHARE_AT)
    made["lineage"].data[abi.ANCESTOR_KEY.pack(3, 4)] = with_share(abi.ANCESTOR.size, abi.ANCESTOR_SHARE_AT)
    made["pending"].data[abi.PENDING_KEY.pack(1, 2, 3, 4, 5, 0, 0)] = abi.COUNT.pack(1, ADA)
    made["names"].data[(7).to_bytes(8, sys.byteorder)] = abi.NAME.pack(DECIDE, 1, 1, b"", ADA)
    made["notes"].data[(8).to_bytes(8, sys.byteorder)] = abi.NOTE.pack(1, ADA, 2, 0, b"", 0)
    made["servers"].data[abi.SERVER.pack(b"", 53, 4)] = abi.NUMBERED_SERVER.pack(9, ADA)
    maps.ancestries.delete_many([(1, 2)])
    maps.facts.delete_many([(1, 2, 0)])
    maps.ancestors.delete_many([abi.AncestorKey(3, 4)])
    maps.pending.delete_many([(1, 2, 3, 4, 5, 0, 0)])
    maps.names.delete_many([7])
    maps.notes.delete_many([8])
    maps.servers.forget([Server(bytes(4), 53)])
    assert {resource: returned(made, ADA, resource) for resource in Resource} == {
        resource: int(resource not in {Resource.COUNTERS, Resource.EVENTS}) for resource in Resource
    }


def test_a_decided_name_keeps_its_share(maps: Maps, made: dict[str, MapInMemory]) -> None:
    made["names"].data[(7).to_bytes(8, sys.byteorder)] = abi.NAME.pack(DECIDE, 1, 1, b"", ADA)
    assert maps.names.update_many([(7, NameVerdict(5, 2, b"\0")), (8, NameVerdict(5, 2, b"\0"))]) == {8}
    assert dict(maps.names.items()) == {7: NameVerdict(5, 2, b"\0", ADA)}
    maps.names.delete_many([7])
    assert returned(made, ADA, Resource.NAMES) == 1


def test_entries_of_user_space_take_room_of_nobody(maps: Maps, made: dict[str, MapInMemory]) -> None:
    ancestor = abi.Ancestor(3, abi.AncestorKey(1, 2), 4, True, False, True, False, b"sh")
    keys = [abi.AncestorKey(5, number) for number in range(17)]
    assert maps.ancestors.insert_many((key, ancestor) for key in keys) == 2
    assert maps.ancestors.insert_many([(keys[0], ancestor)]) == 0
    assert room(made, Resource.LINEAGE) == 0
    maps.ancestors.delete_many(keys)
    assert room(made, Resource.LINEAGE) == 15
    assert returned(made, abi.SHARE_OF_NOBODY, Resource.LINEAGE) == 0


class _Ring:
    def __init__(self, *records: bytes) -> None:
        self.records = list(records)

    def consume(self) -> list[bytes]:
        records, self.records = self.records, []
        return records


def test_events_give_back_their_octets(maps: Maps, made: dict[str, MapInMemory]) -> None:
    def event(share: int, size: int) -> bytes:
        return bytes(size - 8) + share.to_bytes(8, sys.byteorder)

    head = abi.CHAIN_AT + abi.CHAIN_HEAD.size
    ring = _Ring(event(ADA, head), event(BOB, head), event(ADA, head))
    assert len(EventRing(cast(libbpf.Ring, ring), 4096, maps.shares).read()) == 3
    taken = (head + 8 + 7) // 8 * 8
    assert returned(made, ADA, Resource.EVENTS) == 2 * taken
    assert returned(made, BOB, Resource.EVENTS) == taken
    assert room(made, Resource.EVENTS) == 4096 + 3 * taken


def test_refusals_are_reported_once(maps: Maps, made: dict[str, MapInMemory]) -> None:
    assert maps.shares.newly_refused() == {}
    take(made, ADA, used=6, refused=3)
    expected = [0] * len(Resource)
    expected[Resource.COUNTERS] = 3
    assert maps.shares.newly_refused() == {ADA: tuple(expected)}
    assert maps.shares.newly_refused() == {}
    take(made, ADA, used=6, refused=5)
    expected[Resource.COUNTERS] = 2
    assert maps.shares.newly_refused() == {ADA: tuple(expected)}


def test_idle_shares_are_forgotten_if_there_are_many(maps: Maps, made: dict[str, MapInMemory]) -> None:
    take(made, ADA, used=1)
    count(made, (1, 1, 1, 1, 0, 0), 1, ADA)
    take(made, BOB, used=0, refused=4)
    for number in range(abi.SHARES // 2):
        take(made, abi.SHARE_OF_CGROUP | number, used=0)
    maps.shares.sweep()
    assert len(made["shares"].data) == abi.SHARES // 2 + 4
    maps.shares.sweep()
    assert set(made["shares"].data) == {
        share.to_bytes(8, sys.byteorder) for share in (abi.SHARE_OF_NOBODY, abi.SHARE_OF_OTHERS, ADA)
    }
    # What a forgotten share was refused is not lost.
    assert list(maps.shares.newly_refused()) == [BOB]


def test_what_comes_back_of_a_forgotten_share_is_forgotten(maps: Maps, made: dict[str, MapInMemory]) -> None:
    maps.shares.give_back(Resource.COUNTERS, {BOB: 1, abi.SHARE_OF_NOBODY: 1})
    assert returned(made, BOB, Resource.COUNTERS) == 1
    maps.shares.sweep()
    assert list(made["returned"].data) == [abi.SHARE_OF_NOBODY.to_bytes(8, sys.byteorder)]


def test_a_few_idle_shares_stay(maps: Maps, made: dict[str, MapInMemory]) -> None:
    take(made, BOB, used=0)
    for _ in range(3):
        maps.shares.sweep()
    assert BOB.to_bytes(8, sys.byteorder) in made["shares"].data


def test_the_kernel_side_knows_each_type_that_has_a_name(maps: Maps, made: dict[str, MapInMemory]) -> None:
    words = {int.from_bytes(key, sys.byteorder): value for key, value in made["qtypes"].data.items()}
    known = {
        index * 64 + bit
        for index, word in words.items()
        for bit in range(64)
        if int.from_bytes(word, sys.byteorder) >> bit & 1
    }
    assert known == set(QTYPES)
    assert abi.OTHER_QTYPE not in known
