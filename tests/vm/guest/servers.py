"""Asks several servers for the same names: ``unshare --net python3 servers.py DOMAIN``.

The tests in tests/host use it, too. It needs a network namespace of its own. All queries are of one process. It prints
"nat" if the kernel can translate addresses.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress

#: Ports that the configuration has to watch, beside 53 and, for DNS over TLS, 853.
OTHER_PORT = 5300
#: The label of each server, and its address and port. NAT sends what goes to the last two to other addresses.
SERVERS = {
    "127.0.0.1": ("127.0.0.1", 53),
    "127.0.0.2": ("127.0.0.2", 53),
    "127.0.0.1:5300": ("127.0.0.1", OTHER_PORT),
    "::1": ("::1", 53),
    "[::1]:5300": ("::1", OTHER_PORT),
    "10.9.0.9": ("10.9.0.9", 53),
    "fd00:9::9": ("fd00:9::9", 53),
}
#: How often each server is asked: without and with a connected socket, and over TCP. Servers are asked in turns, so the
#: query before is the same one to another server.
UNCONNECTED, CONNECTED, STREAMED = 4, 2, 3
#: Queries for a name that the daemon decides, connections with DNS over TLS, and datagrams that are no queries.
DECIDED, ENCRYPTED, MALFORMED = 2, 2, 3

COMMANDS = """
link set lo up
address add 10.9.0.1/24 dev lo
address add fd00:9::1/64 dev lo nodad
"""
RULES = """
add table inet servers
add chain inet servers out { type nat hook output priority -100; }
add rule inet servers out ip daddr 10.9.0.9 dnat ip to 127.0.0.2
add rule inet servers out ip6 daddr fd00:9::9 dnat ip6 to ::1
"""


def query(name: str) -> bytes:
    """Return a query for A."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return bytes.fromhex("0001 0100 0001 0000 0000 0000") + labels + bytes.fromhex("00 0001 0001")


def queries() -> Counter[tuple[str, str]]:
    """Return the queries by transport and server."""
    found: Counter[tuple[str, str]] = Counter()
    for label in SERVERS:
        found["udp", label] = UNCONNECTED + CONNECTED + DECIDED
        found["tcp", label] = STREAMED
    return found


def connections() -> Counter[tuple[str, str]]:
    """Return the connections that cannot be read by transport and server."""
    return Counter({("dot", "127.0.0.1"): ENCRYPTED, ("dot", "::1"): ENCRYPTED})


def unread() -> Counter[tuple[str, str]]:
    """Return the messages that cannot be read by transport and server."""
    return Counter({("udp", label): MALFORMED for label in SERVERS})


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _reply(server: socket.socket) -> None:
    """Answer each query that has a question: no such name."""
    while True:
        message, where = server.recvfrom(512)
        if len(message) > 12:
            server.sendto(message[:2] + b"\x81\x83" + message[4:], where)


def _serve() -> list[socket.socket]:
    """Return servers that accept connections, and answer datagrams. One thread each does so."""
    streams = [
        socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        for port in (53, OTHER_PORT, 853)
    ]
    for address, port in SERVERS.values():
        with suppress(OSError):  # an address that only NAT knows
            server = socket.socket(_family(address), socket.SOCK_DGRAM)
            server.bind((address, port))
            threading.Thread(target=_reply, args=(server,), daemon=True).start()
    return streams


def _ask_over_udp(domain: str) -> None:
    askers = {family: socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)}
    message = query(f"www.{domain}")
    for _ in range(UNCONNECTED):
        for address, port in SERVERS.values():
            askers[_family(address)].sendto(message, (address, port))
            askers[_family(address)].recv(512)
    for address, port in SERVERS.values():
        connected = socket.socket(_family(address), socket.SOCK_DGRAM)
        connected.connect((address, port))
        for _ in range(CONNECTED):
            connected.send(message)
            connected.recv(512)
    for _ in range(DECIDED):
        for address, port in SERVERS.values():
            askers[_family(address)].sendto(query(f"a-b.{domain}"), (address, port))
            askers[_family(address)].recv(512)
    for _ in range(MALFORMED):
        for address, port in SERVERS.values():
            askers[_family(address)].sendto(b"odd", (address, port))


def _ask_over_tcp(domain: str) -> None:
    message = query(f"www.{domain}")
    for address, port in SERVERS.values():
        with socket.create_connection((address, port)) as stream:
            for _ in range(STREAMED):
                stream.sendall(len(message).to_bytes(2, "big") + message)
    for address in ("127.0.0.1", "::1"):
        for _ in range(ENCRYPTED):
            with socket.create_connection((address, 853)) as stream:
                stream.sendall(b"\x16\x03\x01")


def main(domain: str) -> None:
    """Send all queries for names in ``domain``."""
    for command in COMMANDS.strip().splitlines():
        subprocess.run(["ip", *command.split()], check=True)
    nat = subprocess.run(["nft", RULES], stderr=subprocess.DEVNULL, check=False).returncode == 0
    if not nat:
        # Then the addresses are those of this host.
        for address in ("10.9.0.9/32", "fd00:9::9/128"):
            subprocess.run(["ip", "address", "add", address, "dev", "lo", *["nodad"] * (":" in address)], check=True)
    print("nat" if nat else "no nat")
    _servers = _serve()
    _ask_over_udp(domain)
    _ask_over_tcp(domain)


if __name__ == "__main__":
    main(sys.argv[1])
