"""Several processes that ask a small DNS server, which answers after known delays. Runs in its own network namespace.

Each process waits for a line of input, asks, prints what it asked and how long its answers took, and ends after another
line. Behind them, the server prints how long it had each query, as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "vm/guest"))
from asker import PORT, answer, connected, query

A, CNAME, AAAA = 1, 5, 28
SERVER = "127.0.0.1"
#: What each process asks: the kind of the name, the type, and how often. A number at the end of the kind is the delay
#: of the answer in milliseconds. ``silent`` gets no answer. Of ``closed``, the socket is closed before there is one.
#: For the kinds of ``ask-four``, see :func:`special`.
PLANS = {
    "ask-one": [("noerror", A, 20), ("nxdomain", AAAA, 15), ("noerror-2", A, 3)],
    "ask-two": [("noerror", AAAA, 5), ("nodata", AAAA, 10), ("servfail", A, 4), ("noerror-30", A, 3)],
    "ask-three": [("refused", A, 6), ("silent", A, 7), ("closed", AAAA, 8), ("noerror-120", AAAA, 2)],
    "ask-four": [
        *(("badvers", A, 2), ("badcookie", A, 3), ("yxdomain", A, 4), ("truncated", A, 5), ("edns", A, 6)),
        *(("chain", AAAA, 7), ("dangling", AAAA, 8), ("long", AAAA, 9), ("spelled", AAAA, 10), ("alias", CNAME, 11)),
    ],
    "ask-tcp": [("noerror", A, 6), ("nxdomain", AAAA, 5), ("dangling", AAAA, 4), ("noerror-7", A, 2)],
}


def transport_of(name: str) -> str:
    """Return the transport that a process uses."""
    return "tcp" if name == "ask-tcp" else "udp"


def tree() -> list[str]:
    """Return the names of the ancestors of this process and its own, from below pid 1."""
    names: list[str] = []
    pid = os.getpid()
    while pid > 1:
        names.append(Path(f"/proc/{pid}/comm").read_text("utf-8").rstrip("\n"))
        pid = int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])
    return names[::-1]


def ask(client: socket.socket, plan: list[tuple[str, int, int]]) -> list[int]:
    """Send queries, and wait for answers. Return how long each took for the process, in nanoseconds."""
    took = []
    for kind, qtype, times in plan:
        for number in range(times):
            message = query(number, f"{kind}-x{number}.answers.test")[:-4] + qtype.to_bytes(2, "big") + b"\0\1"
            if kind == "closed":
                with connected(socket.AF_INET, SERVER) as ends:
                    ends.send(message)
                continue
            sent = time.monotonic_ns()
            if client.type == socket.SOCK_DGRAM:
                client.send(message)
            else:
                client.sendall(len(message).to_bytes(2, "big") + message)
            if kind != "silent":
                received(client)
                took.append(time.monotonic_ns() - sent)
    return took


def received(peer: socket.socket) -> bytes:
    """Return the next message that a peer sends, nothing if it ends the connection."""
    if peer.type == socket.SOCK_DGRAM:
        return peer.recv(512)
    length = peer.recv(2, socket.MSG_WAITALL)
    return peer.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL) if length else b""


def special(message: bytes, kind: str) -> bytes | None:
    """Return an answer that :func:`asker.answer` does not make, None if it makes it.

    The rcode is in the header, or also in an OPT record behind it. Records are CNAMEs that lead to a name with an
    address, or to one without. A name in full (``spelled``) or a long chain is not followed.
    """
    question = message[12:]
    opt, extended = (b"\0" + struct.pack(">HHBBHH", 41, 1232, upper, 0, 0, 0) for upper in (0, 1))
    cname = struct.pack(">HHHIH", 0xC00C, CNAME, 1, 60, 2) + b"\xc0\x0c"
    address = struct.pack(">HHHIH16s", 0xC00C, AAAA, 1, 60, 16, bytes(16))
    answers: dict[str, tuple[int, list[bytes], list[bytes]]] = {
        "badvers": (0x8180, [], [extended]),
        "badcookie": (0x8187, [], [extended]),
        "yxdomain": (0x8186, [], []),
        "truncated": (0x8380, [], [opt]),
        "edns": (0x8180, [], [opt]),
        "chain": (0x8180, [cname, cname, address], [opt]),
        "dangling": (0x8180, [cname, cname], [opt]),
        "long": (0x8180, [cname] * 9, []),
        "spelled": (0x8180, [question[:-4] + cname[2:]], []),
        "alias": (0x8180, [cname], []),
    }
    if kind not in answers:
        return None
    flags, records, others = answers[kind]
    head = message[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, len(others))
    return head + question + b"".join([*records, *others])


def reply(message: bytes, came: int, had: list[int]) -> bytes | None:
    """Return the answer to a query that came at a time, None if it gets none. Wait as long as its name asks for.

    Notes how long the server had the query.
    """
    kind, _, rest = message[13 : 13 + message[12]].decode().partition("-")
    if kind in ("silent", "closed"):
        return None
    delay = rest.partition("-")[0]
    if delay.isdecimal():
        time.sleep(int(delay) / 1000)
    made = special(message, kind) or answer(message, kind)
    had.append(time.monotonic_ns() - came)
    return made


def serve(server: socket.socket, had: list[int]) -> None:
    """Answer queries over UDP."""
    while True:
        message, client = server.recvfrom(512)
        made = reply(message, time.monotonic_ns(), had)
        if made:
            server.sendto(made, client)


def serve_tcp(listener: socket.socket, had: list[int]) -> None:
    """Answer the queries of one client over TCP."""
    client, _ = listener.accept()
    while message := received(client):
        made = reply(message, time.monotonic_ns(), had)
        if made:
            client.sendall(len(made).to_bytes(2, "big") + made)


def run(name: str, go: int, end: int) -> None:
    """Ask as one of the processes. It begins and ends when there is something to read."""
    Path("/proc/self/comm").write_text(name, "utf-8")
    os.read(go, 1)
    # It stays open until the process ends: what nobody answers is not `closed`.
    is_tcp = transport_of(name) == "tcp"
    client = socket.create_connection((SERVER, PORT), 30) if is_tcp else connected(socket.AF_INET, SERVER)
    took = ask(client, PLANS[name])
    # In one write: others write to the same pipe.
    os.write(1, json.dumps({"name": name, "tree": tree(), "took": took}).encode() + b"\n")
    os.read(end, 1)
    os._exit(0)


def main() -> None:
    """Start the server and the processes."""
    go, end = os.pipe(), os.pipe()
    children = []
    for name in PLANS:
        if not (pid := os.fork()):
            run(name, go[0], end[0])
        children.append(pid)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((SERVER, PORT))
    listener = socket.create_server((SERVER, PORT))
    had: dict[str, list[int]] = {"udp": [], "tcp": []}
    threading.Thread(target=serve, args=(server, had["udp"]), daemon=True).start()
    threading.Thread(target=serve_tcp, args=(listener, had["tcp"]), daemon=True).start()
    for pipe in (go, end):
        sys.stdin.readline()
        os.write(pipe[1], b"\n" * len(PLANS))
    for pid in children:
        os.waitpid(pid, 0)
    print(json.dumps(had), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
