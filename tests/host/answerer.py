"""Asks a small DNS server, which answers each query in the way that the first label of its name says.

It runs in a network namespace of its own, and prints, as JSON, how long each query waited for its answer at most, in
nanoseconds. The messages are made with dnspython, except for those that are not well formed.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

PORT, SERVER, CLOSED_SERVER = 53, "127.0.0.1", "127.0.0.2"
ZONE = "entries.test"
#: How long a slow answer takes: longer than ``answers.wait``, shorter than ``answers.timeout``.
SLOW_SECONDS = 3.0
#: The answer section by the first label of the name, as in zone files. NAME is what was asked for.
SECTIONS = {
    "address": ["NAME 300 IN A 192.0.2.7", "NAME 300 IN A 192.0.2.8"],
    "alias": ["NAME 60 IN CNAME b.entries.test.", "b.entries.test. 30 IN A 192.0.2.9"],
    "https": ['NAME 300 IN HTTPS 1 svc.entries.test. alpn="h2,h3"'],
    "text": ['NAME 5 IN TXT "\\027[31m\\010red" "\\226\\128\\174"'],
    "many": [f"NAME 1 IN A 198.51.100.{number}" for number in range(60)],
    **{kind: ["NAME 300 IN A 192.0.2.7"] for kind in ("stream", "pieces", "again", "slow")},
}
#: Behind the question of an answer: a record whose length is wrong, and whose name points to itself.
BROKEN = bytes.fromhex("c00c 0001 0001 0000003c 00ff c000 02")
LOOP = bytes.fromhex("c01c 0001 0001 0000003c 0004 c0000207")


def answer(wire: bytes) -> bytes:
    """Return the answer to a query."""
    query = dns.message.from_wire(wire)
    name = query.question[0].name
    kind = name.labels[0].decode()
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    if kind == "nxdomain":
        response.set_rcode(dns.rcode.NXDOMAIN)
    for line in SECTIONS.get(kind, []):
        owner, ttl, rdclass, rdtype, data = line.split(" ", 4)
        owner = str(name) if owner == "NAME" else owner
        response.answer.append(dns.rrset.from_text(owner, int(ttl), rdclass, rdtype, data))
    octets = response.to_wire()
    if kind in {"broken", "loop"}:
        octets = octets[:6] + struct.pack(">H", 1) + octets[8:] + (BROKEN if kind == "broken" else LOOP)
    return octets


def serve(server: socket.socket) -> None:
    seen: set[bytes] = set()
    while True:
        wire, client = server.recvfrom(4096)
        kind = dns.message.from_wire(wire).question[0].name.labels[0].decode()
        if kind in {"silent", "closed"} or (kind == "again" and wire not in seen):
            seen.add(wire)
        elif kind == "slow":
            threading.Timer(SLOW_SECONDS, server.sendto, [answer(wire), client]).start()
        else:
            server.sendto(answer(wire), client)


def exactly(stream: BinaryIO, size: int) -> bytes:
    octets = stream.read(size)
    assert len(octets) == size
    return octets


def serve_streams(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            octets = answer(exactly(stream, *struct.unpack(">H", exactly(stream, 2))))
            octets = struct.pack(">H", len(octets)) + octets
            if b"\6pieces" in octets:
                for at in range(len(octets)):
                    connection.send(octets[at : at + 1])
                    time.sleep(0.001)
            else:
                connection.sendall(octets)
            stream.read(1)


def message(kind: str, qtype: str = "A") -> bytes:
    return dns.message.make_query(f"{kind}.{ZONE}", qtype).to_wire()


def ask(kind: str, qtype: str = "A") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(30)
        client.connect((SERVER, PORT))
        client.send(octets := message(kind, qtype))
        if kind == "again":
            time.sleep(0.05)
            client.send(octets)
        client.recv(65535)


def ask_stream(kind: str) -> None:
    with socket.create_connection((SERVER, PORT)) as client, client.makefile("rb") as stream:
        octets = message(kind)
        client.sendall(struct.pack(">H", len(octets)) + octets)
        exactly(stream, *struct.unpack(">H", exactly(stream, 2)))


def ask_closed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(message("closed"), (SERVER, PORT))


def ask_unreachable() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((CLOSED_SERVER, PORT))
        client.send(message("unreachable"))
        try:
            client.recv(65535)
        except ConnectionRefusedError:
            return
        raise AssertionError("somebody listens")


def main() -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((SERVER, PORT))
    listener = socket.create_server((SERVER, PORT))
    for serving, place in ((serve, server), (serve_streams, listener)):
        threading.Thread(target=serving, args=(place,), daemon=True).start()
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.sendto(message("silent"), (SERVER, PORT))
    waited = {}
    plain: list[tuple[str, Callable[[], None]]] = [
        (kind, lambda kind=kind: ask(kind))  # type: ignore[misc]
        for kind in ("address", "alias", "many", "nxdomain", "nodata", "broken", "loop", "again", "slow")
    ]
    others: list[tuple[str, Callable[[], None]]] = [
        ("https", lambda: ask("https", "HTTPS")),
        ("text", lambda: ask("text", "TXT")),
        ("stream", lambda: ask_stream("stream")),
        ("pieces", lambda: ask_stream("pieces")),
        ("closed", ask_closed),
        ("unreachable", ask_unreachable),
    ]
    for kind, call in plain + others:
        before = time.monotonic_ns()
        call()
        waited[kind] = time.monotonic_ns() - before
    print(json.dumps(waited), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
