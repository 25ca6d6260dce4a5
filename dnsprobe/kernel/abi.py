"""The structs that the BPF programs share with user space: the mirror of ``bpf/abi.h``, field by field.

Integers are in host byte order. A test compares sizes and offsets with those of the C compiler.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from dnsprobe.model import Process

NAME_SIZE = 256
COMM_SIZE = 16
CHAIN_SIZE = 40
LINEAGE_SIZE = 23
CHAIN_ROOM = 64
PATH_SIZE = 512
CMDLINE_SIZE = 512
CANARY = 0xFFFFFFFE
RULE_IDS = 65536
ENCRYPTED, OVER_LIMIT, UNREAD, OVERFLOW_SLOTS = RULE_IDS, RULE_IDS + 1, RULE_IDS + 2, RULE_IDS + 3
STREAM_SIZE = 2 + 12 + 255 + 4
STREAM_HEAD = 4
HASH_KEYS = 78
OUTCOMES = 8192
OTHER_QTYPE = 65535
SHARE_OF_NOBODY = 0
SHARE_OF_OTHERS = 1
SHARE_OF_USER = 1 << 32
SHARE_OF_CGROUP = 1 << 62
SHARES = 4096
SERVERS = 4096
OTHER_SERVER = 0
RESULT_ROOM = 16
NOTED_KEY_SIZE = 32
SOCKET_NOTES = 8
SOCKET_EVENTS = 4
TAKEN_NOTES = 8192
ZEROS_SIZE = 144
LATENCY_BUCKETS = 16
ANSWER_SIZE = 1024
CANARY_NOTES = 256
#: Of struct settings, by the version of IP.
ANSWERS_SEEN = {"4": 1 << 4, "6": 1 << 6}


class Kind(IntEnum):
    """Kinds of events (``enum kind``)."""

    QUERY = 0
    UNDECIDED = 1
    CANARY = 2
    UNREAD = 3
    ENDED = 4


class Resource(IntEnum):
    """What users share (``enum resource``)."""

    COUNTERS = 0
    NAMES = 1
    PENDING = 2
    PROCESSES = 3
    IDENTITIES = 4
    LINEAGE = 5
    EVENTS = 6
    NOTES = 7
    SERVERS = 8


class Statistic(IntEnum):
    """Slots of the statistics map (``enum statistic``)."""

    EVENTS = 0
    LOST_RING_FULL = 1
    UNATTRIBUTED_COUNTERS_FULL = 2
    UNATTRIBUTED_PROCESSES_FULL = 3
    UNDECIDED_NAMES_FULL = 4
    UNPARSED_MALFORMED = 5
    UNPARSED_NONLINEAR = 6
    UNPARSED_SEGMENTED = 7
    COUNTERS_ADDED = 8
    NAMES_ADDED = 9
    IDENTITIES_FULL = 10
    UNPARSED_QUESTIONS = 11
    UNPARSED_UNREADABLE = 12
    UNPARSED_UNALIGNED = 13
    UNPARSED_PIPELINED = 14
    LINEAGE_ADDED = 15
    LINEAGE_LEFT = 16
    LINEAGE_FULL = 17
    PARTS_LEFT = 18
    PARTS_TAKEN = 19
    LOST_SEGMENTED = 20
    UNPARSED_BUSY = 21
    OTHER_NOTIFY = 22
    OTHER_UPDATE = 23
    OTHER_DSO = 24
    OTHER_OPCODE = 25
    OTHER_NO_QUESTION = 26
    OTHER_QUESTIONS = 27
    UNATTRIBUTED_SENT_ON = 28
    OTHER_RESPONSE = 29
    SERVERS_FULL = 30
    LOST_RESULTS = 31


class Result(IntEnum):
    """What became of a counted query (``enum result``)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    OTHER_RCODE = 6
    BADVERS = 7
    BADCOOKIE = 8
    NODATA = 9
    TIMEOUT = 10
    CLOSED = 11
    UNREACHABLE = 12
    SUPERSEDED = 13
    UNTRACKED = 14


class Noted(IntEnum):
    """What a note is about (``enum noted``)."""

    COUNT = 0
    PENDING = 1
    CANARY = 2


class Unmatched(IntEnum):
    """Answers that fit no note (``enum unmatched``)."""

    LATE = 0
    DUPLICATE = 1
    UNSOLICITED = 2
    UNREADABLE = 3
    FORGED = 4


#: ``enum transport``
TRANSPORTS = ("udp", "tcp", "mdns", "llmnr", "dot")
#: In a counter, this bit of the transport is set if the server is on this host.
TO_LOCAL = 0x80

SETTINGS = struct.Struct(f"=QIIII{HASH_KEYS}Q")
OUTCOME = struct.Struct("=IIBB2x")
PROCESS_KEY = struct.Struct("=QII")
SHARE = struct.Struct(f"={2 * len(Resource)}Q")
RETURNED = struct.Struct(f"={len(Resource)}q")
COUNT = struct.Struct("=QQ")
TRACKED_COUNT = struct.Struct(f"={RESULT_ROOM}QQQ")
NOTE = struct.Struct(f"=QQQQ{NOTED_KEY_SIZE}sQ")
CANARY_RESULT = struct.Struct("=QQII")
ANSWER_STREAM = struct.Struct("=IIIIIII4x")
NOTED_SOCKET = struct.Struct(f"={SOCKET_NOTES}Q{SOCKET_NOTES}IQ{SOCKET_EVENTS}Q")
LATENCY_BOUNDS = struct.Struct(f"={LATENCY_BUCKETS}Q")
LATENCY_KEY = struct.Struct("=QQIIIB3x")
LATENCIES = struct.Struct(f"={LATENCY_BUCKETS}QQ")
COUNT_KEY = struct.Struct("=QIIHBxI")
PENDING_KEY = struct.Struct("=QQIIHBxI")
SERVER = struct.Struct("=16sHH")
NUMBERED_SERVER = struct.Struct("=QQ")
SEEN = struct.Struct("=QQ")
OPENER = struct.Struct("=QQI4x")
CACHED = struct.Struct("=QQQQ")
CONNECTION = struct.Struct(f"=8I3Q4I{COMM_SIZE}s")
BEGUN = struct.Struct(f"={STREAM_SIZE}s7x")
STREAM = struct.Struct(f"=QIIIIIIII{STREAM_HEAD}Q{STREAM_SIZE}s7x")
NAME = struct.Struct(f"=III{NAME_SIZE}s4xQ")
ANCESTOR_KEY = struct.Struct("=QI4x")
ANCESTOR = struct.Struct(f"=QQ{ANCESTOR_KEY.size}sIIBBB5x{COMM_SIZE}s")
PROCESS = struct.Struct(f"=QII{COMM_SIZE}s")
CHAIN_HEAD = struct.Struct("=IIIIIIQ")
PATH = struct.Struct(f"=II{PATH_SIZE}s")
IDENTITY = struct.Struct(f"=IIIIIIQ{PATH.size}s{PATH.size}s{CMDLINE_SIZE}s")
EVENT_HEAD = struct.Struct(f"=QQQIIIIIHHHBBBB2xQ16s{NAME_SIZE}s")
ENDED = struct.Struct(f"=QQQQ16xHB{ANSWER_SIZE}s5x")
#: The first octets of ``struct ended``, up to the answer, and where ``struct event`` and it have their kind.
ENDED_HEAD = struct.Struct("=QQQQ16xHB")
KIND_AT = ENDED_HEAD.size - 1
COUNTER = struct.Struct("=Q")
#: The offsets of the share in ``struct identity`` and ``struct ancestor``.
IDENTITY_SHARE_AT = 24
ANCESTOR_SHARE_AT = 8
CHAIN_AT = EVENT_HEAD.size
CHAIN_BYTES = CHAIN_HEAD.size + CHAIN_ROOM * PROCESS.size
#: ``struct lpm_key``: the length of the prefix in bits, then the longest prefix that the kernel's trie can hold.
LPM_KEY_SIZE = 4 + NAME_SIZE


@dataclass(frozen=True, slots=True)
class Chain:
    """The asking process with its ancestors, nearest first, by current parents and by lineage (``struct chain``).

    ``processes`` and ``lineage`` both begin with the asking process. ``complete`` is False if there are more parents,
    ``lineage_complete`` if there are more ancestors or they are unknown. ``execs`` changes with each program that the
    asking process executes. ``share`` is who took room for its entries (``SHARE_OF_*``).
    """

    processes: tuple[Process, ...]
    complete: bool
    execs: int
    lineage: tuple[Process, ...]
    lineage_complete: bool
    share: int = SHARE_OF_NOBODY


@dataclass(frozen=True, slots=True)
class AncestorKey:
    """A process, identified by facts that ``/proc/PID/stat`` has too (``struct ancestor_key``).

    ``start_ticks`` is the start in clock ticks since boot, rounded down. ``tgid`` 0 means no process or an unknown one.
    """

    start_ticks: int
    tgid: int


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A process of the lineage map: which process forked it, and whether it is still needed (``struct ancestor``).

    ``start_ns`` is 0 if the process was read from ``/proc``. ``children`` is the number of its children in the map that
    have ``counted_by_parent``. ``has_others`` is True if there are or were other children. ``parent_lost`` is True if
    its fork was not seen. ``share`` is who takes its room (``SHARE_OF_*``).
    """

    start_ns: int
    parent: AncestorKey
    children: int
    exited: bool
    has_others: bool
    counted_by_parent: bool
    parent_lost: bool
    comm: bytes
    share: int = SHARE_OF_NOBODY


@dataclass(frozen=True, slots=True)
class PathNames:
    """A path (``struct path``): its names from the root down. ``whole`` is False if the first names are missing."""

    names: tuple[bytes, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a process beside its tree, at the moment of a send (``struct identity``).

    ``exe_user_ns`` owns the mount namespace from which the executable comes. ``loginuid`` is None if it is not set. An
    unknown namespace has the inode number 0, an unknown text is empty. ``cmdline`` has at most CMDLINE_SIZE octets.
    """

    loginuid: int | None
    pid_ns: int
    mnt_ns: int
    user_ns: int
    exe_user_ns: int
    cgroup: PathNames
    exe: PathNames
    cmdline: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """An event (``struct event``).

    ``name`` is in wire format (RFC 1035, section 3.1), lower case, root included. ``server`` has 4 or 16 octets.
    ``query_id`` is 0 if the result of the query is not reported.
    """

    time_ns: int
    name_hash: int
    repeats: int
    rule: int
    generation: int
    uid: int
    gid: int
    net_ns: int
    qtype: int
    qclass: int
    port: int
    kind: int
    transport: int
    query_id: int
    server: bytes
    name: bytes
    chain: Chain


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a query that had an event (``struct ended``).

    ``query_id`` is that of the event, ``time_ns`` the moment (CLOCK_MONOTONIC). ``message`` has the first
    octets of the answer, at most ANSWER_SIZE. ``share`` is who takes its room.
    """

    time_ns: int
    query_id: int
    share: int
    result: Result
    message: bytes = b""


class CanaryResult(NamedTuple):
    """What became of a canary (``struct canary_result``).

    ``name_hash`` is that of its event. ``start_ns`` and ``tgid`` are of the process that sent it. ``result`` is a
    number of :class:`Result`.
    """

    name_hash: int
    start_ns: int
    tgid: int
    result: int


def decode_canary(data: bytes) -> Event | CanaryResult:
    """Decode a record of the ring of canaries: the event of one, or what became of one."""
    # An event is always longer.
    return CanaryResult(*CANARY_RESULT.unpack(data)) if len(data) == CANARY_RESULT.size else decode_event(data)


def decode_chain(data: bytes, at: int = 0) -> Chain:
    """Decode a ``struct chain``."""
    depth, cut, execs, shared, lineage_depth, lineage_cut, share = CHAIN_HEAD.unpack_from(data, at)
    at += CHAIN_HEAD.size
    processes = tuple(
        Process(tgid, start_ns, comm.split(b"\0", 1)[0], bool(exited))
        for start_ns, tgid, exited, comm in PROCESS.iter_unpack(data[at : at + (depth + lineage_depth) * PROCESS.size])
    )
    parents, others = processes[:depth], processes[depth:]
    return Chain(parents, not cut, execs, parents[:shared] + others, not lineage_cut, share)


def encode_ancestor_key(key: AncestorKey) -> bytes:
    """Encode a ``struct ancestor_key``."""
    return ANCESTOR_KEY.pack(key.start_ticks, key.tgid)


def encode_ancestor(ancestor: Ancestor) -> bytes:
    """Encode a ``struct ancestor``."""
    return ANCESTOR.pack(
        ancestor.start_ns,
        ancestor.share,
        encode_ancestor_key(ancestor.parent),
        ancestor.children,
        ancestor.exited,
        ancestor.has_others,
        ancestor.counted_by_parent,
        ancestor.parent_lost,
        ancestor.comm,
    )


def decode_ancestor(data: bytes) -> Ancestor:
    """Decode a ``struct ancestor``."""
    start_ns, share, parent, children, exited, has_others, counted, parent_lost, comm = ANCESTOR.unpack(data)
    return Ancestor(
        start_ns,
        AncestorKey(*ANCESTOR_KEY.unpack(parent)),
        children,
        bool(exited),
        bool(has_others),
        bool(counted),
        bool(parent_lost),
        comm.split(b"\0", 1)[0],
        share,
    )


def decode_path(data: bytes) -> PathNames:
    """Decode a ``struct path``."""
    length, whole, names = PATH.unpack(data)
    return PathNames(tuple(reversed(names[:length].split(b"\0")[:-1])), bool(whole))


def decode_identity(data: bytes) -> Facts:
    """Decode a ``struct identity``."""
    loginuid_plus_one, *namespaces, cmdline_length, _share, cgroup, exe, cmdline = IDENTITY.unpack(data)
    pid_ns, mnt_ns, user_ns, exe_user_ns = namespaces
    return Facts(
        loginuid=loginuid_plus_one - 1 if loginuid_plus_one else None,
        pid_ns=pid_ns,
        mnt_ns=mnt_ns,
        user_ns=user_ns,
        exe_user_ns=exe_user_ns,
        cgroup=decode_path(cgroup),
        exe=decode_path(exe),
        cmdline=cmdline[:cmdline_length],
    )


def decode_event(data: bytes) -> Event:
    """Decode a record of the ring buffer: a ``struct event``, cut off behind its last process."""
    # An Event begins with the numbers of the struct, in the same order.
    *numbers, family, length, query_id, server, reversed_name = EVENT_HEAD.unpack_from(data)
    server = server[:4] if family == 4 else server
    fields = (*numbers, query_id, server, unreverse(reversed_name, length), decode_chain(data, CHAIN_AT))
    return Event(*fields)


def is_ended(record: bytes) -> bool:
    """Return whether a record of the ring buffer is a ``struct ended``, not a ``struct event``."""
    return record[KIND_AT] == Kind.ENDED


def decode_ended(data: bytes) -> Ended:
    """Decode a record of the ring buffer: a ``struct ended``, cut off behind its answer."""
    time_ns, query_id, share, result, size, _kind = ENDED_HEAD.unpack_from(data)
    return Ended(time_ns, query_id, share, Result(result), data[ENDED_HEAD.size :][:size])


def unreverse(reversed_name: bytes, length: int) -> bytes:
    """Return the wire format of a name that is stored last octet first."""
    return reversed_name[:length][::-1]


def lpm_key(suffix: bytes) -> bytes:
    """Return the trie key of a suffix, which is in wire format with the root."""
    return struct.pack("=I", len(suffix) * 8) + suffix[::-1].ljust(NAME_SIZE, b"\0")
