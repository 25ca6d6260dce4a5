"""The BPF maps of one dnsprobe, in one table, with typed access.

Each map is declared once, in :class:`Maps`: the name that the BPF sources know as ``MAP_<name>``, its kind, the codecs
of its keys and values, and its size. No other module packs or unpacks keys and values.

Map calls run at real-time priority (:mod:`dnsprobe.kernel.real_time`). The code that uses the results does not.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from dnsprobe.kernel import abi, libbpf
from dnsprobe.kernel.abi import Resource, Result
from dnsprobe.kernel.servers import NUMBER_CODEC, SERVER_CODEC, ServerNumbers
from dnsprobe.kernel.shares import Share, SharedMap, Shares
from dnsprobe.kernel.typed_map import ArrayMap, Codec, TypedMap, raise_refusal
from dnsprobe.names.qtype import QTYPES
from dnsprobe.names.ruleset import TrieEntry

_K = TypeVar("_K")
_V = TypeVar("_V")

#: start_ns, tgid, rule, qtype, transport with TO_LOCAL, number of the server
CountKey = tuple[int, int, int, int, int, int]
#: start_ns, name_hash, tgid, generation, qtype, transport with TO_LOCAL, number of the server
PendingKey = tuple[int, int, int, int, int, int, int]
#: start_ns, name_hash, tgid, rule, generation, transport: of a counter by process or of a pending one
LatencyKey = tuple[int, int, int, int, int, int]
#: start_ns, tgid
ProcessKey = tuple[int, int]
#: start_ns, tgid, execs: one of the programs that a process executes one after the other
ProgramKey = tuple[int, int, int]

#: Octets of ``struct scratch`` (bpf/scratch.h), rounded up, and the number of kinds of hooks that have one each.
SCRATCH_SIZE, _SCRATCH_KINDS = 13312, 4
#: Scratch spaces for runs of the program at egress, of which several can be under way on one CPU: those of a thread, of
#: threads that preempted it, and of an interrupt. Each takes some microseconds.
_POOL_SIZE, _POOL_SIZE_PER_CPU = 16, 2
#: Octets. Canaries have a ring of their own, so that they come back even while the ring of events is full.
_CANARY_RING_SIZE = 64 * 1024
#: The most records that are read at a time. A flood of events must not block other work; canaries are read all at once.
_EVENTS_AT_ONCE, _CANARIES_AT_ONCE = 128, 1 << 16
#: Entries of the trie that are written in one step.
_RULES_AT_ONCE = 512
#: TCP connections in the middle of a message. The one that was used least recently makes room for another.
_STREAMS = 8192
#: More than can ever be kept with sockets.
_UNLIMITED_STORAGE = 1 << 62
#: No latency is above it.
_NO_BOUND = (1 << 64) - 1
#: The header in front of a record of a ring buffer (``BPF_RINGBUF_HDR_SZ``), and the multiple that a record takes.
_RING_HEADER, _RING_UNIT = 8, 8
#: Room of events that were read is given back once it is this part of the ring.
_RING_PARTS = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """Octets of the event ring, and numbers of entries of the maps.

    With 0 of ``lineage``, lineage tracking is off; with 0 of ``notes``, answers are not tracked; with 0 of ``servers``,
    servers are not told apart.
    """

    ring: int
    processes: int
    counters: int
    names: int
    recent: int
    lineage: int = 0
    notes: int = 0
    servers: int = 0


class Counted(NamedTuple):
    """A counter: its queries, and what became of them, by :class:`abi.Result`.

    The numbers are of one moment, except that queries may have been added while they were copied. So there are never
    more results than queries: those that are left wait.
    """

    queries: int
    results: tuple[int, ...]

    @property
    def waiting(self) -> int:
        """How many queries have no result yet, without those that user space has given up."""
        return self.queries - sum(self.results)


class Latencies(NamedTuple):
    """How long answers took: how many of them by bucket, and the sum in nanoseconds."""

    buckets: tuple[int, ...]
    sum_ns: int


class Note(NamedTuple):
    """A query that waits for its answer (``struct note``): when it was sent, and its counter.

    ``time_ns`` is of CLOCK_MONOTONIC. ``counter`` is a key of ``Maps.pending`` or of ``Maps.counters``, as ``noted``
    says. A canary has no counter. ``share`` is who takes its room. ``sock`` is a key of ``Maps.sockets``. ``query_id``
    is that of the event whose result it is, 0 if there is none.
    """

    time_ns: int
    counter: tuple[int, ...]
    noted: abi.Noted
    share: int
    sock: int
    query_id: int = 0

    @property
    def is_stream(self) -> bool:
        """Whether the query was sent over TCP. Both kinds of keys end with transport and server."""
        *_, transport, _server = self.counter
        return transport & ~abi.TO_LOCAL == abi.TRANSPORTS.index("tcp")


class SocketEvent(NamedTuple):
    """What happened to a socket with many notes, as the result of their queries (``struct noted_socket``).

    ``at_ns`` is of CLOCK_MONOTONIC. UNTRACKED: answers over TCP could not be read.
    """

    at_ns: int
    result: Result


class Settings(NamedTuple):
    """``struct settings``. ``seeding`` is True while user space adds the processes that it finds in ``/proc``.

    ``answers`` are the abi.ANSWERS_SEEN of the versions of IP whose answers are seen.
    """

    repeat_ns: int
    generation: int
    seeding: bool
    parts_only: bool
    answers: int
    hash_key: tuple[int, ...]


class NameVerdict(NamedTuple):
    """The verdict on a name (``struct name``).

    ``verdict`` is a rule's id, NO_RULE or DECIDE under the rules of ``generation``. ``name`` is in wire format and
    lower case. ``share`` is who asked for it first; a change does not change it.
    """

    verdict: int
    generation: int
    name: bytes
    share: int = abi.SHARE_OF_NOBODY


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
    repeat_ns, generation, seeding, parts_only, answers, *hash_key = abi.SETTINGS.unpack(data)
    return Settings(repeat_ns, generation, bool(seeding), bool(parts_only), answers, tuple(hash_key))


def _encode_name(verdict: NameVerdict) -> bytes:
    reversed_name = verdict.name[::-1].ljust(abi.NAME_SIZE, b"\0")
    return abi.NAME.pack(verdict.verdict, verdict.generation, len(verdict.name), reversed_name, verdict.share)


def _decode_name(data: bytes) -> NameVerdict:
    verdict, generation, length, reversed_name, share = abi.NAME.unpack(data)
    return NameVerdict(verdict, generation, abi.unreverse(reversed_name, length), share)


def _encode_count(queries: int) -> bytes:
    return abi.COUNT.pack(queries, abi.SHARE_OF_NOBODY)


def _decode_count(data: bytes) -> int:
    queries, _share = abi.COUNT.unpack(data)
    return int(queries)


def _encode_counted(counted: Counted) -> bytes:
    room = (0,) * (abi.RESULT_ROOM - len(counted.results))
    return abi.TRACKED_COUNT.pack(*counted.results, *room, counted.queries, abi.SHARE_OF_NOBODY)


def _decode_counted(data: bytes) -> Counted:
    *results, queries, _share = abi.TRACKED_COUNT.unpack(data)
    return Counted(queries, tuple(results[: len(abi.Result)]))


def _decode_latencies(data: bytes) -> Latencies:
    *buckets, sum_ns = abi.LATENCIES.unpack(data)
    return Latencies(tuple(buckets), sum_ns)


def _decode_note(data: bytes) -> Note:
    time_ns, share, sock, noted, key, query_id = abi.NOTE.unpack(data)
    layout = abi.COUNT_KEY if noted == abi.Noted.COUNT else abi.PENDING_KEY
    return Note(time_ns, layout.unpack_from(key), abi.Noted(noted), share, sock, query_id)


def _decode_socket(data: bytes) -> list[SocketEvent]:
    """Return the events of a socket, the oldest first."""
    events = abi.NOTED_SOCKET.unpack(data)[-abi.SOCKET_EVENTS :]
    return [SocketEvent(event & ~3, Result(Result.CLOSED + (event & 3))) for event in reversed(events) if event]


def _decode_share(data: bytes) -> Share:
    numbers = abi.SHARE.unpack(data)
    return Share(numbers[: len(Resource)], numbers[len(Resource) :])


def _encode_cpu_counter(total: int) -> bytes:
    """Return the slots of all CPUs, with the total in the first."""
    return abi.COUNTER.pack(total) + bytes(abi.COUNTER.size * (libbpf.possible_cpus() - 1))


def _decode_cpu_counter(slots: bytes) -> int:
    return sum(value for (value,) in abi.COUNTER.iter_unpack(slots))


def _bits(numbers: Iterable[int]) -> dict[int, int]:
    """Return a set of numbers as words of 64 bits, by their index."""
    words: dict[int, int] = {}
    for number in numbers:
        words[number // 64] = words.get(number // 64, 0) | 1 << number % 64
    return words


_INDEX = _integer("=I")
_ROOM = _integer("=q")
_HASH = _integer("=Q")
_COUNTER = _integer(abi.COUNTER.format)
_COUNT = Codec(abi.COUNT.size, _encode_count, _decode_count)
#: The same counters of the programs that track answers: without what became of the queries, and with it.
_COUNT_OF_RESULTS = Codec(
    abi.TRACKED_COUNT.size,
    lambda queries: _encode_counted(Counted(queries, ())),
    lambda data: _decode_counted(data).queries,
)
_COUNTED = Codec(abi.TRACKED_COUNT.size, _encode_counted, _decode_counted)
_LATENCY_KEY: Codec[LatencyKey] = _fields(abi.LATENCY_KEY)
_LATENCIES = Codec(abi.LATENCIES.size, _never, _decode_latencies)
_LATENCY_BOUNDS: Codec[Sequence[int]] = _fields(abi.LATENCY_BOUNDS)
_NOTE = Codec(abi.NOTE.size, _never, _decode_note)
_SOCKET = Codec(abi.NOTED_SOCKET.size, _never, _decode_socket)
_SHARE = Codec(abi.SHARE.size, lambda share: abi.SHARE.pack(*share.used, *share.refused), _decode_share)
_RETURNED: Codec[tuple[int, ...]] = _fields(abi.RETURNED)
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


def do_all(steps: Iterable[Callable[[], None] | None]) -> None:
    """Do all steps of something that yields None after each, or a call that waits."""
    for call in steps:
        if call is not None:
            call()


class EventRing:
    """A ring buffer of events of ``octets``. If its room is shared, ``shares`` get back the room of what was read."""

    def __init__(self, ring: libbpf.Ring, octets: int, shares: Shares | None = None) -> None:
        self._ring, self._shares = ring, shares
        self._unreturned_limit = octets // _RING_PARTS
        self._unreturned: Counter[int] = Counter()
        self._ended: list[abi.Ended] = []

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are events."""
        return self._ring.fileno()

    def read(self) -> list[abi.Event]:
        """Return the next events, a bounded number at a time, none if there are none.

        Results of queries come through the same ring: call :meth:`take_ended` after it.
        """
        events = []
        for record in self._ring.consume():
            if abi.is_ended(record):
                ended = abi.decode_ended(record)
                self._ended.append(ended)
                share = ended.share
            else:
                events.append(abi.decode_event(record))
                share = events[-1].chain.share
            self._unreturned[share] += _room_of(record)
        if self._shares is not None:
            # Not after each event: it takes two map calls.
            if self._unreturned.total() > self._unreturned_limit:
                # If the kernel has no memory for it, the events must not get lost: it is given back later.
                with suppress(OSError):
                    self._shares.give_back(Resource.EVENTS, self._unreturned)
                    self._unreturned.clear()
        else:
            self._unreturned.clear()
        return events

    def take_ended(self) -> list[abi.Ended]:
        """Return the results of queries that came with the events since the last call."""
        ended, self._ended = self._ended, []
        return ended


def _room_of(record: bytes) -> int:
    """Return the octets that a record takes in a ring buffer: kernel/bpf/ringbuf.c, __bpf_ringbuf_reserve()."""
    return -(-(len(record) + _RING_HEADER) // _RING_UNIT) * _RING_UNIT


class CanaryRing:
    """A ring buffer of what hooks report of canaries."""

    def __init__(self, ring: libbpf.Ring) -> None:
        self._ring = ring

    def read(self) -> list[abi.Event | abi.CanaryResult]:
        """Return all reports that have come, in their order."""
        return [abi.decode_canary(record) for record in self._ring.consume()]


class _InShare(NamedTuple):
    """A map that is shared: what it is, and where the share is in its values."""

    resource: Resource
    share_at: int


_COUNTERS = _InShare(Resource.COUNTERS, abi.COUNT.size - _HASH.size)
_PENDING = _InShare(Resource.PENDING, abi.COUNT.size - _HASH.size)
_COUNTERS_WITH_RESULTS = _InShare(Resource.COUNTERS, abi.TRACKED_COUNT.size - _HASH.size)
_PENDING_WITH_RESULTS = _InShare(Resource.PENDING, abi.TRACKED_COUNT.size - _HASH.size)
_NOTES = _InShare(Resource.NOTES, 8)
_SERVERS = _InShare(Resource.SERVERS, abi.NUMBERED_SERVER.size - _HASH.size)
_NAMES = _InShare(Resource.NAMES, abi.NAME.size - _HASH.size)
_PROCESSES = _InShare(Resource.PROCESSES, abi.CHAIN_HEAD.size - _HASH.size)
_IDENTITIES = _InShare(Resource.IDENTITIES, abi.IDENTITY_SHARE_AT)
_LINEAGE = _InShare(Resource.LINEAGE, abi.ANCESTOR_SHARE_AT)


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

    def shared(
        self, name: str, key: Codec[_K], value: Codec[_V], entries: int, shares: Shares, place: _InShare
    ) -> SharedMap[_K, _V]:
        created = self.add(name, libbpf.HASH, key.size, value.size, entries)
        return SharedMap(created, key, value, place.share_at, place.resource, shares)

    def shared_view(
        self, name: str, key: Codec[_K], value: Codec[_V], shares: Shares, place: _InShare
    ) -> SharedMap[_K, _V]:
        """Return a map that was created before, with other values."""
        return SharedMap(self.maps[name], key, value, place.share_at, place.resource, shares)

    def add(self, name: str, kind: int, *sizes: int, inner: libbpf.Map | None = None, flags: int = 0) -> libbpf.Map:
        """Create a map with these sizes: octets of a key, octets of a value, number of entries."""
        created = self._create(kind, name.lower(), *sizes, inner=inner, flags=flags)
        self.maps[name] = created
        self._open.append(created)
        return created

    def ring(self, name: str, octets: int, at_once: int) -> libbpf.Ring:
        ring = self._read(self.add(name, libbpf.RINGBUF, 0, 0, octets), at_once)
        self._open.append(ring)
        return ring

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
            self._declare_servers(self._table, sizes, self.shares)
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
        # By 0, the trie of the rules in force: putting_rules().
        self._rules = table.add("RULES", libbpf.ARRAY_OF_MAPS, _INDEX.size, _INDEX.size, 1, inner=self._trie)
        # A new entry of other maps, which may be too large for the stack of a program. Nobody writes it.
        table.add("ZEROS", libbpf.ARRAY, _INDEX.size, abi.ZEROS_SIZE, 1)
        # The types that have a counter each, a bit for each.
        known = table.array("QTYPES", _COUNTER, (abi.OTHER_QTYPE + 1) // 64)
        known.set_many(_bits(QTYPES).items())
        #: What users and control groups take of the maps and of the ring.
        self.shares = shares = self._declare_shares(table, sizes)
        #: Queries by process, rule, type, transport, place of the server, and server.
        count, counters, pending = _COUNT, _COUNTERS, _PENDING
        if sizes.notes:
            count, counters, pending = _COUNT_OF_RESULTS, _COUNTERS_WITH_RESULTS, _PENDING_WITH_RESULTS
        self.counters = table.shared("COUNTS", _COUNT_KEY, count, sizes.counters, shares, counters)
        #: By rule, queries that were counted without their process, because the counters were full.
        self.overflow = table.array("OVERFLOW", _COUNTER, abi.OVERFLOW_SLOTS)
        #: The ancestry of each process that has counters, at its first count.
        self.ancestries = table.shared("PROCESSES", _PROCESS_KEY, _CHAIN, sizes.processes, shares, _PROCESSES)
        #: Facts about a process at its first query while it executes a program, by ProgramKey.
        self.facts = table.shared("IDENTITIES", _PROGRAM_KEY, _FACTS, sizes.processes, shares, _IDENTITIES)
        #: Names that user space has to decide, by their hash.
        self.names = table.shared("NAMES", _HASH, _NAME, sizes.names, shares, _NAMES)
        #: Queries for names that were not decided: as COUNTS, but by name and generation of the rules.
        self.pending = table.shared("PENDING", _PENDING_KEY, count, sizes.names, shares, pending)
        # Recent queries, which suppress the events of repeated ones. Only the kernel uses it.
        table.add("SEEN", libbpf.LRU_HASH, _HASH.size, abi.SEEN.size, sizes.recent)
        # By 0, how much more may be kept with sockets. The kernel counts it down.
        self._storage_room = table.array("STORAGE_ROOM", _ROOM, 1)
        self.put_storage_room(None)
        # Who opened sockets in a network namespace with a firewall, kept with them. Only the kernel uses it.
        table.add("OPENERS", libbpf.SK_STORAGE, _INDEX.size, abi.OPENER.size, 0)
        # What became of recent queries. Only the kernel uses it.
        table.add("OUTCOMES", libbpf.ARRAY, _INDEX.size, abi.CACHED.size, abi.OUTCOMES)
        #: Processes and which process forked them.
        lineage = max(sizes.lineage, 1)
        self.ancestors = table.shared("LINEAGE", _ANCESTOR_KEY, _ANCESTOR, lineage, shares, _LINEAGE)
        # TCP connections at egress, and messages that have begun there, kept with their sockets. Only the kernel uses
        # them, as the next two.
        table.add("CONNECTIONS", libbpf.SK_STORAGE, _INDEX.size, abi.CONNECTION.size, 0)
        table.add("BEGUN", libbpf.SK_STORAGE, _INDEX.size, abi.BEGUN.size, 0)
        # The ancestry of processes that have written to such a connection: what they wrote may leave after their end.
        table.add("WRITERS", libbpf.LRU_HASH, _PROCESS_KEY.size, _CHAIN.size, max(sizes.processes // 4, 1))
        # TCP connections at functions.
        table.add("STREAMS", libbpf.LRU_HASH, _HASH.size, abi.STREAM.size, _STREAMS)
        self.events = EventRing(table.ring("EVENTS", sizes.ring, _EVENTS_AT_ONCE), sizes.ring, shares)
        self.canaries = CanaryRing(table.ring("CANARIES", _CANARY_RING_SIZE, _CANARIES_AT_ONCE))
        self._declare_answers(table, sizes, shares)

    def _declare_servers(self, table: _Table, sizes: Sizes, shares: Shares) -> None:
        """Create the maps of servers. If servers are not told apart, no program uses them, and they have one entry."""
        self.tells_servers, room = sizes.servers > 0, max(sizes.servers, 1)
        servers = table.shared("SERVERS", SERVER_CODEC, NUMBER_CODEC, room, shares, _SERVERS)
        free = table.add("FREE_SERVERS", libbpf.STACK, 0, abi.COUNTER.size, room)
        #: The numbers of servers in the keys of ``counters`` and ``pending``.
        self.servers = ServerNumbers(servers, free, room)

    def _declare_answers(self, table: _Table, sizes: Sizes, shares: Shares) -> None:
        """Create the maps of answers. Without answers, no program uses them, and they have one entry."""
        # Canaries take no room of others.
        notes = sizes.notes + abi.CANARY_NOTES if sizes.notes else 1
        self.tracks_answers = sizes.notes > 0
        #: Queries that wait for their answer, by the hash of everything that an answer has to match.
        self.notes = table.shared("NOTES", _HASH, _NOTE, notes, shares, _NOTES)
        #: The same, for those of canaries, which take no room.
        self.canary_notes = TypedMap(table.maps["NOTES"], _HASH, _NOTE)
        #: Sockets with such queries, by their addresses.
        sockets = table.add("SOCKETS", libbpf.LRU_HASH, _HASH.size, abi.NOTED_SOCKET.size, notes)
        self.sockets = TypedMap(sockets, _HASH, _SOCKET)
        # Answers over TCP, and those that have begun, kept with their sockets. Only the kernel uses them.
        table.add("ANSWER_STREAMS", libbpf.SK_STORAGE, _INDEX.size, abi.ANSWER_STREAM.size, 0)
        table.add("PIECES", libbpf.SK_STORAGE, _INDEX.size, abi.BEGUN.size, 0)
        taken = abi.TAKEN_NOTES if sizes.notes else 1
        # Notes that were taken back: put_given_up().
        self._taken_notes = table.array("TAKEN_NOTES", _HASH, taken)
        #: By abi.Unmatched: answers that fit no query.
        self.unmatched = table.array("UNMATCHED", _CPU_COUNTER, len(abi.Unmatched), libbpf.PERCPU_ARRAY)
        # The kernel allocates its entries when they are used: one for each counter of queries that were answered.
        self.latencies = TypedMap(
            table.add(
                "LATENCIES",
                libbpf.HASH,
                abi.LATENCY_KEY.size,
                abi.LATENCIES.size,
                sizes.counters + sizes.names if sizes.notes else 1,
                flags=libbpf.NO_PREALLOC,
            ),
            _LATENCY_KEY,
            _LATENCIES,
        )
        #: By transport, the latencies that found no room there.
        self.latency_rest = table.array("LATENCY_REST", _LATENCIES, len(abi.TRANSPORTS))
        self._latency_bounds = table.array("LATENCY_BOUNDS", _LATENCY_BOUNDS, 1)
        if self.tracks_answers:
            #: The same counters as ``counters`` and ``pending``, with what became of their queries.
            self.counted = table.shared_view("COUNTS", _COUNT_KEY, _COUNTED, shares, _COUNTERS_WITH_RESULTS)
            self.pending_counted = table.shared_view("PENDING", _PENDING_KEY, _COUNTED, shares, _PENDING_WITH_RESULTS)

    @staticmethod
    def _declare_shares(table: _Table, sizes: Sizes) -> Shares:
        # Units that were taken, by Resource. Only the kernel uses it.
        table.add("TAKEN", libbpf.ARRAY, _INDEX.size, _COUNTER.size, len(Resource))
        return Shares(
            table.hash("SHARES", _HASH, _SHARE, abi.SHARES),
            # Room may come back to a share that was forgotten.
            table.hash("RETURNED", _HASH, _RETURNED, 2 * abi.SHARES),
            # Units that there are, and those that user space gave back.
            table.array("ROOM", _ROOM, len(Resource)),
            {
                Resource.COUNTERS: sizes.counters,
                Resource.NAMES: sizes.names,
                Resource.PENDING: sizes.names,
                Resource.PROCESSES: sizes.processes,
                Resource.IDENTITIES: sizes.processes,
                Resource.LINEAGE: max(sizes.lineage, 1),
                Resource.EVENTS: sizes.ring,
                Resource.NOTES: max(sizes.notes, 1),
                Resource.SERVERS: max(sizes.servers, 1),
            },
        )

    @property
    def descriptors(self) -> dict[str, int]:
        """The descriptor of each map, by its name in the BPF sources."""
        return {name: created.fd for name, created in self._table.maps.items()}

    def putting_rules(self, entries: Sequence[TrieEntry]) -> Iterator[Callable[[], None] | None]:
        """Put rules in force, all at once: a query meets either the old ones or the new ones.

        Yields None after each part of the entries, and then the call that puts them in force, which waits. If the
        kernel refuses them, or the caller stops before, the old ones stay in force.
        """
        trie = self._make_trie(len(entries))
        try:
            for at in range(0, len(entries), _RULES_AT_ONCE):
                raise_refusal(
                    trie.set_many(
                        (
                            abi.lpm_key(entry.suffix),
                            abi.OUTCOME.pack(entry.at, entry.below, len(entry.suffix), entry.labels),
                        )
                        for entry in entries[at : at + _RULES_AT_ONCE]
                    )
                )
                yield None
            # The update returns after a grace period, when no program uses the old trie any more
            # (kernel/bpf/syscall.c, maybe_wait_bpf_programs).
            yield lambda: self._rules.set(_INDEX.encode(0), _INDEX.encode(trie.fd))
            self._trie, trie = trie, self._trie
        finally:
            trie.close()

    def put_rules(self, entries: Sequence[TrieEntry]) -> None:
        """Put rules in force as :meth:`putting_rules` does, and wait."""
        do_all(self.putting_rules(entries))

    def put_storage_room(self, room: int | None) -> None:
        """Set how many more values may be kept with sockets, such as states of TCP connections; None: any number."""
        self._storage_room.put(0, _UNLIMITED_STORAGE if room is None else room)

    def put_latency_bounds(self, bounds_ns: Sequence[int]) -> None:
        """Set the upper bounds of the buckets, in nanoseconds and ascending, fewer than LATENCY_BUCKETS."""
        unused = (_NO_BOUND,) * (abi.LATENCY_BUCKETS - len(bounds_ns))
        self._latency_bounds.put(0, (*bounds_ns, *unused))

    def put_given_up(self, notes: Iterable[int]) -> None:
        """Remember keys of notes that were given up, for answers that come all the same.

        As remember_taken() (bpf/answers/note.h): the lowest bits of a key are the place, the lowest bit of the value is
        0, because there was no answer.
        """
        mask = abi.TAKEN_NOTES - 1
        self._taken_notes.set_many((note & mask, note & ~mask) for note in notes)

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
