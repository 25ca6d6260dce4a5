"""Asks a small DNS server over UDP and TCP, which answers some queries and not others.

It runs in a network namespace of its own. It prints what was sent, by what becomes of it, as JSON. After a line of
input, it answers what still waits, and prints how many queries that were. It ends after another line.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import BinaryIO

#: Of each family, the address of the server, and one where nobody listens.
ADDRESSES = {socket.AF_INET: ("127.0.0.1", "127.0.0.2"), socket.AF_INET6: ("fd00::1", "fd00::2")}
PORT = 53
RCODES = {"noerror": 0, "formerr": 1, "servfail": 2, "nxdomain": 3, "refused": 5}
#: How many queries of each kind are sent: see :func:`ask`.
QUERIES = {
    "noerror": 100,
    "wild": 50,
    "again": 200,
    "twice": 50,
    "nodata": 50,
    "nxdomain": 100,
    "servfail": 50,
    "refused": 50,
    "formerr": 20,
    "parts": 20,
    "options": 20,
}
#: Answers to a socket that waits for others: with another id, and with another question.
FORGED = 6
#: The same over TCP: see :func:`serve_connection`.
STREAM_QUERIES = {"stream": 20, "pieces": 3, "large": 5, "formerr": 3}
PIPELINED, STREAMS_CLOSED = 20, 10
#: Queries on one socket, more than the kernel side remembers with it: see :func:`ask_many`.
MANY = 30
#: Queries over TCP whose answers come in one segment. That is more than the kernel side reads of it.
CROWD = 200
#: Answers without a question that do not say which query they are about: see :func:`ask_without_question`.
VAGUE = 3
#: Answers that a server sends at once, and a client receives at once.
TOGETHER = 7
#: Socket options of Linux that the module socket does not name, and a flag of send(2).
SO_ZEROCOPY, UDP_SEGMENT, UDP_GRO, IPV6_DSTOPTS, MSG_ZEROCOPY = 60, 103, 104, 59, 0x4000000
#: For each family, the level and number of the option that asks for errors: IP_RECVERR of ip(7), IPV6_RECVERR.
RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
#: For each family, an option for all packets that changes nothing: its level and number, and four octets of padding in
#: an IPv4 header, or a header behind the IPv6 header.
IP_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1\1\1\1"),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_DSTOPTS, b"\0\0\1\4\0\0\0\0"),
}
#: Queries from a raw socket.
RAW = 2
SILENT, CLOSED, UNREACHABLE, SUPERSEDED = 100, 100, 50, 50


def question(name: str) -> bytes:
    """Return a question for the address of a name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return labels + struct.pack(">BHH", 0, 1, 1)


def query(number: int, name: str) -> bytes:
    """Return a query."""
    return struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + question(name)


def serve(server: socket.socket, silent: list[tuple[bytes, tuple[str, int]]]) -> None:
    """Answer as the first label of the name says. Keep what is not answered."""
    together: list[bytes] = []
    while True:
        message, client = server.recvfrom(512)
        kind = message[13 : 13 + message[12]].decode().partition("-")[0]
        if kind == "silent":
            silent.append((message, client))
        elif kind == "together":
            together.append(answer(message, kind))
            if len(together) == TOGETHER:
                size = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", len(together[0])))
                server.sendmsg([b"".join(together)], [size], 0, client)
                together.clear()
        elif kind == "options":
            level, number, padding = IP_OPTIONS[server.family]
            server.setsockopt(level, number, padding)
            server.sendto(answer(message, kind), client)
            server.setsockopt(level, number, b"")
        else:
            # Without a copy, the message is not in the linear part of its packet.
            flags = MSG_ZEROCOPY if kind == "parts" else 0
            for _ in range(2 if kind == "twice" else 1):
                server.sendto(answer(message, kind), flags, client)


def answer(message: bytes, kind: str) -> bytes:
    """Return the answer to a query. A server that cannot read a query may leave out its question."""
    if kind == "formerr":
        return message[:2] + struct.pack(">HHHHH", 0x8180 | RCODES[kind], 0, 0, 0, 0)
    records = 0 if kind == "nodata" or RCODES.get(kind) else 1
    head = message[:2] + struct.pack(">HHHHH", 0x8180 | RCODES.get(kind, 0), 1, records, 0, 0)
    # In upper case: the name of an answer matches in any case.
    return head + message[12:].upper() + records * struct.pack(">HHHIH4s", 0xC00C, 1, 1, 60, 4, bytes(4))


def framed(message: bytes) -> bytes:
    """Return a message with the length that is in front of it over TCP."""
    return struct.pack(">H", len(message)) + message


def received(stream: BinaryIO) -> bytes:
    """Receive a message over TCP; none if the other side closes the connection."""
    head = stream.read(2)
    return stream.read(int.from_bytes(head, "big")) if head else b""


def serve_connection(connection: socket.socket) -> None:
    """Answer over TCP as the first label of the name says: at once, octet by octet, or long, in parts."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = connection.makefile("rb")
    while message := received(stream):
        kind = message[13 : 13 + message[12]].decode().partition("-")[0]
        messages = [message]
        messages += [received(stream) for _ in range({"pipelined": PIPELINED, "crowd": CROWD}.get(kind, 1) - 1)]
        answers = [answer(message, kind) + bytes(3000 if kind == "large" else 0) for message in messages]
        octets = b"".join(map(framed, answers))
        step = {"pieces": 1, "large": 700}.get(kind, len(octets))
        if kind != "silent":
            for at in range(0, len(octets), step):
                connection.sendall(octets[at : at + step])


def accept(listener: socket.socket) -> None:
    """Serve all connections."""
    while True:
        threading.Thread(target=serve_connection, args=(listener.accept()[0],), daemon=True).start()


def send_apart(client: socket.socket, kind: str, times: int) -> None:
    """Send queries over TCP, each in a segment of its own."""
    for number in range(times):
        client.sendall(framed(query(number, name_of(kind, number))))
        while any(fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4))):
            time.sleep(0)


def ask_streams(family: socket.AddressFamily, address: str, sent: Counter[str]) -> None:
    """Send queries over TCP, and wait for their answers."""
    listener = socket.create_server((address, PORT), family=family)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    with socket.create_connection((address, PORT), timeout=30) as client, client.makefile("rb") as stream:
        for kind, times in STREAM_QUERIES.items():
            for number in range(times):
                client.sendall(framed(query(number, name_of(kind, number))))
                received(stream)
                sent[kind] += 1
        queries = (query(number, name_of("pipelined", number)) for number in range(PIPELINED))
        client.sendall(b"".join(map(framed, queries)))
        for _ in range(PIPELINED):
            received(stream)
            sent["pipelined"] += 1
    with socket.create_connection((address, PORT), timeout=30) as client, client.makefile("rb") as stream:
        send_apart(client, "crowd", CROWD)
        for _ in range(CROWD):
            received(stream)
            sent["crowd"] += 1
    with socket.create_connection((address, PORT), timeout=30) as client:
        send_apart(client, "silent-many", MANY)
        sent["closed"] += MANY
    for number in range(STREAMS_CLOSED):
        with socket.create_connection((address, PORT), timeout=30) as client:
            client.sendall(framed(query(number, name_of("silent", number))))
        sent["closed"] += 1


def ask_many(family: socket.AddressFamily, address: str, nobody: str, sent: Counter[str]) -> None:
    """Send many queries on a socket before it is closed, and on another one before its server goes away.

    No other query has their names: a further socket may be at the same address in memory.
    """
    with connected(family, address) as client:
        for number in range(MANY):
            client.send(query(number, name_of("silent-many", number)))
            sent["closed"] += 1
    with socket.socket(family, socket.SOCK_DGRAM) as server, connected(family, nobody) as client:
        server.bind((nobody, PORT))
        for number in range(MANY):
            client.send(query(number, name_of("silent-many", number)))
        server.close()
        client.send(query(MANY, name_of("silent-many", MANY)))
        try:
            client.recv(512)
        except ConnectionRefusedError:
            sent["unreachable"] += MANY + 1


def ask_without_question(family: socket.AddressFamily, server: socket.socket, nobody: str, sent: Counter[str]) -> None:
    """Get answers without a question: to one of two queries with the same id, from another server, with another id."""
    with socket.socket(family, socket.SOCK_DGRAM) as other, socket.socket(family, socket.SOCK_DGRAM) as client:
        other.bind((nobody, PORT))
        client.settimeout(30)
        address = server.getsockname()[:2]
        for name, number in (("silent-1", 1), ("silent-2", 1), ("silent-3", 2)):
            client.sendto(query(number, f"{name}.answers.test"), address)
        for sender, number in ((server, 1), (other, 2), (server, 3), (server, 2)):
            port = client.getsockname()[1]
            sender.sendto(answer(query(number, ""), "formerr"), (address[0], port))
            client.recv(512)
    sent["formerr"] += 1
    sent["closed"] += 2


def ask_with_errors(family: socket.AddressFamily, address: str, nobody: str, sent: Counter[str]) -> None:
    """Ask for errors, which say which datagram they are about: without a connection, and with one."""
    for is_connected in (False, True):
        with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as client:
            client.setsockopt(*RECVERR[family], 1)
            client.settimeout(30)
            server.bind((nobody, PORT))
            if is_connected:
                client.connect((nobody, PORT))
            client.sendto(query(1, name_of("silent-errors", 1)), (nobody if is_connected else address, PORT))
            server.close()
            for number in range(2, 3 if is_connected else 4):
                client.sendto(query(number, name_of("nobody-errors", number)), (nobody, PORT))
                try:
                    client.recv(512)
                except ConnectionRefusedError:
                    sent["unreachable"] += 1
        sent["closed"] += 1


def ask_from_raw_socket(address: str, sent: Counter[str]) -> None:
    """Send queries from a raw socket. The answers come to another one, which has the port."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.settimeout(30)
        other.bind((address, 0))
        for number in range(RAW):
            message = query(number, "noerror-raw.answers.test")
            raw.sendto(struct.pack(">HHHH", other.getsockname()[1], PORT, 8 + len(message), 0) + message, (address, 0))
            other.recv(512)
            sent["raw"] += 1


def connected(family: socket.AddressFamily, address: str) -> socket.socket:
    """Return a socket that is connected to a server."""
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.connect((address, PORT))
    client.settimeout(30)
    return client


def name_of(kind: str, number: int) -> str:
    """Return the name of a query."""
    if kind == "again":
        return "again.answers.test"
    # The kernel cannot decide whether the rule matches this one.
    return f"noerror-{number}.wild.test" if kind == "wild" else f"{kind}-{number}.answers.test"


def ask(family: socket.AddressFamily, sent: Counter[str]) -> Callable[[], int]:
    """Send queries, and wait for the answers of those that get one.

    Return what answers the others that still wait, and returns how many these are.
    """
    address, nobody = ADDRESSES[family]
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    server.bind((address, PORT))
    unanswered: list[tuple[bytes, tuple[str, int]]] = []
    threading.Thread(target=serve, args=(server, unanswered), daemon=True).start()
    client = connected(family, address)
    for kind, times in QUERIES.items():
        for number in range(times):
            client.send(query(number, name_of(kind, number)))
            for _ in range(2 if kind == "twice" else 1):
                client.recv(512)
            sent[kind] += 1
    client.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    for number in range(TOGETHER):
        client.send(query(number, name_of("together", number)))
    received = 0
    while received < TOGETHER:
        received += client.recv(65535).count(b"TOGETHER")
    sent["together"] += TOGETHER
    ask_streams(family, address, sent)
    ask_many(family, address, nobody, sent)
    ask_without_question(family, server, nobody, sent)
    ask_with_errors(family, address, nobody, sent)
    if family == socket.AF_INET:
        ask_from_raw_socket(address, sent)
    silent = connected(family, address)
    for number in range(SILENT):
        silent.send(query(number, f"silent-{number}.answers.test"))
        sent["timeout"] += 1
    for number in range(SUPERSEDED):
        for result in ("superseded", "timeout"):
            silent.send(query(number, f"silent-more-{number}.answers.test"))
            sent[result] += 1
    for number in range(FORGED // 2):
        server.sendto(
            answer(query(7000 + number, f"silent-more-{SUPERSEDED - 1}.answers.test"), ""), silent.getsockname()
        )
        server.sendto(answer(query(SUPERSEDED - 1, f"forged-{number}.answers.test"), ""), silent.getsockname())
    for number in range(CLOSED):
        with connected(family, address) as ends:
            ends.send(query(number, f"silent-{number}.answers.test"))
        sent["closed"] += 1
    for number in range(UNREACHABLE):
        with connected(family, nobody) as refused:
            refused.send(query(number, f"nobody-{number}.answers.test"))
            try:
                refused.recv(512)
            except ConnectionRefusedError:
                sent["unreachable"] += 1

    def answer_late() -> int:
        late = [(message, client) for message, client in unanswered if client == silent.getsockname()]
        for message, client in late:
            server.sendto(answer(message, "noerror"), client)
        return len(late)

    return answer_late


def main() -> None:
    """Ask over IPv4 and IPv6."""
    for address in ADDRESSES[socket.AF_INET6]:
        subprocess.run(["ip", "address", "add", address, "dev", "lo", "nodad"], check=True)
    sent: Counter[str] = Counter()
    late = [ask(family, sent) for family in ADDRESSES]
    print(json.dumps(sent), flush=True)
    sys.stdin.readline()
    print(sum(answer() for answer in late), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
