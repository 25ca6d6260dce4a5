"""The table of maps: what it declares, and how typed maps encode and decode, with maps in memory."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterable, Iterator
from typing import cast

import pytest

from dnsprobe.kernel import abi, libbpf
from dnsprobe.kernel.compiler import bpf_folder
from dnsprobe.kernel.loader import SELF_CALLS
from dnsprobe.kernel.maps import Maps, NameVerdict, Settings, Sizes
from dnsprobe.model import DECIDE, NO_RULE
from dnsprobe.names.ruleset import TrieEntry

SIZES = Sizes(ring=4096, processes=11, counters=12, names=13, recent=14, lineage=15)
RULE = TrieEntry(b"\4test\0", 1, 5, 6)


class MapInMemory:
    """Keeps the interface of :class:`libbpf.Map`, with a bound on the number of entries."""

    made: list[MapInMemory]
    #: Creating the map of this name fails.
    refused_name = ""

    def __init__(
        self,
        kind: int,
        name: str,
        key_size: int,
        value_size: int,
        entries: int,
        *,
        flags: int = 0,
        inner: MapInMemory | None = None,
    ) -> None:
        if name == self.refused_name:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self.kind, self.name, self.entries, self.flags, self.inner = kind, name, entries, flags, inner
        self.key_size, self.value_size = key_size, value_size
        self.data: dict[bytes, bytes] = {}
        self.fd = len(self.made)
        self.made.append(self)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        yield from list(self.data.items())

    def get_many(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
        for key in keys:
            yield key, self.data.get(key)

    def take_many(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
        for key in keys:
            yield key, self.data.pop(key, None)

    def push(self, value: bytes) -> None:
        self.data[len(self.data).to_bytes(4, sys.byteorder)] = value

    def set(self, key: bytes, value: bytes, flags: int = libbpf.ANY) -> None:
        if refused := self.set_many([(key, value)], flags):
            raise OSError(refused[key], "refused")

    def set_many(self, items: Iterable[tuple[bytes, bytes]], flags: int = libbpf.ANY) -> dict[bytes, int]:
        refused = {}
        for key, value in items:
            assert len(key) == self.key_size
            if flags == libbpf.NOEXIST and key in self.data:
                refused[key] = errno.EEXIST
            elif flags == libbpf.EXIST and key not in self.data:
                refused[key] = errno.ENOENT
            elif key not in self.data and len(self.data) >= self.entries:
                refused[key] = errno.E2BIG
            else:
                self.data[key] = value
        return refused

    def delete_many(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.data.pop(key, None)

    def close(self) -> None:
        self.fd = -1


class RingInMemory:
    """Keeps the interface of :class:`libbpf.Ring`."""

    def __init__(self, ring: MapInMemory, at_once: int) -> None:
        self.ring, self.at_once = ring, at_once

    def close(self) -> None:
        assert self.ring.fd >= 0, "a ring is closed before its map"


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[MapInMemory]:
    """Return all maps that the test creates."""
    maps: list[MapInMemory] = []
    monkeypatch.setattr(MapInMemory, "made", maps, raising=False)
    monkeypatch.setattr(libbpf, "possible_cpus", lambda: 3)
    return maps


@pytest.fixture
def maps() -> Maps:
    return in_memory(SIZES)


def in_memory(sizes: Sizes) -> Maps:
    return Maps(sizes, cast(type[libbpf.Map], MapInMemory), cast(type[libbpf.Ring], RingInMemory))


def created(made: list[MapInMemory], name: str) -> MapInMemory:
    (found,) = [each for each in made if each.name == name.lower()]
    return found


def test_each_map_of_the_bpf_sources_is_declared_and_each_declared_map_is_used(maps: Maps) -> None:
    sources = [path.read_text(encoding="utf-8") for path in bpf_folder().rglob("*.[ch]")]
    used = {name for source in sources for name in re.findall(r"\bMAP\((\w+)\)", source)} - {"name"}
    # The loader child makes this one, for each compilation.
    assert used == {*maps.descriptors, SELF_CALLS}


def test_descriptors_have_the_names_of_the_bpf_sources(maps: Maps, made: list[MapInMemory]) -> None:
    assert maps.descriptors["COUNTS"] == created(made, "COUNTS").fd
    assert len(set(maps.descriptors.values())) == len(maps.descriptors)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("EVENTS", 4096),
        ("PROCESSES", 11),
        ("IDENTITIES", 11),
        ("COUNTS", 12),
        ("NAMES", 13),
        ("PENDING", 13),
        ("SEEN", 14),
        ("LINEAGE", 15),
        ("OVERFLOW", abi.OVERFLOW_SLOTS),
        ("STATISTICS", len(abi.Statistic)),
    ],
)
def test_a_map_has_its_configured_size(maps: Maps, made: list[MapInMemory], name: str, entries: int) -> None:
    assert created(made, name).entries == entries


def test_without_lineage_tracking_its_map_is_as_small_as_possible(made: list[MapInMemory]) -> None:
    in_memory(Sizes(4096, 1, 1, 1, 1))
    assert created(made, "LINEAGE").entries == 1


def test_all_maps_are_closed(maps: Maps, made: list[MapInMemory]) -> None:
    maps.close()
    assert {each.fd for each in made} == {-1}


def test_if_a_map_cannot_be_created_the_others_are_closed(
    made: list[MapInMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MapInMemory, "refused_name", "streams")
    with pytest.raises(OSError, match="Cannot allocate memory"):
        in_memory(SIZES)
    assert len(made) > 10
    assert {each.fd for each in made} == {-1}


def test_keys_and_values_come_back(maps: Maps) -> None:
    counts = {(1, 2, 3, 4, 1, 7): 5, (6, 7, 8, 9, 0, 0): 10}
    maps.counters.set_many(counts.items())
    assert dict(maps.counters.items()) == counts
    assert list(maps.counters.keys()) == list(counts)
    assert list(maps.counters.get_many([(1, 2, 3, 4, 1, 7), (0, 0, 0, 0, 0, 0)])) == [
        ((1, 2, 3, 4, 1, 7), 5),
        ((0, 0, 0, 0, 0, 0), None),
    ]
    assert list(maps.counters.take_many([(1, 2, 3, 4, 1, 7)])) == [((1, 2, 3, 4, 1, 7), 5)]
    maps.counters.delete_many([(6, 7, 8, 9, 0, 0), (0, 0, 0, 0, 0, 0)])
    assert list(maps.counters.items()) == []


def test_each_type_of_value_comes_back(maps: Maps) -> None:
    settings = Settings(
        repeat_ns=60, generation=3, seeding=True, parts_only=False, answers=16, hash_key=tuple(range(abi.HASH_KEYS))
    )
    maps.settings.put(0, settings)
    assert dict(maps.settings.items()) == {0: settings}
    pending = {(1, 1 << 63, 2, 3, 4, 1, 7): 5}
    maps.pending.set_many(pending.items())
    assert dict(maps.pending.items()) == pending
    names = {1 << 63: NameVerdict(DECIDE, 2, b"\3www\4test\0"), 7: NameVerdict(NO_RULE, 1, b"\0")}
    maps.names.set_many(names.items())
    assert dict(maps.names.items()) == names
    ancestor = abi.Ancestor(3, abi.AncestorKey(1, 2), 4, True, False, True, False, b"fifteen octets.")
    maps.ancestors.set_many([(abi.AncestorKey(5, 6), ancestor)])
    assert dict(maps.ancestors.items()) == {abi.AncestorKey(5, 6): ancestor}


@pytest.mark.parametrize(("transport", "is_stream"), [(0, False), (1, True), (0x80, False), (0x81, True)])
def test_a_note_has_the_transport_of_its_counter(
    maps: Maps, made: list[MapInMemory], transport: int, is_stream: bool
) -> None:
    counters = [abi.COUNT_KEY.pack(1, 2, 3, 4, transport, 5), abi.PENDING_KEY.pack(1, 2, 3, 4, 5, transport, 6)]
    for is_pending, key in enumerate(counters):
        created(made, "NOTES").data[is_pending.to_bytes(8, sys.byteorder)] = abi.NOTE.pack(7, 8, 9, is_pending, key, 0)
    assert [note.is_stream for _, note in maps.notes.items()] == [is_stream] * 2


def test_only_the_kernel_writes_ancestries_and_facts(maps: Maps, made: list[MapInMemory]) -> None:
    key = abi.PROCESS_KEY.pack(1, 2, 0)
    created(made, "PROCESSES").data[key] = bytes(abi.CHAIN_BYTES)
    assert list(maps.ancestries.keys()) == [(1, 2)]
    ((_, chain),) = maps.ancestries.get_many([(1, 2)])
    assert chain is not None
    assert chain.processes == ()
    with pytest.raises(NotImplementedError):
        maps.ancestries.put((1, 2), chain)


def test_a_statistic_is_summed_over_the_cpus(maps: Maps, made: list[MapInMemory]) -> None:
    raw = created(made, "STATISTICS").data
    raw[(1).to_bytes(4, sys.byteorder)] = b"".join(abi.COUNTER.pack(value) for value in (1, 0, 41))
    assert list(maps.statistics.read([1])) == [(1, 42)]
    maps.statistics.set_many([(1, 7)])
    assert list(raw.values()) == [abi.COUNTER.pack(7) + bytes(16)]


def test_insert_ignores_keys_that_are_there_and_counts_those_without_room(maps: Maps) -> None:
    small = {(number, 0, 0, 0, 0, 0): number for number in range(SIZES.counters)}
    assert maps.counters.insert_many(small.items()) == 0
    assert maps.counters.insert_many(((number, 0, 0, 0, 0, 0), 99) for number in (0, 98, 99)) == 2
    assert dict(maps.counters.items()) == small


def test_update_returns_the_keys_that_are_not_there(maps: Maps) -> None:
    maps.names.set_many([(1, NameVerdict(DECIDE, 1, b"\0"))])
    decided = NameVerdict(5, 2, b"\0")
    assert maps.names.update_many([(1, decided), (2, decided)]) == {2}
    assert dict(maps.names.items()) == {1: decided}


def test_a_value_without_room_is_an_error(maps: Maps) -> None:
    with pytest.raises(OSError, match=r"Argument list too long|list too long|E2BIG"):
        maps.counters.set_many(((number, 0, 0, 0, 0, 0), 1) for number in range(SIZES.counters + 1))


def test_rules_are_replaced_all_at_once(maps: Maps, made: list[MapInMemory]) -> None:
    rules = created(made, "RULES")
    (first,) = [each for each in made if each.name == "trie"]
    assert rules.inner is first
    maps.put_rules([RULE])
    second = made[-1]
    assert (second.kind, second.flags) == (libbpf.LPM_TRIE, libbpf.NO_PREALLOC)
    assert second.data == {abi.lpm_key(b"\4test\0"): abi.OUTCOME.pack(5, 6, 6, 1)}
    assert rules.data == {bytes(4): second.fd.to_bytes(4, sys.byteorder)}
    assert (first.fd, second.fd >= 0) == (-1, True)
    maps.close()
    assert second.fd == -1


def test_rules_that_the_kernel_refuses_leave_the_old_ones_in_force(
    maps: Maps, made: list[MapInMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps.put_rules([RULE])
    before = dict(created(made, "RULES").data)
    monkeypatch.setattr(MapInMemory, "set_many", lambda *_: {b"key": errno.ENOMEM})
    with pytest.raises(OSError, match="Cannot allocate memory"):
        maps.put_rules([RULE, RULE])
    assert created(made, "RULES").data == before
    assert made[-1].fd == -1


def test_rules_are_written_in_parts_and_put_in_force_by_a_call(maps: Maps, made: list[MapInMemory]) -> None:
    entries = [TrieEntry(bytes([3, *f"{number:03}".encode(), 0]), 1, 5, 6) for number in range(1000)]
    steps = maps.putting_rules(entries)
    written = []
    while (call := next(steps)) is None:
        written.append(len(made[-1].data))
        assert not created(made, "RULES").data
    assert written == [512, 1000]
    call()
    assert created(made, "RULES").data
    assert next(steps, "end") == "end"


def test_rules_that_are_given_up_leave_the_old_ones_in_force(maps: Maps, made: list[MapInMemory]) -> None:
    maps.put_rules([RULE])
    kept = made[-1]
    steps = maps.putting_rules([RULE, RULE])
    next(steps)
    del steps
    assert (made[-1].fd, kept.fd >= 0) == (-1, True)
