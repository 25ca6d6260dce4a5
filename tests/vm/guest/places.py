"""Sends queries to servers on this host and elsewhere: ``unshare --net python3 places.py DOMAIN``.

The tests in tests/host use it, too. It needs a network namespace of its own, which it connects with another one. Each
process is called as the place that it asks. It prints "nat" if the kernel can translate addresses.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from networks import Net

#: Servers, and whether they are on this host. ``own`` is an address of this host that is none of loopback, ``group`` a
#: multicast group. NAT sends what goes to ``moved`` to this host instead.
PLACES = {
    "loopback": ("127.0.0.1", "local"),
    "stub": ("127.0.0.53", "local"),
    "own": ("10.9.0.1", "local"),
    "peer": ("10.9.0.2", "remote"),
    "group": ("224.0.0.77", "remote"),
    "moved": ("10.9.0.9", "remote"),
    "loopback6": ("::1", "local"),
    "own6": ("fd00:9::1", "local"),
    "peer6": ("fd00:9::2", "remote"),
    "group6": ("ff02::77%v0", "remote"),
}
#: What a process sends to its place: datagrams without and with a connected socket, and messages over TCP.
UNCONNECTED, CONNECTED, STREAMED = 3, 2, 2
#: What one process sends to ``own`` and ``peer``, in turns: the same query each time.
IN_TURNS = 4

RULES = """
add table ip places
add chain ip places out { type nat hook output priority -100; }
add rule ip places out ip daddr 10.9.0.9 dnat to 10.9.0.1
"""


def _query(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return bytes.fromhex("0001 0100 0001 0000 0000 0000") + labels + bytes.fromhex("00 0001 0001")


def expected(*behind_nat: str) -> Counter[tuple[str, str, str]]:
    """Return the queries by process, transport and place. ``behind_nat`` are the transports whose hook is there."""
    found: Counter[tuple[str, str, str]] = Counter()
    for name, (_address, to) in PLACES.items():
        for transport, number in (("udp", UNCONNECTED + CONNECTED), ("tcp", STREAMED)):
            if transport == "udp" or not name.startswith("group"):
                found[name, transport, "local" if name == "moved" and transport in behind_nat else to] = number
    found["in-turns", "udp", "local"] = found["in-turns", "udp", "remote"] = IN_TURNS
    return found


def _connect(other: Net) -> None:
    subprocess.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", other.path], check=True)
    for place, last in ((None, 1), (other, 2)):
        commands = [
            f"address add 10.9.0.{last}/24 dev v0",
            f"address add fd00:9::{last}/64 dev v0 nodad",
            "link set v0 up",
            "neighbour add 10.9.0.9 lladdr 02:00:00:00:00:09 dev v0",
            "route add 224.0.0.0/4 dev v0",
        ]
        for command in commands:
            if place is None:
                subprocess.run(["ip", *command.split()], check=True)
            else:
                with place.entered():
                    subprocess.run(["ip", *command.split()], check=True)
    other.wait_until_running("v0")


def _serve() -> socket.socket:
    """Return a server that accepts connections and never answers."""
    return socket.create_server(("::", 53), family=socket.AF_INET6, dualstack_ipv6=True)


def _as_process(name: str, ask: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME of include/uapi/linux/prctl.h
        try:
            ask()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        raise AssertionError(f"{name} failed")


def _socket(address: str, kind: int) -> tuple[socket.socket, Any]:
    family, _, _, _, where = socket.getaddrinfo(address, 53, type=kind)[0]
    return socket.socket(family, kind), where


def _ask(name: str, message: bytes, *, nat: bool) -> None:
    address, _to = PLACES[name]
    asker, where = _socket(address, socket.SOCK_DGRAM)
    for _ in range(UNCONNECTED):
        asker.sendto(message, where)
    connected, where = _socket(address, socket.SOCK_DGRAM)
    connected.connect(where)
    for _ in range(CONNECTED):
        connected.send(message)
    if name.startswith("group") or (name == "moved" and not nat):
        return
    stream, where = _socket(address, socket.SOCK_STREAM)
    stream.connect(where)
    for _ in range(STREAMED):
        stream.sendall(len(message).to_bytes(2, "big") + message)


def _ask_in_turns(message: bytes) -> None:
    asker, own = _socket(PLACES["own"][0], socket.SOCK_DGRAM)
    for _ in range(IN_TURNS):
        asker.sendto(message, own)
        asker.sendto(message, (PLACES["peer"][0], 53))


def main(domain: str) -> None:
    """Send all queries for names in ``domain``."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    other = Net()
    _connect(other)
    nat = subprocess.run(["nft", RULES], stderr=subprocess.DEVNULL, check=False).returncode == 0
    print("nat" if nat else "no nat")
    servers = [_serve()]
    with other.entered():
        servers.append(_serve())
        # Nobody refuses a datagram, so that a connected socket has no error.
        silent = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)]
        silent[0].bind(("::", 53))
    silent.append(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    silent[1].bind(("::", 53))
    for name in PLACES:
        _as_process(name, partial(_ask, name, _query(f"{name}.{domain}"), nat=nat))
    _as_process("in-turns", partial(_ask_in_turns, _query(f"in-turns.{domain}")))


if __name__ == "__main__":
    main(sys.argv[1])
