"""What is not read for want of room, or because the kernel skipped a run, is counted with its sender.

The tests cause this by changing the maps of a probe.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from reference import LENGTH, message, wire

from dnsprobe.kernel import abi
from dnsprobe.kernel.hooks import kprobes_available
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.names.ruleset import TrieEntry

QUERY = message(wire([b"www", b"room", b"test"]))
FRAME = LENGTH.pack(len(QUERY)) + QUERY
#: The names of the rule. QUERY is not among them, so that nothing but the unread message gives the process a tree.
OTHER_NAMES = TrieEntry(wire([b"other", b"test"]), 7, 7, 1)
#: Where ``start`` is in struct stream of bpf/abi.h.
START = struct.Struct("=I")
START_AT = 12
#: include/uapi/linux/udp.h
UDP_SEGMENT = 103

bpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


@dataclass
class Running:
    """A probe that watches the port of a listener."""

    probe: Probe
    address: tuple[str, int]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address)

    def send(self, send: Callable[[], object]) -> tuple[int, dict[abi.Statistic, int]]:
        """Send in a process that ends at once. Return its pid, and what was not read of it, by the reason."""
        before = self.probe.statistics()
        child = os.fork()
        if not child:
            try:
                send()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        after = self.probe.statistics()
        found: Counter[abi.Statistic] = Counter()
        for (_start, tgid, rule, reason, *_), count in self.probe.maps.counters.items():
            if rule == abi.UNREAD and tgid == child:
                found[abi.Statistic(reason)] += count
        # Nothing is counted for another process.
        assert found == Counter({reason: after[reason] - before[reason] for reason in found})
        return child, dict(found)

    def trees(self) -> set[int]:
        return {tgid for (_start, tgid), _ in self.probe.maps.ancestries.items()}


@contextlib.contextmanager
def running(tcp_hook: str) -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sizes = Sizes(ring=4096, processes=64, counters=64, names=16, recent=16)
        probe = Probe(ProbeOptions([listener.getsockname()[1]], tcp_hook=tcp_hook), sizes, repeat_ns=0)
        try:
            probe.set_rules([OTHER_NAMES])
            probe.start()
            yield Running(probe, listener.getsockname())
        finally:
            probe.close()
            probe.release()


@pytest.fixture(scope="module")
def egress() -> Iterator[Running]:
    with running("cgroup_skb") as found:
        yield found


@contextlib.contextmanager
def no_scratch_space(probe: Probe) -> Iterator[None]:
    """Take all scratch spaces, as runs do that interrupt each other."""
    free = probe.maps.descriptors["FREE_SCRATCH"]
    taken = []
    index = ctypes.create_string_buffer(4)
    while bpf.bpf_map_lookup_and_delete_elem(free, None, index) == 0:
        taken.append(index.raw)
    assert taken
    try:
        yield
    finally:
        for raw in taken:
            assert bpf.bpf_map_update_elem(free, None, raw, 0) == 0


def skip_run(probe: Probe) -> None:
    """Change the state of all connections as if the kernel had skipped the run for the last query, FRAME."""
    streams = probe.maps.descriptors["STREAMS"]
    key, following = None, ctypes.create_string_buffer(8)
    stream = ctypes.create_string_buffer(abi.STREAM.size)
    while bpf.bpf_map_get_next_key(streams, key, following) == 0:
        key = ctypes.create_string_buffer(following.raw, 8)
        assert bpf.bpf_map_lookup_elem(streams, key, stream) == 0
        (start,) = START.unpack_from(stream, START_AT)
        START.pack_into(stream, START_AT, (start - len(FRAME)) % (1 << 32))
        assert bpf.bpf_map_update_elem(streams, key, stream, 0) == 0


def test_what_finds_no_room_for_a_run_is_counted_with_its_sender(egress: Running) -> None:
    with egress.connect() as sender, no_scratch_space(egress.probe):

        def send() -> None:
            # Each leaves in a packet of its own.
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(3):
                sender.sendall(FRAME)

        _, unread = egress.send(send)
    assert unread == {abi.Statistic.UNPARSED_BUSY: 3}


def test_datagrams_that_find_no_room_for_a_run_are_counted_with_their_sender(egress: Running) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, no_scratch_space(egress.probe):
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(QUERY))
        _, unread = egress.send(lambda: sender.sendto(QUERY * 2, egress.address))
    assert unread == {abi.Statistic.UNPARSED_BUSY: 1}


def test_messages_behind_those_that_are_skipped_are_counted_with_their_sender(egress: Running) -> None:
    with egress.connect() as sender:
        process, unread = egress.send(lambda: sender.sendall(FRAME * 600))
    assert unread == {abi.Statistic.UNPARSED_PIPELINED: 256, abi.Statistic.UNPARSED_UNALIGNED: 1}
    assert process in egress.trees()


def test_a_gap_in_front_of_a_query_is_counted_with_its_sender() -> None:
    """The query itself is read, and no rule matches it."""
    with (
        running("tcp_sendmsg_locked" if kprobes_available() else "tcp_tracepoint") as at_write,
        at_write.connect() as sender,
    ):
        sender.sendall(FRAME)
        skip_run(at_write.probe)
        process, unread = at_write.send(lambda: sender.sendall(FRAME))
        assert unread == {abi.Statistic.UNPARSED_UNALIGNED: 1}
        assert at_write.trees() == {process}
