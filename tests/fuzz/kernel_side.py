"""Gives packets to the programs at egress, and reads back what became of them, as fast as possible.

Datagrams are not sent: the kernel runs the programs of a probe with a packet from memory (BPF_PROG_TEST_RUN,
Documentation/bpf/bpf_prog_run.rst). TCP needs the socket of its connection, so its octets are sent over loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnsprobe.kernel import libbpf
from dnsprobe.kernel.abi import CHAIN_HEAD, EVENT_HEAD, NAME_SIZE, TRANSPORTS, Resource, Statistic
from dnsprobe.kernel.canary import CanaryPort
from dnsprobe.kernel.cgroup_root import find_mounts
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.names.ruleset import TrieEntry

RULE = 7
ADDRESSES = {4: "127.0.0.1", 6: "::1"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
UDP, TCP = TRANSPORTS.index("udp"), TRANSPORTS.index("tcp")
#: The kernel takes a packet of one page, less its own room in front and behind: net/bpf/test_run.c, bpf_test_init().
LONGEST = 3400

_RING = 1 << 24
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_UDP_PROTOCOL = socket.IPPROTO_UDP
_IP4 = struct.Struct("!BBHHHBBH4s4s")
_IP6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_ETHERNET = {4: bytes(12) + b"\x08\x00", 6: bytes(12) + b"\x86\xdd"}
_PACKED = {version: socket.inet_pton(FAMILIES[version], address) for version, address in ADDRESSES.items()}
#: Members of ``struct event``: qtype, qclass, port, kind, transport, family, length; the name; the share. A test
#: compares abi.EVENT_HEAD, which has them in this order, with the compiler.
_EVENT = struct.Struct("=44xHHHBBBB")
_NAME_AT, _SHARE_AT = EVENT_HEAD.size - NAME_SIZE, EVENT_HEAD.size + CHAIN_HEAD.size - 8
#: include/uapi/linux/bpf.h: BPF_RINGBUF_BUSY_BIT and BPF_RINGBUF_HDR_SZ
_BUSY, _HEADER = 1 << 31, 8


class Seen(tuple[int, int, int, int, int, bytes]):
    """What an event says: its kind, type, class, transport, IP version, and name in wire format."""

    __slots__ = ()


class _TestRun(ctypes.Structure):
    """``struct bpf_test_run_opts`` of libbpf 1.0."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _Context(ctypes.Structure):
    """``struct __sk_buff`` of include/uapi/linux/bpf.h, up to the size of a segment."""

    _fields_ = (
        ("before", ctypes.c_uint8 * 164),
        ("gso_segs", ctypes.c_uint32),
        ("sk", ctypes.c_uint64),
        ("gso_size", ctypes.c_uint32),
    )


def datagram(version: int, port: int, payload: bytes) -> bytes:
    """Return a frame with a UDP datagram from and to loopback. The programs read no checksum, so there is none."""
    address, size = _PACKED[version], 8 + len(payload)
    if version == 4:
        header = _IP4.pack(0x45, 0, 20 + size, 0, 0, 64, _UDP_PROTOCOL, 0, address, address)
    else:
        header = _IP6.pack(6 << 28, size, _UDP_PROTOCOL, 64, address, address)
    return _ETHERNET[version] + header + _UDP.pack(40000, port, size, 0) + payload


class EventReader:
    """Reads the ring buffer of events in its memory: a call of libbpf for each event would take most of the time."""

    def __init__(self, descriptor: int) -> None:
        page = mmap.PAGESIZE
        self._position = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The data is there twice in a row, so that no record is cut at the end.
        self._data = mmap.mmap(descriptor, page + 2 * _RING, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)

    def read(self) -> tuple[list[Seen], Counter[int]]:
        """Return all events, and how many octets each share has taken."""
        (at,) = struct.unpack_from("=Q", self._position)
        (end,) = struct.unpack_from("=Q", self._data)
        seen, taken = [], Counter[int]()
        while at < end:
            place = mmap.PAGESIZE + (at & (_RING - 1))
            (size,) = struct.unpack_from("=I", self._data, place)
            assert not size & _BUSY
            place += _HEADER
            qtype, qclass, _port, kind, transport, family, length = _EVENT.unpack_from(self._data, place)
            name = self._data[place + _NAME_AT : place + _NAME_AT + length][::-1]
            seen.append(Seen((kind, qtype, qclass, transport, family, name)))
            room = (size + _HEADER + 7) & ~7
            taken[int.from_bytes(self._data[place + _SHARE_AT : place + _SHARE_AT + 8], "little")] += room
            at += room
        struct.pack_into("=Q", self._position, 0, at)
        return seen, taken


@dataclass
class Outcome:
    """The events of some messages, in their order, and by how much each statistic has grown."""

    events: list[Seen]
    statistics: Counter[Statistic]


class KernelSide:
    """A probe for one port, at egress. Use :func:`running`."""

    def __init__(self, probe: Probe, port: int) -> None:
        self.probe, self.port = probe, port
        self._reader = EventReader(probe.maps.descriptors["EVENTS"])
        self._program, *_ = next(hook.programs for hook in probe.prover.hooks if "udp4" in hook.paths)
        self._run = ctypes.PyDLL("libbpf.so.1", use_errno=True).bpf_prog_test_run_opts
        self._options = _TestRun(sz=ctypes.sizeof(_TestRun), repeat=1)
        self._reference = ctypes.byref(self._options)
        self._context, self._context_size = _Context(), ctypes.sizeof(_Context)
        self._before = probe.statistics()
        self._connections: dict[int, socket.socket] = {}

    def put(self, version: int, payload: bytes, segment: int = 0) -> None:
        """Give a packet to the program: one datagram or, as a sender makes them by UDP_SEGMENT, several of a size."""
        frame = datagram(version, self.port, payload)
        self._options.data_in, self._options.data_size_in = frame, len(frame)
        # The last call has set it to the size of its packet, and the kernel takes it for the room of data_out.
        self._options.data_size_out = 0
        if segment:
            self._context.gso_segs, self._context.gso_size = -(-len(payload) // segment), segment
            self._options.ctx_in, self._options.ctx_size_in = ctypes.addressof(self._context), self._context_size
        else:
            self._options.ctx_in, self._options.ctx_size_in = None, 0
        if self._run(self._program, self._reference):
            raise OSError(ctypes.get_errno(), "bpf_prog_test_run_opts")
        # 0 would drop the packet.
        assert self._options.retval == 1

    def take(self) -> Outcome:
        """Return what became of all that was put since the last call."""
        events, taken = self._reader.read()
        self.probe.maps.shares.give_back(Resource.EVENTS, taken)
        after = self.probe.statistics()
        grown = Counter({which: after[which] - self._before[which] for which in after})
        self._before = after
        for added in (Statistic.COUNTERS_ADDED, Statistic.NAMES_ADDED):
            del grown[added]
        return Outcome(events, +grown)

    def run(self, version: int, payloads: Sequence[bytes], segment: int = 0) -> Outcome:
        """Give packets to the program, and return what became of them."""
        for payload in payloads:
            self.put(version, payload, segment)
        return self.take()

    def send(self, version: int, pieces: Sequence[tuple[bytes, bool]]) -> None:
        """Send the pieces of a stream, one segment each, over a new connection; those with True are urgent."""
        address = ADDRESSES[version], self.port
        if version not in self._connections:
            self._connections[version] = socket.create_server(address, family=FAMILIES[version])
        server = self._connections[version]
        with socket.create_connection(address) as sender, server.accept()[0] as receiver:
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece, is_urgent in pieces:
                sender.sendall(piece, socket.MSG_OOB if is_urgent else 0)
                # The receiver acknowledges what it has read, so that the next piece leaves at once, by itself.
                with contextlib.suppress(BlockingIOError):
                    receiver.recv(1 << 20, socket.MSG_TRUNC | socket.MSG_DONTWAIT)

    def close(self) -> None:
        for server in self._connections.values():
            server.close()


@contextlib.contextmanager
def own_control_group() -> Iterator[int]:
    """Move this process to a control group of its own. Yield a descriptor of the group."""
    own = next(line for line in Path("/proc/self/cgroup").read_text("ascii").splitlines() if line.startswith("0::"))
    root = next(find_mounts(Path("/proc/self/mountinfo").read_text("utf-8")))[0]
    group = Path(root) / f"dnsprobe-fuzz-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text("0", "ascii")
        descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    finally:
        (Path(root) / own.removeprefix("0::/") / "cgroup.procs").write_text("0", "ascii")
        group.rmdir()


@contextlib.contextmanager
def _in_own_control_group(probe: Probe) -> Iterator[None]:
    """Detach the programs from the root of the control groups, and attach that for TCP to a group of this process.

    So a long run costs other programs on the host nothing.
    """
    for hook in probe.prover.hooks:
        # The array of the programs that are called, and what attaches.
        _calls, *links = hook.links
        del hook.links[1:]
        for link in links:
            os.close(link)
    stream = next(hook for hook in probe.prover.hooks if "tcp4" in hook.paths)
    with own_control_group() as group:
        stream.links.append(libbpf.create_link(stream.programs[0], group, libbpf.CGROUP_INET_EGRESS))
        yield


def enter_network_namespace() -> None:
    """Enter a network namespace without a firewall: behind one, the programs look for the socket of the packet."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", "fd00::2", "dev", "lo", "nodad"], check=True)


@contextlib.contextmanager
def running(rules: Sequence[TrieEntry]) -> Iterator[KernelSide]:
    """Attach a probe at egress for a port, and enter a network namespace. Each message causes an event."""
    with contextlib.closing(CanaryPort()) as held:
        port = held.port
    probe = Probe(
        ProbeOptions([port], hook="cgroup_skb", tcp_hook="cgroup_skb"),
        Sizes(ring=_RING, processes=64, counters=65536, names=1 << 18, recent=1),
        repeat_ns=0,
    )
    try:
        probe.set_rules(rules)
        probe.start()
        enter_network_namespace()
        with _in_own_control_group(probe), contextlib.closing(KernelSide(probe, port)) as kernel:
            yield kernel
    finally:
        probe.close()
        probe.release()
