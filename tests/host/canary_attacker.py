"""Attacks the canaries, as an ordinary user in the same network namespace: ``canary_attacker.py ATTACK``.

``listeners`` connects to each new listener, and sends to each new socket for UDP, as often as it can. ``ports`` takes
all ports of net.ipv4.ip_local_port_range. Both print a line when they have begun, and go on until they are killed.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
from pathlib import Path

HELD = 800
LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def ports_in_use() -> set[int]:
    """Return the port of each listener and of each socket for UDP."""
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/self/net/{table}").read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] in {"0A", "07"}:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def attack_listeners() -> None:
    """Fill the queues of all listeners, and the buffers of all sockets for UDP."""
    held: list[socket.socket] = []
    known = ports_in_use()
    print("known", flush=True)
    datagrams = [(socket.socket(family, socket.SOCK_DGRAM), address) for family, address in LOOPBACK]
    while True:
        targets = ports_in_use() - known
        for port in targets:
            for family, address in LOOPBACK:
                for _ in range(20):
                    if len(held) > HELD:
                        held.pop(0).close()
                    connection = socket.socket(family, socket.SOCK_STREAM)
                    connection.setblocking(False)
                    held.append(connection)
                    with contextlib.suppress(OSError):
                        connection.connect((address, port))
            for sender, address in datagrams:
                with contextlib.suppress(OSError):
                    sender.sendto(b"x" * 1000, (address, port))


def take_ports() -> None:
    """Bind all ports that the kernel assigns, for UDP and TCP, of IPv4 and IPv6."""
    taken = []
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split())
    for port in range(first, last + 1):
        for family, _address in LOOPBACK:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                bound = socket.socket(family, kind)
                if family == socket.AF_INET6:
                    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                bound.bind(("", port))
                taken.append(bound)
    print("taken", len(taken), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    {"listeners": attack_listeners, "ports": take_ports}[sys.argv[1]]()
