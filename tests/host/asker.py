"""Asks a small DNS server, which answers some queries and not others. Runs in a network namespace of its own.

Prints what was sent, by what becomes of it, as JSON. Then it keeps its sockets open until its input ends.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections import Counter

SERVER, NOBODY = ("127.0.0.1", 53), ("127.0.0.2", 53)
RCODES = {"noerror": 0, "servfail": 2, "nxdomain": 3, "refused": 5}
#: How many queries of each kind are sent: see :func:`main`.
QUERIES = {"noerror": 150, "again": 200, "twice": 50, "nodata": 50, "nxdomain": 100, "servfail": 50, "refused": 50}
SILENT, CLOSED, UNREACHABLE, SUPERSEDED = 100, 100, 50, 50


def question(name: str) -> bytes:
    """Return a question for the address of a name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return labels + struct.pack(">BHH", 0, 1, 1)


def query(number: int, name: str) -> bytes:
    """Return a query."""
    return struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + question(name)


def serve(server: socket.socket) -> None:
    """Answer as the first label of the name says."""
    while True:
        message, client = server.recvfrom(512)
        kind = message[13 : 13 + message[12]].decode().partition("-")[0]
        if kind == "silent":
            continue
        records = 0 if kind == "nodata" or RCODES.get(kind) else 1
        head = message[:2] + struct.pack(">HHHHH", 0x8180 | RCODES.get(kind, 0), 1, records, 0, 0)
        # In upper case: the name of an answer matches in any case.
        answer = head + message[12:].upper() + records * struct.pack(">HHHIH4s", 0xC00C, 1, 1, 60, 4, bytes(4))
        for _ in range(2 if kind == "twice" else 1):
            server.sendto(answer, client)


def connected(server: tuple[str, int]) -> socket.socket:
    """Return a socket that is connected to a server."""
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(server)
    client.settimeout(30)
    return client


def main() -> None:
    """Send the queries, and wait for the answers of those that get one."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(SERVER)
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    sent: Counter[str] = Counter()
    client = connected(SERVER)
    for kind, times in QUERIES.items():
        for number in range(times):
            name = "again.answers.test" if kind == "again" else f"{kind}-{number}.answers.test"
            client.send(query(number, name))
            for _ in range(2 if kind == "twice" else 1):
                client.recv(512)
            sent[kind] += 1
    silent = connected(SERVER)
    for number in range(SILENT):
        silent.send(query(number, f"silent-{number}.answers.test"))
        sent["timeout"] += 1
    for number in range(SUPERSEDED):
        for kind in ("superseded", "timeout"):
            silent.send(query(number, f"silent-more-{number}.answers.test"))
            sent[kind] += 1
    for number in range(CLOSED):
        with connected(SERVER) as ends:
            ends.send(query(number, f"silent-{number}.answers.test"))
        sent["closed"] += 1
    for number in range(UNREACHABLE):
        with connected(NOBODY) as refused:
            refused.send(query(number, f"nobody-{number}.answers.test"))
            try:
                refused.recv(512)
            except ConnectionRefusedError:
                sent["unreachable"] += 1
    print(json.dumps(sent), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
