"""The BPF maps of one dnsprobe, in one table, with typed access.

Each map is declared once, in :class:`Maps`: the name that the BPF sources know as ``MAP_<name>``, its kind, the codecs
of its keys and values, and its size. No other module packs or unpacks keys and values.

Map calls run at real-time priority (:mod:`dnsprobe.kernel.real_time`). The code that uses the results does not.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from dnsprobe.kernel import abi, libbpf
from dnsprobe.names.ruleset import TrieEntry

_T = TypeVar("_T")
_K = TypeVar("_K")
_V = TypeVar("_V")

#: start_ns, tgid, rule, qtype, transport
CountKey = tuple[int, int, int, int, int]
#: start_ns, name_hash, tgid, generation, qtype, transport
PendingKey = tuple[int, int, int, int, int, int]
#: start_ns, tgid
ProcessKey = tuple[int, int]
#: start_ns, tgid, execs: one of the programs that a process executes one after the other
ProgramKey = tuple[int, int, int]

#: Octets of ``struct scratch`` (bpf/scratch.h), rounded up, and the number of kinds of hooks that have one each.
SCRATCH_SIZE, _SCRATCH_KINDS = 12288, 4
#: Scratch spaces for runs of the program at egress, of which several can be under way on one CPU: those of a thread, of
#: threads that preempted it, and of an interrupt. Each takes some microseconds.
_POOL_SIZE, _POOL_SIZE_PER_CPU = 16, 2
#: Octets. Canaries have a ring of their own, so that they come back even while the ring of events is full.
_CANARY_RING_SIZE = 64 * 1024
#: The most records that are read at a time. A flood of events must not block other work; canaries are read all at once.
_EVENTS_AT_ONCE, _CANARIES_AT_ONCE = 512, 1 << 16
#: TCP connections in the middle of a message. The one that was used least recently makes room for another.
_STREAMS = 8192
#: Sockets for UDP whose opener is noted. The one that was used least recently makes room for another.
_OPENERS = 8192


@dataclass(frozen=True, slots=True)
class Sizes:
    """Octets of the event ring, and numbers of entries of the maps. With 0 of ``lineage``, lineage tracking is off."""

    ring: int
    processes: int
    counters: int
    names: int
    recent: int
    lineage: int = 0


class Settings(NamedTuple):
    """``struct settings``. ``seeding`` is True while user space adds the processes that it finds in ``/proc``."""

    repeat_ns: int
    generation: int
    seeding: bool
    parts_only: bool
    hash_key: tuple[int, ...]


class NameVerdict(NamedTuple):
    """The verdict on a name (``struct name``).

    ``verdict`` is a rule's id, NO_RULE or DECIDE under the rules of ``generation``. ``name`` is in wire format and
    lower case.
    """

    verdict: int
    generation: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Codec(Generic[_T]):
    """The representation of a type in a map: its size in octets, and the conversion in both directions."""

    size: int
    encode: Callable[[_T], bytes]
    decode: Callable[[bytes], _T]


def _integer(layout: str) -> Codec[int]:
    number = struct.Struct(layout)
    unpack = number.unpack
    return Codec(number.size, number.pack, lambda data: unpack(data)[0])


def _fields(layout: struct.Struct) -> Codec[Any]:
    return Codec(layout.size, lambda values: layout.pack(*values), layout.unpack)


def _never(_: object) -> Any:
    raise NotImplementedError("only the kernel writes this map")


def _encode_settings(settings: Settings) -> bytes:
    return abi.SETTINGS.pack(*settings[:-1], *settings.hash_key)


def _decode_settings(data: bytes) -> Settings:
    repeat_ns, generation, seeding, parts_only, *hash_key = abi.SETTINGS.unpack(data)
    return Settings(repeat_ns, generation, bool(seeding), bool(parts_only), tuple(hash_key))


def _encode_name(verdict: NameVerdict) -> bytes:
    reversed_name = verdict.name[::-1].ljust(abi.NAME_SIZE, b"\0")
    return abi.NAME.pack(verdict.verdict, verdict.generation, len(verdict.name), reversed_name)


def _decode_name(data: bytes) -> NameVerdict:
    verdict, generation, length, reversed_name = abi.NAME.unpack(data)
    return NameVerdict(verdict, generation, abi.unreverse(reversed_name, length))


def _encode_cpu_counter(total: int) -> bytes:
    """Return the slots of all CPUs, with the total in the first."""
    return abi.COUNTER.pack(total) + bytes(abi.COUNTER.size * (libbpf.possible_cpus() - 1))


def _decode_cpu_counter(slots: bytes) -> int:
    return sum(value for (value,) in abi.COUNTER.iter_unpack(slots))


_INDEX = _integer("=I")
_HASH = _integer("=Q")
_COUNTER = _integer(abi.COUNTER.format)
_CPU_COUNTER = Codec(abi.COUNTER.size, _encode_cpu_counter, _decode_cpu_counter)
_SETTINGS = Codec(abi.SETTINGS.size, _encode_settings, _decode_settings)
_COUNT_KEY: Codec[CountKey] = _fields(abi.COUNT_KEY)
_PENDING_KEY: Codec[PendingKey] = _fields(abi.PENDING_KEY)
_PROGRAM_KEY: Codec[ProgramKey] = _fields(abi.PROCESS_KEY)
#: Ancestries are kept by process, so the field for ``execs`` is 0.
_PROCESS_KEY: Codec[ProcessKey] = Codec(
    abi.PROCESS_KEY.size, lambda key: abi.PROCESS_KEY.pack(*key, 0), lambda data: abi.PROCESS_KEY.unpack(data)[:2]
)
_CHAIN: Codec[abi.Chain] = Codec(abi.CHAIN_BYTES, _never, abi.decode_chain)
_FACTS: Codec[abi.Facts] = Codec(abi.IDENTITY.size, _never, abi.decode_identity)
_NAME = Codec(abi.NAME.size, _encode_name, _decode_name)
_ANCESTOR_KEY = Codec(
    abi.ANCESTOR_KEY.size, abi.encode_ancestor_key, lambda data: abi.AncestorKey(*abi.ANCESTOR_KEY.unpack(data))
)
_ANCESTOR = Codec(abi.ANCESTOR.size, abi.encode_ancestor, abi.decode_ancestor)


def _raise_refusal(refused: Mapping[bytes, int], ignored: int = 0) -> None:
    """Raise OSError if the kernel refused an entry for another reason than the ignored errno."""
    for code in refused.values():
        if code != ignored:
            raise OSError(code, os.strerror(code))


class TypedMap(Generic[_K, _V]):
    """A map whose keys and values are encoded and decoded. All methods raise OSError with the kernel's errno."""

    def __init__(self, raw: libbpf.Map, key: Codec[_K], value: Codec[_V]) -> None:
        self._raw, self._key, self._value = raw, key, value

    def put(self, key: _K, value: _V) -> None:
        """Store a value."""
        self._raw.set(self._key.encode(key), self._value.encode(value))

    def items(self) -> Iterator[tuple[_K, _V]]:
        """Yield all entries. Entries that are added or deleted meanwhile may be among them; no other is missed."""
        decode_key, decode_value = self._key.decode, self._value.decode
        for key, value in self._raw.items():
            yield decode_key(key), decode_value(value)

    def keys(self) -> Iterator[_K]:
        """Yield the keys of all entries."""
        for key, _value in self._raw.items():
            yield self._key.decode(key)

    def get_many(self, keys: Iterable[_K]) -> Iterator[tuple[_K, _V | None]]:
        """Yield each key with its value, None if there is none."""
        for key, value in self._raw.get_many(map(self._key.encode, keys)):
            yield self._key.decode(key), None if value is None else self._value.decode(value)

    def take_many(self, keys: Iterable[_K]) -> Iterator[tuple[_K, _V]]:
        """Delete entries; yield each with its last value. Keys that are not in the map are left out.

        The caller consumes all results, because deletion runs ahead of them.
        """
        for key, value in self._raw.take_many(map(self._key.encode, keys)):
            if value is not None:
                yield self._key.decode(key), self._value.decode(value)

    def set_many(self, items: Iterable[tuple[_K, _V]]) -> None:
        """Store values."""
        _raise_refusal(self._refused(items, libbpf.ANY))

    def insert_many(self, items: Iterable[tuple[_K, _V]]) -> int:
        """Add entries whose keys are not in the map. Return how many found no room."""
        refused = self._refused(items, libbpf.NOEXIST).values()
        return sum(code != errno.EEXIST for code in refused)

    def update_many(self, items: Iterable[tuple[_K, _V]]) -> set[_K]:
        """Change entries whose keys are in the map. Return the keys that are not."""
        refused = self._refused(items, libbpf.EXIST)
        _raise_refusal(refused, ignored=errno.ENOENT)
        return {self._key.decode(key) for key in refused}

    def _refused(self, items: Iterable[tuple[_K, _V]], flags: int) -> dict[bytes, int]:
        encoded = ((self._key.encode(key), self._value.encode(value)) for key, value in items)
        return self._raw.set_many(encoded, flags)

    def delete_many(self, keys: Iterable[_K]) -> None:
        """Delete entries; keys that are not in the map are ignored."""
        self._raw.delete_many(map(self._key.encode, keys))


class ArrayMap(TypedMap[int, _V]):
    """A map that has a value for each index from the start."""

    def read(self, indexes: Iterable[int]) -> Iterator[tuple[int, _V]]:
        """Yield each index with its value. IndexError if the array is shorter."""
        for index, value in self.get_many(indexes):
            if value is None:
                raise IndexError(f"the map has no index {index}")
            yield index, value


class EventRing:
    """A ring buffer of events."""

    def __init__(self, ring: libbpf.Ring) -> None:
        self._ring = ring

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are events."""
        return self._ring.fileno()

    def read(self) -> list[abi.Event]:
        """Return the next events, a bounded number at a time, none if there are none."""
        return [abi.decode_event(record) for record in self._ring.consume()]


class _Closable(Protocol):
    def close(self) -> None: ...


class _Table:
    """Creates maps and remembers them by name."""

    def __init__(self, create: Callable[..., libbpf.Map], read: Callable[..., libbpf.Ring]) -> None:
        self._create, self._read = create, read
        self.maps: dict[str, libbpf.Map] = {}
        self._open: list[_Closable] = []

    def array(self, name: str, value: Codec[_V], entries: int, kind: int = libbpf.ARRAY) -> ArrayMap[_V]:
        return ArrayMap(self.add(name, kind, _INDEX.size, value.size, entries), _INDEX, value)

    def hash(self, name: str, key: Codec[_K], value: Codec[_V], entries: int) -> TypedMap[_K, _V]:
        return TypedMap(self.add(name, libbpf.HASH, key.size, value.size, entries), key, value)

    def add(self, name: str, kind: int, *sizes: int, inner: libbpf.Map | None = None) -> libbpf.Map:
        """Create a map with these sizes: octets of a key, octets of a value, number of entries."""
        created = self._create(kind, name.lower(), *sizes, inner=inner)
        self.maps[name] = created
        self._open.append(created)
        return created

    def ring(self, name: str, octets: int, at_once: int) -> EventRing:
        ring = self._read(self.add(name, libbpf.RINGBUF, 0, 0, octets), at_once)
        self._open.append(ring)
        return EventRing(ring)

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


class Maps:
    """All maps. The kernel frees a map when it is closed here and no program uses it any more.

    Creating them raises OSError with the kernel's errno. ``create`` and ``read`` are replaced by tests.
    """

    def __init__(
        self,
        sizes: Sizes,
        create: Callable[..., libbpf.Map] = libbpf.Map,
        read: Callable[..., libbpf.Ring] = libbpf.Ring,
    ) -> None:
        self._make_map = create
        self._table = _Table(create, read)
        self._trie = self._make_trie(1)
        try:
            self._declare(self._table, sizes)
        except OSError:
            self.close()
            raise

    def _declare(self, table: _Table, sizes: Sizes) -> None:
        #: By 0. What all programs have to know.
        self.settings = table.array("SETTINGS", _SETTINGS, 1)
        # The work space of a run, for each kind of hook. User space never reads it.
        table.add("SCRATCH", libbpf.PERCPU_ARRAY, _INDEX.size, SCRATCH_SIZE, _SCRATCH_KINDS)
        # The same for the hook at egress, by number, and the numbers that no run uses now.
        pool = _POOL_SIZE + _POOL_SIZE_PER_CPU * libbpf.possible_cpus()
        table.add("SCRATCH_POOL", libbpf.ARRAY, _INDEX.size, SCRATCH_SIZE, pool)
        free = table.add("FREE_SCRATCH", libbpf.STACK, 0, _INDEX.size, pool)
        for index in range(pool):
            free.push(_INDEX.encode(index))
        #: By abi.Statistic. Counted since the hooks were proved.
        self.statistics = table.array("STATISTICS", _CPU_COUNTER, len(abi.Statistic), libbpf.PERCPU_ARRAY)
        # By 0, the trie of the rules in force: put_rules().
        self._rules = table.add("RULES", libbpf.ARRAY_OF_MAPS, _INDEX.size, _INDEX.size, 1, inner=self._trie)
        #: Queries by process, rule, type and transport.
        self.counters = table.hash("COUNTS", _COUNT_KEY, _COUNTER, sizes.counters)
        #: By rule, queries that were counted without their process, because the counters were full.
        self.overflow = table.array("OVERFLOW", _COUNTER, abi.RULE_IDS + 1)
        #: The ancestry of each process that has counters, at its first count.
        self.ancestries = table.hash("PROCESSES", _PROCESS_KEY, _CHAIN, sizes.processes)
        #: Facts about a process at its first query while it executes a program, by ProgramKey.
        self.facts = table.hash("IDENTITIES", _PROGRAM_KEY, _FACTS, sizes.processes)
        #: Names that user space has to decide, by their hash.
        self.names = table.hash("NAMES", _HASH, _NAME, sizes.names)
        #: Queries for names that were not decided, by process, name, generation of the rules, type and transport.
        self.pending = table.hash("PENDING", _PENDING_KEY, _COUNTER, sizes.names)
        # Recent queries, which suppress the events of repeated ones. Only the kernel uses it.
        table.add("SEEN", libbpf.LRU_HASH, _HASH.size, abi.SEEN.size, sizes.recent)
        # Who opened sockets in a network namespace with a firewall. Only the kernel uses it.
        table.add("OPENERS", libbpf.LRU_HASH, _HASH.size, abi.OPENER.size, _OPENERS)
        # What became of recent queries. Only the kernel uses it.
        table.add("OUTCOMES", libbpf.ARRAY, _INDEX.size, abi.CACHED.size, abi.OUTCOMES)
        #: Processes and which process forked them.
        self.ancestors = table.hash("LINEAGE", _ANCESTOR_KEY, _ANCESTOR, max(sizes.lineage, 1))
        # TCP connections. Only the kernel uses them.
        table.add("STREAMS", libbpf.LRU_HASH, _HASH.size, abi.STREAM.size, _STREAMS)
        self.events = table.ring("EVENTS", sizes.ring, _EVENTS_AT_ONCE)
        self.canaries = table.ring("CANARIES", _CANARY_RING_SIZE, _CANARIES_AT_ONCE)

    @property
    def descriptors(self) -> dict[str, int]:
        """The descriptor of each map, by its name in the BPF sources."""
        return {name: created.fd for name, created in self._table.maps.items()}

    def put_rules(self, entries: Sequence[TrieEntry]) -> None:
        """Put rules in force, all at once: a query meets either the old ones or the new ones.

        If the kernel refuses them, the old ones stay in force.
        """
        trie = self._make_trie(len(entries))
        try:
            refused = trie.set_many(
                (abi.lpm_key(entry.suffix), abi.OUTCOME.pack(entry.at, entry.below, len(entry.suffix), entry.labels))
                for entry in entries
            )
            _raise_refusal(refused)
            # The update returns after a grace period, when no program uses the old trie any more
            # (kernel/bpf/syscall.c, maybe_wait_bpf_programs).
            self._rules.set(_INDEX.encode(0), _INDEX.encode(trie.fd))
        except OSError:
            trie.close()
            raise
        self._trie.close()
        self._trie = trie

    def take_overflow(self, rules: Iterable[int]) -> dict[int, int]:
        """Return the overflow of each retired rule that has any, and set it to 0."""
        overflow = {rule: queries for rule, queries in self.overflow.read(rules) if queries}
        self.overflow.set_many((rule, 0) for rule in overflow)
        return overflow

    def _make_trie(self, entries: int) -> libbpf.Map:
        # The kernel accepts a trie of another size in place of this one since Linux 5.10: kernel commit 134fede4eecf
        # ("bpf: Relax max_entries check for most of the inner map types").
        sizes = abi.LPM_KEY_SIZE, abi.OUTCOME.size, max(entries, 1)
        return self._make_map(libbpf.LPM_TRIE, "trie", *sizes, flags=libbpf.NO_PREALLOC)

    def close(self) -> None:
        """Close all maps."""
        self._table.close()
        self._trie.close()
