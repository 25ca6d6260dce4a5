"""A DNS server that answers all queries on 127.0.0.1 and ::1 with that address. SIGTERM makes it print its counts."""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
from collections import Counter

A, AAAA = 1, 28
ADDRESSES = {A: bytes([127, 0, 0, 1]), AAAA: bytes(15) + b"\1"}


def question(message: bytes) -> tuple[str, int, int]:
    """Return name, type and end of the question (RFC 1035, section 4.1.2)."""
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode("ascii", "backslashreplace").lower())
        at += message[at] + 1
    return ".".join(labels), int.from_bytes(message[at + 1 : at + 3], "big"), at + 5


def answer(message: bytes, qtype: int, end: int) -> bytes:
    """Return the response: flags QR, RD and RA; the name as a pointer to the question."""
    data = ADDRESSES.get(qtype)
    record = struct.pack("!HHHIH", 0xC00C, qtype, 1, 0, len(data)) + data if data else b""
    return message[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(data), 0, 0) + message[12:end] + record


def serve() -> None:
    """Serve until SIGTERM."""
    asked: Counter[tuple[str, int]] = Counter()
    sockets = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.bind((address, 53))
        sockets.append(receiver)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    print("ready", flush=True)
    # After SIGTERM, it still reads what was sent before.
    while (ready := select.select(sockets, [], [], 0.5)[0]) or not stopping:
        for receiver in ready:
            message, client = receiver.recvfrom(65535)
            name, qtype, end = question(message)
            asked[name, qtype] += 1
            receiver.sendto(answer(message, qtype, end), client)
    print(json.dumps([[name, qtype, count] for (name, qtype), count in asked.items()]))


if __name__ == "__main__":
    serve()
