"""A client of real resolvers, for the tests in tests/host, too.

``asking.py COMM SCENE SERVER ARGUMENT…`` asks, and prints what it saw, as JSON. That is the truth that dnsprobe is
compared with. dnspython reads the answers. Its sockets stay open until there is no more input.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

import dns.edns
import dns.flags
import dns.message
from answer_text import outcome
from ways_out.place import set_comm

PATIENCE = 60
#: Options of a query, by what asks for them. A query with ``version`` gets another version of EDNS in send().
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "edns": {"use_edns": 0, "payload": 1232},
    "large": {"use_edns": 0, "payload": 4096},
    "version": {"use_edns": 0},
    "cookie": {"use_edns": 0, "options": [dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")]},
}


def connect(server: str, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    """Return a connected socket."""
    client = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind)
    client.settimeout(PATIENCE)
    client.connect((server, 53))
    return client


def send(client: socket.socket, query: dns.message.Message, version: int = 0) -> None:
    """Send a query, with this version of EDNS if it has an OPT record without options."""
    wire = query.to_wire()
    if version:
        # The record ends with the version, two octets of flags, and a length of 0 (RFC 6891, section 6.1).
        wire = wire[:-5] + bytes([version]) + wire[-4:]
    client.sendall(len(wire).to_bytes(2, "big") + wire if client.type == socket.SOCK_STREAM else wire)


def receive(client: socket.socket) -> dns.message.Message:
    """Return the next answer."""
    if client.type == socket.SOCK_DGRAM:
        return dns.message.from_wire(client.recv(65535))
    length = int.from_bytes(_read(client, 2), "big")
    return dns.message.from_wire(_read(client, length))


def _read(client: socket.socket, size: int) -> bytes:
    """Return the next octets of a stream. With a timeout, MSG_WAITALL would not wait for all."""
    octets = b""
    while len(octets) < size:
        part = client.recv(size - len(octets))
        if not part:
            raise EOFError(f"the server ended the connection after {octets!r}")
        octets += part
    return octets


def one_by_one(server: str, *plans: str) -> list[tuple[str, str]]:
    """Ask for each plan, ``NAME/TYPE/OPTIONS``, over UDP and over TCP; if the answer is truncated, again over TCP."""
    found = []
    udp, tcp = connect(server), connect(server, socket.SOCK_STREAM)
    KEPT.extend([udp, tcp])
    for plan in plans:
        name, qtype, options = plan.split("/")
        ways = [udp, tcp]
        for client in ways:
            send(client, dns.message.make_query(name, qtype, **OPTIONS[options]), options == "version")
            answer = receive(client)
            found.append(("udp" if client is udp else "tcp", outcome(answer)))
            if answer.flags & dns.flags.TC:
                ways.append(tcp)
    return found


def burst(server: str, name: str, count: str) -> dict[str, Any]:
    """Send queries over UDP at once, and receive as many answers as the next line says: outcome and id of each.

    If it says ``all``, receive those that have come by then.
    """
    client = connect(server)
    KEPT.append(client)
    sent = {}
    for number in range(int(count)):
        query = dns.message.make_query(name, "A", id=number)
        sent[number] = time.monotonic()
        send(client, query)
    tell("sent")
    received = []
    line = sys.stdin.readline().strip()
    if line == "all":
        client.setblocking(False)
    for _ in range(int(count if line == "all" else line)):
        try:
            answer = receive(client)
        except BlockingIOError:
            break
        received.append((outcome(answer), answer.id, time.monotonic() - sent[answer.id]))
    return {"received": received}


def stream(server: str, name: str, count: str) -> list[tuple[str, str]]:
    """Ask over one TCP connection, one query after the other."""
    client = connect(server, socket.SOCK_STREAM)
    KEPT.append(client)
    found = []
    for _ in range(int(count)):
        send(client, dns.message.make_query(name, "A"))
        found.append(("tcp", outcome(receive(client))))
    return found


def refused(server: str, name: str, count: str) -> int:
    """Ask a closed port, each time from a socket of its own, and return how many had an error."""
    errors = 0
    for _ in range(int(count)):
        client = connect(server)
        KEPT.append(client)
        send(client, dns.message.make_query(name, "A"))
        try:
            client.recv(512)
        except ConnectionRefusedError:
            errors += 1
    return errors


def other_reads(server: str, name: str, count: str) -> list[str]:
    """Send queries whose answers another process reads."""
    client = connect(server)
    reader, writer = os.pipe()
    if not os.fork():
        set_comm("other-reader")
        os.write(writer, json.dumps([outcome(receive(client)) for _ in range(int(count))]).encode())
        os._exit(0)
    for _ in range(int(count)):
        send(client, dns.message.make_query(name, "A"))
    found: list[str] = json.loads(os.read(reader, 65536))
    os.wait()
    return found


#: Sockets that stay open until there is no more input.
KEPT: list[socket.socket] = []
SCENES = {scene.__name__: scene for scene in (one_by_one, burst, stream, refused, other_reads)}


def tell(what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    set_comm(sys.argv[1])
    tell(SCENES[sys.argv[2]](*sys.argv[3:]))
    sys.stdin.read()
