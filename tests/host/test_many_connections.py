"""TCP connections whose state takes memory of dnsprobe, and what is read of them without a state."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from conftest import PATIENCE, Service
from test_tcp_at_egress import BEFORE, GUEST, SCENES

from dnsprobe.kernel import abi
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.names.ruleset import TrieEntry

CONFIGURATION = "domains: [hidden.test]\nprobe: {tcp_hook: cgroup_skb}"
CONNECTIONS = 10_000
#: Octets. The kernel's allocator rounds up what a socket keeps.
AT_MOST_EACH = 1024

#: Opens connections to servers that do not answer, in several processes, and says so. They end with the input.
HALF_OPEN = """
import errno, os, socket, subprocess, sys
subprocess.run(["ip", "route", "add", "198.51.100.0/24", "dev", "lo"], check=True)
opened, processes = int(sys.argv[1]), 20
for process in range(processes):
    if not os.fork():
        sockets = []
        for number in range(opened // processes):
            sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            if sender.connect_ex((f"198.51.100.{process + 1}", 53)) != errno.EINPROGRESS:
                sys.exit("not half-open")
            sockets.append(sender)
        os.write(1, b"%d\\n" % len(sockets))
        sys.stdin.read()
        os._exit(0)
sys.stdin.read()
"""


class MemoryGroup:
    """A control group of the memory controller."""

    def __init__(self) -> None:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        version1 = [
            Path(at) for _, at, kind, options, *_ in mounts if kind == "cgroup" and "memory" in options.split(",")
        ]
        version2 = [Path(at) for _, at, kind, *_ in mounts if kind == "cgroup2"]
        roots = version1 or [at for at in version2 if "memory" in (at / "cgroup.subtree_control").read_text().split()]
        if not roots:
            pytest.skip(
                "no memory controller: boot the kernel with cgroup_enable=memory, or enable the controller at the root"
            )
        self.path = roots[0] / f"dnsprobe-test-{os.getpid()}"
        self._used = "memory.usage_in_bytes" if version1 else "memory.current"
        self._limit = "memory.limit_in_bytes" if version1 else "memory.max"
        try:
            self.path.mkdir()
        except OSError as error:
            pytest.skip(
                f"no control group can be made ({error.strerror}): mount its file system so that root can write to it"
            )

    @property
    def prefix(self) -> list[str]:
        """A command prefix: the command runs in the group."""
        return ["sh", "-ec", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(self.path)]

    def used(self) -> int:
        """Return the octets of memory that count for the group, without cached files, which the kernel can drop."""
        used = int((self.path / self._used).read_text())
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return used - int(stat["inactive_file"]) - int(stat["active_file"])

    def remove(self) -> None:
        """Remove the group, once the last processes in it have ended."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self.path.rmdir()
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return

    def limit(self, octets: int) -> None:
        """Let the kernel end what uses more octets."""
        (self.path / self._limit).write_text(str(octets))


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    made = MemoryGroup()
    yield made
    made.remove()


@pytest.fixture
def open_connections(in_namespace: Sequence[str]) -> Iterator[Callable[[int], None]]:
    """Return a function that opens so many connections, which stay open until the end of the test."""
    opened: list[subprocess.Popen[str]] = []

    def run(number: int) -> None:
        command = [*in_namespace, sys.executable, "-c", HALF_OPEN, str(number)]
        attacker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        opened.append(attacker)
        assert attacker.stdout is not None
        left = number
        while left:
            left -= int(attacker.stdout.readline())

    yield run
    for attacker in opened:
        with attacker:
            assert attacker.stdin is not None
            attacker.stdin.close()
            attacker.wait(PATIENCE)


def test_a_connection_takes_little_memory(
    group: MemoryGroup, start: Callable[..., Service], open_connections: Callable[[int], None]
) -> None:
    service = start(CONFIGURATION, group.prefix)
    service.get("/metrics")
    before = group.used()
    open_connections(CONNECTIONS)
    taken = group.used() - before
    assert taken < CONNECTIONS * AT_MOST_EACH
    service.stop()


#: The lines of a scene come behind this. `secret` is a query.
VICTIM = f'{BEFORE}\nname_process("victim")\n'

#: Whole queries, in ways that ordinary clients have: alone, two in a segment, and again over a connection that stays.
WHOLE = """
for family in FAMILIES:
    sender = connect(family)
    for number in range(4):
        sender.send(secret)
        sender.recv(1 << 16)
    sender.send(secret * 2)
    finish(sender)
"""
QUERIES = 3 * 6

#: Queries that nothing can be read of without what was sent before.
IN_PARTS = """
for family in FAMILIES:
    for cut in (2, 20):
        sender = connect(family)
        sender.send(secret[:cut])
        time.sleep(0.05)
        sender.send(secret[cut:])
        finish(sender)
sender = connect("4")
sender.send(b"x", socket.MSG_OOB)
time.sleep(0.05)
finish(sender)
"""
#: Both parts of each, and the urgent octet.
PARTS = 3 * 2 * 2 + 1

#: A segment that does not arrive is sent again, and counts once.
AGAIN = SCENES["retransmission"]

#: Uses up the memory for options of each socket before it is connected (TCP_MD5SIG of tcp(7)).
WITHOUT_OPTIONS = """
def connect(family):
    number, address = FAMILIES[family]
    sender = socket.socket(number, socket.SOCK_STREAM)
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for host in range(1, 1 << 16):
        if number == socket.AF_INET:
            peer = struct.pack("=H2xI120x", number, host)
        else:
            peer = struct.pack("=H6x12xI104x", number, host)
        try:
            sender.setsockopt(socket.IPPROTO_TCP, 14, peer + struct.pack("=BBHI80s", 0, 0, 1, 0, b"k"))
        except OSError:
            break
    sender.connect((address or MAPPED, PORT))
    return sender
"""


@pytest.fixture
def play(in_namespace: Sequence[str]) -> Callable[[str], None]:
    """Return a function that plays a scene in a network namespace."""

    def run(lines: str) -> None:
        subprocess.run(
            [*in_namespace, sys.executable, "-c", VICTIM + lines, str(GUEST)], check=True, timeout=PATIENCE * 3
        )

    return run


def counted(service: Service) -> dict[str, int]:
    return service.by("dnsprobe_queries_total", "process")


def unread(service: Service) -> dict[str, int]:
    """Return the messages that were not read, by process, after it is certain that each has the reason `busy`."""
    samples = service.samples("dnsprobe_messages_unread_total")
    assert {labels["reason"] for labels, _ in samples} <= {"busy"}
    return service.by("dnsprobe_messages_unread_total", "process")


def assert_read_without_state(service: Service, play: Callable[[str], None], before: str = "") -> None:
    play(before + WHOLE)
    assert (counted(service), unread(service)) == ({"victim": QUERIES}, {})
    play(before + IN_PARTS)
    assert (counted(service), unread(service)) == ({"victim": QUERIES}, {"victim": PARTS})
    play(before + AGAIN)
    assert (counted(service), unread(service)) == ({"victim": QUERIES + 20}, {"victim": PARTS})


def test_queries_are_read_while_memory_is_short(
    group: MemoryGroup, start: Callable[..., Service], play: Callable[[str], None]
) -> None:
    service = start(CONFIGURATION, group.prefix)
    service.get("/metrics")
    # More than three quarters are used.
    group.limit(group.used() * 5 // 4)
    service.wait_for("dnsprobe keeps no state of new TCP connections")
    assert_read_without_state(service, play)
    group.limit(1 << 40)
    service.wait_for("there is memory again")
    play(IN_PARTS)
    assert counted(service) == {"victim": QUERIES + 20 + 3 * 2}
    assert unread(service) == {"victim": PARTS}


def test_queries_of_a_socket_without_memory_for_options_are_read(
    start: Callable[..., Service], play: Callable[[str], None]
) -> None:
    assert_read_without_state(start(CONFIGURATION), play, WITHOUT_OPTIONS)


QUERY = bytes.fromhex("001a 0001 0100 0001 0000 0000 0000 03 777777 04 74657374 00 0001 0001")


def test_the_kernel_side_makes_no_more_states_than_there_is_room_for() -> None:
    """The room is set once a second; until then, the kernel side counts it down."""
    sizes = Sizes(ring=4096, processes=16, counters=16, names=16, recent=16)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        probe = Probe(ProbeOptions([listener.getsockname()[1]], tcp_hook="cgroup_skb"), sizes, repeat_ns=0)

        def send(*pieces: bytes) -> None:
            with socket.create_connection(listener.getsockname()) as sender, listener.accept()[0] as receiver:
                sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in pieces:
                    sender.sendall(piece)
                    receiver.recv(len(piece), socket.MSG_WAITALL)

        try:
            probe.set_rules([TrieEntry(b"\0", 0, 1, 1)])
            probe.start()
            probe.maps.put_storage_room(3)
            # The first one takes two states: of the connection, and of the message. The second one has no room for that
            # of the message, the third one none at all.
            for _ in range(3):
                send(QUERY[:20], QUERY[20:])
            send(QUERY)
            statistics = probe.statistics()
            assert sum(count for key, count in probe.maps.counters.items() if key[2] == 1) == 2
            assert statistics[abi.Statistic.UNPARSED_BUSY] == 3
            assert statistics[abi.Statistic.UNPARSED_UNALIGNED] == 1
        finally:
            probe.close()
            probe.release()
