"""The structs that the kernel side shares with us: the mirror of ``bpf/abi.h``, field by field.

Integers are in host byte order; a test compares sizes and offsets with what the compiler laid out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

NAME_SIZE = 256
COMM_SIZE = 16
CHAIN_SIZE = 40
NO_RULE = 0
CANARY = 0xFFFFFFFE
DECIDE = 0xFFFFFFFF
RULE_IDS = 65536

#: What one run of the program works in. Only its size matters here, rounded up; user space never reads it.
SCRATCH_SIZE = 4096


class Kind(IntEnum):
    """Kinds of events (``enum kind``)."""

    QUERY = 0
    UNDECIDED = 1
    CANARY = 2


class Statistic(IntEnum):
    """Slots of the statistics array (``enum statistic``)."""

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


#: ``enum transport``
TRANSPORTS = ("udp",)

SETTINGS = struct.Struct("=QQQII")
OUTCOME = struct.Struct("=IIBB2x")
PROCESS_KEY = struct.Struct("=QI4x")
COUNT_KEY = struct.Struct("=QIIHB5x")
PENDING_KEY = struct.Struct("=QQIIHB5x")
SEEN_KEY = struct.Struct("=QQIHBx")
SEEN = struct.Struct("=QQ")
DEFERRED = struct.Struct("=QQI4x")
NAME = struct.Struct(f"=III{NAME_SIZE}s4x")
PROCESS = struct.Struct(f"=QI4x{COMM_SIZE}s")
CHAIN_HEAD = struct.Struct("=II")
EVENT_HEAD = struct.Struct(f"=QQQIIIIHHBBBB16s{NAME_SIZE}s")
COUNTER = struct.Struct("=Q")
CHAIN_AT = EVENT_HEAD.size
CHAIN_BYTES = CHAIN_HEAD.size + CHAIN_SIZE * PROCESS.size
#: ``struct lpm_key``: the prefix length in bits, then the longest prefix that the kernel's trie takes
LPM_KEY_SIZE = 4 + NAME_SIZE


@dataclass(frozen=True, slots=True)
class Process:
    """A thread group as the kernel saw it at the moment of the send (``struct process``).

    ``tgid`` is the pid in the initial pid namespace; ``start_ns`` the start in nanoseconds since boot
    (``task_struct.start_boottime`` of the group leader); ``comm`` the leader's name, up to 15 arbitrary bytes.
    """

    tgid: int
    start_ns: int
    comm: bytes


@dataclass(frozen=True, slots=True)
class TrieEntry:
    """What a suffix says of a name that equals it (``at``) and of those below it (``below``): ``struct outcome``.

    ``suffix`` is in wire format, lower case, root byte included; ``labels`` does not count the root. An outcome is a
    rule's id, NO_RULE or DECIDE.
    """

    suffix: bytes
    labels: int
    at: int
    below: int


@dataclass(frozen=True, slots=True)
class Event:
    """``struct event``. ``name`` is in wire format, lower case, root included; ``server`` has 4 or 16 octets."""

    time_ns: int
    name_hash: int
    repeats: int
    rule: int
    generation: int
    uid: int
    gid: int
    qtype: int
    port: int
    kind: int
    transport: int
    server: bytes
    name: bytes
    chain: tuple[Process, ...]
    complete: bool


def decode_chain(data: bytes, at: int = 0) -> tuple[tuple[Process, ...], bool]:
    """Return the processes of a ``struct chain``, nearest first, and whether they go up to the end."""
    depth, cut = CHAIN_HEAD.unpack_from(data, at)
    at += CHAIN_HEAD.size
    processes = []
    for start_ns, tgid, comm in PROCESS.iter_unpack(data[at : at + depth * PROCESS.size]):
        processes.append(Process(tgid, start_ns, comm.split(b"\0", 1)[0]))
    return tuple(processes), not cut


def decode_event(data: bytes) -> Event:
    """Decode a ``struct event`` as it comes out of the ring buffer."""
    (
        time_ns,
        name_hash,
        repeats,
        rule,
        generation,
        uid,
        gid,
        qtype,
        port,
        kind,
        transport,
        family,
        length,
        server,
        reversed_name,
    ) = EVENT_HEAD.unpack_from(data)
    chain, complete = decode_chain(data, CHAIN_AT)
    return Event(
        time_ns,
        name_hash,
        repeats,
        rule,
        generation,
        uid,
        gid,
        qtype,
        port,
        kind,
        transport,
        server[:4] if family == 4 else server,
        unreverse(reversed_name, length),
        chain,
        complete,
    )


def unreverse(reversed_name: bytes, length: int) -> bytes:
    """Turn a name as the kernel side keeps it, last octet first, into wire format."""
    return reversed_name[:length][::-1]


def lpm_key(suffix: bytes) -> bytes:
    """Return the trie key of a suffix in wire format (root included)."""
    return struct.pack("=I", len(suffix) * 8) + suffix[::-1].ljust(NAME_SIZE, b"\0")
