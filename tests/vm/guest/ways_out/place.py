"""The place where one situation plays: network namespaces, processes that ask, and the truth about their queries.

A situation is a function that takes a :class:`Place`. It makes its networks, starts the processes that ask, and notes
each query that dnsprobe should count. It knows the truth without dnsprobe: what the processes sent, and what arrived.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from networks import Net

#: The two ends of the cable in most places: the host of the askers, and the host of the DNS server.
NEAR4, FAR4 = "192.0.2.1", "192.0.2.53"
NEAR6, FAR6 = "2001:db8::1", "2001:db8::53"
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
#: Seconds. No step takes as long, even on an emulated processor.
PATIENCE = 60.0
#: The exit status of an asker that this kernel does not support.
_UNSUPPORTED = 77
#: What a system call fails with if this kernel was built without something.
_NOT_BUILT = (errno.ENOPROTOOPT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
#: What the tools say then.
_NOT_KNOWN = (
    "Unknown device type",
    "Requested type not found",
    "not supported",
    "No such file or directory",
    "Unknown qdisc",
    "TC classifier",
)


class Absent(Exception):
    """This kernel, or this host, does not have what a situation needs."""


class NotPlayed(Exception):
    """A situation did not go as planned. So nothing is known about dnsprobe."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A query, as dnsprobe should show it."""

    name: str
    comm: str
    transport: str
    server: str
    port: int


def message(name: str, behind: bytes = b"") -> bytes:
    """Return a query for the A record of a name (RFC 1035, section 4.1); ``behind`` is an additional record."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, int(bool(behind))) + labels + bytes([0, 0, 1, 0, 1]) + behind


def padding(size: int) -> bytes:
    """Return an OPT record with an EDNS padding option of this many octets (RFC 7830)."""
    return b"\0" + struct.pack("!HHIHHH", 41, 1232, 0, 4 + size, 12, size) + bytes(size)


def name_in(query: bytes) -> str:
    """Return the name in a query."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels)


def udp_header(payload: bytes, port: int = 53) -> bytes:
    """Return a UDP header without a checksum."""
    return struct.pack("!4H", 20053, port, 8 + len(payload), 0)


def ip4_header(protocol: int, size: int, source: str, destination: str) -> bytes:
    """Return an IPv4 header without options for ``size`` octets of payload."""
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    fields = (0x45, 0, 20 + size, 1, 0, 64, protocol)
    words = struct.unpack("!10H", struct.pack("!BBHHHBBH", *fields, 0) + ends)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHHBBH", *fields, ~total & 0xFFFF) + ends


class Receiver:
    """A DNS server that answers only when it is told to. It holds whatever arrives, over UDP and TCP, until then."""

    def __init__(self, net: Net, port: int = 53) -> None:
        with net.entered():
            self._udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
            self._udp.bind(("::", port))
            # With IPv4, too: clients of IPv4 have mapped addresses.
            self._tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        self._tcp.settimeout(PATIENCE)

    def over_tcp(self) -> str:
        """Return the name in the only query of the next TCP connection."""
        connection, _ = self._tcp.accept()
        with connection:
            connection.settimeout(PATIENCE)
            received = b""
            while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
                part = connection.recv(4096)
                if not part:
                    raise NotPlayed(f"the TCP connection ended after {received!r}")
                received += part
        return name_in(received[2:])

    def answer(self) -> None:
        """Wait for a datagram, and send it back."""
        self._udp.settimeout(PATIENCE)
        query, client = self._udp.recvfrom(65535)
        self._udp.sendto(query, client)

    def over_udp(self, count: int) -> Counter[str]:
        """Wait for ``count`` datagrams, and return their names."""
        names: Counter[str] = Counter()
        until = time.monotonic() + PATIENCE
        while names.total() < count:
            if not select.select([self._udp], [], [], max(0.0, until - time.monotonic()))[0]:
                raise NotPlayed(f"{names.total()} of {count} datagrams arrived: {dict(names)}")
            names[name_in(self._udp.recv(65535))] += 1
        return names

    def close(self) -> None:
        self._udp.close()
        self._tcp.close()


class Place:
    """The place of one situation. ``domain`` has all its names; ``asked`` is the truth; ``sender`` is senders/send."""

    def __init__(self, situation: str, sender: Path, control_groups: Path | None) -> None:
        self.domain = f"{situation}.ways.test"
        self.sender = sender
        self.asked: Counter[Asked] = Counter()
        self._control_groups = control_groups
        self._stack = ExitStack()
        self._devices = 0
        self.net = self.make_net()

    def close(self) -> None:
        self._stack.close()

    # The truth

    def names(self, count: int, tag: str = "q") -> list[str]:
        """Return different names of the situation, all of the same length."""
        return [f"{tag}{number:02}.{self.domain}" for number in range(count)]

    def right(
        self,
        *names: str,
        server: str = FAR4,
        port: int = 53,
        transport: str = "udp",
        comm: str = "asker",
        count: int = 1,
    ) -> None:
        """Note that a process called ``comm`` asks this server for each of the names ``count`` times."""
        for name in names:
            self.asked[Asked(name, comm, transport, server, port)] += count

    # Networks

    def make_net(self) -> Net:
        net = Net()
        self._stack.callback(net.close)
        return net

    def ip(self, net: Net, commands: str) -> None:
        """Run commands of ip(8), one in a line. ``@NAME`` stands for the path of a namespace: see :meth:`Net`."""
        self._tool(net, ["ip", "-batch", "-"], commands)

    def tc(self, net: Net, commands: str) -> None:
        """Run commands of tc(8), one in a line."""
        self._tool(net, ["tc", "-batch", "-"], commands)

    def nft(self, rules: str, net: Net | None = None) -> None:
        """Add rules of nft(8)."""
        with (net or self.net).entered():
            known = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
        if known.returncode:
            raise Absent(f"nft: {known.stderr.strip()}")
        self._tool(net or self.net, ["nft", "-f", "-"], rules)

    def iptables(self, *command: str) -> None:
        """Run a command of iptables(8) or ip6tables(8)."""
        if shutil.which(command[0]) is None:
            raise Absent(f"{command[0]} is not installed")
        self._tool(self.net, command, "")

    @staticmethod
    def _tool(net: Net, command: Sequence[str], text: str) -> None:
        with net.entered():
            done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        if done.returncode:
            said = f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}"
            raise Absent(said) if any(words in said for words in _NOT_KNOWN) else NotPlayed(said)

    @staticmethod
    def sysctl(net: Net, name: str, value: str) -> None:
        with net.entered():
            Path("/proc/sys/net", name).write_text(value)

    def veth(self, near: str, far: Net, name: str) -> None:
        """Add two connected devices: one in the askers' namespace, and one in another."""
        # With the same number at both ends, the kernel takes a second to notice that they are connected: see
        # linkwatch_urgent_event() in net/core/link_watch.c.
        self._devices += 1
        index = 100 + self._devices
        self.ip(
            self.net, f"link add {near} index {index} type veth peer name {name} netns {far.path} index {100 + index}"
        )

    def cable(self, far: Net | None = None, *, addresses: bool = True) -> Net:
        """Connect ``v0`` of the askers' namespace with ``v1`` of another one, and return that one."""
        far = far or self.make_net()
        self.veth("v0", far, "v1")
        for net, device, four, six in ((self.net, "v0", NEAR4, NEAR6), (far, "v1", FAR4, FAR6)):
            lines = [f"address add {four}/24 dev {device}", f"address add {six}/64 dev {device} nodad"]
            self.ip(net, "\n".join([*(lines if addresses else []), f"link set {device} up"]))
        self.net.wait_until_running("v0")
        far.wait_until_running("v1")
        return far

    def receiver(self, net: Net, port: int = 53) -> Receiver:
        """Return a server in a namespace, on all its addresses."""
        receiver = Receiver(net, port)
        self._stack.callback(receiver.close)
        return receiver

    # Control groups

    def control_group(self, name: str) -> Path:
        """Make a control group of version 2 below the root, and return its folder."""
        if self._control_groups is None:
            raise Absent("no control groups of version 2")
        group = self._control_groups / f"ways-out-{os.getpid()}-{name}"
        group.mkdir()
        self._stack.callback(group.rmdir)
        return group

    # Processes

    def start(self, function: Callable[[], object], comm: str = "asker", net: Net | None = None) -> int:
        """Run a function in a process of its own, in a namespace; return its pid. :meth:`wait` or :meth:`stop` it."""
        sys.stdout.flush()
        sys.stderr.flush()
        with (net or self.net).entered():
            pid = os.fork()
            if pid == 0:
                _run(function, comm)
        return pid

    def ask(self, function: Callable[[], object], comm: str = "asker", net: Net | None = None) -> int:
        """Run a function to its end in a process of its own; return the pid that it had."""
        pid = self.start(function, comm, net)
        self.wait(pid)
        return pid

    @staticmethod
    def wait(pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == _UNSUPPORTED:
            raise Absent("the system call is not supported")
        if code:
            raise NotPlayed(f"a process of the situation ended with {code}")

    @contextmanager
    def helper(self, function: Callable[[Callable[[], None]], object], comm: str) -> Iterator[None]:
        """Run a function in a process of its own, until the block ends. It calls its argument when it is ready."""
        reader, writer = os.pipe()
        pid = self.start(lambda: function(lambda: os.close(writer)), comm)
        os.close(writer)
        os.read(reader, 1)  # ends when the helper is ready or has failed
        os.close(reader)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise NotPlayed(f"{comm} failed")


def _run(function: Callable[[], object], comm: str) -> None:
    """Run a function and exit."""
    code = 1
    try:
        set_comm(comm)
        function()
        code = 0
    except OSError as error:
        code = _UNSUPPORTED if error.errno in _NOT_BUILT else 1
        traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def set_comm(comm: str) -> None:
    ctypes.CDLL(None).prctl(15, comm.encode(), 0, 0, 0)  # PR_SET_NAME


def sender_to(server: str, port: int = 53, *, connected: bool = True) -> socket.socket:
    """Return a UDP socket, connected to a server unless that is not wanted."""
    made = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    if connected:
        made.connect((server, port))
    return made


def send_to(server: str, *names: str, port: int = 53) -> None:
    """Send a query for each name over UDP, in the most usual way."""
    with sender_to(server, connected=False) as sender:
        for name in names:
            sender.sendto(message(name), (server, port))


def send_over_tcp(server: str, name: str, port: int = 53) -> None:
    """Send a query for a name over a TCP connection, and wait until the server has closed it."""
    with socket.create_connection((server, port), PATIENCE) as connection:
        query = message(name)
        connection.sendall(struct.pack("!H", len(query)) + query)


def hardware_address(device: str) -> bytes:
    """Return the link-layer address of a device in the current namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        found = fcntl.ioctl(asked, 0x8927, struct.pack("16s24x", device.encode()))  # SIOCGIFHWADDR
    return found[18:24]
