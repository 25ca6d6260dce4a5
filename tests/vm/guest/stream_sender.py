"""Sends queries over TCP in each form that programs use, over IPv4 and IPv6; prints as JSON what a server received.

Everything but dig(1) runs in this process. The server parses the stream independently of dnsprobe: what it received is
the truth to compare with.
"""

from __future__ import annotations

import errno
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dns_server import answer, question

FAMILIES = {"4": (socket.AF_INET, "127.0.0.1"), "6": (socket.AF_INET6, "::1"), "mapped": (socket.AF_INET6, "")}
MAPPED = "::ffff:127.0.0.1"
PORT = 53
#: The messages that dnsprobe reads of one write: one for each run of the program (MAX_TAIL_CALL_CNT tail calls).
PIPELINED = 34
COUNT = 7
OPENED = 3
#: No rule matches names below it.
UNWATCHED = "unwatched.invalid"

#: How often a socket did not take a whole write, by name.
AGAIN: Counter[str] = Counter()
#: Set while the server reads.
READING = threading.Event()


def message(name: str) -> bytes:
    """Return a query for the A record of a name, with an OPT record (RFC 6891), as resolvers send it."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    options = bytes.fromhex("00 0029 1000 00000000 0000")
    return bytes.fromhex("4242 0100 0001 0000 0000 0001") + labels + bytes.fromhex("00 0001 0001") + options


def frame(name: str) -> bytes:
    """Return a query in the form for TCP: RFC 1035, section 4.2.2."""
    query = message(name)
    return len(query).to_bytes(2, "big") + query


class Server(threading.Thread):
    """Answers queries over TCP and counts them by name."""

    latest: Server

    def __init__(self) -> None:
        super().__init__(daemon=True)
        Server.latest = self
        self.received: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.done: list[threading.Thread] = []
        self.listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 64)

    def run(self) -> None:
        """Serve each connection in a separate thread."""
        while True:
            thread = threading.Thread(target=self._serve, args=(self.listener.accept()[0],), daemon=True)
            self.done.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        data = b""
        with connection:
            while READING.wait() and (more := connection.recv(65536)):
                data += more
                while len(data) >= 2 and len(data) >= 2 + int.from_bytes(data[:2], "big"):
                    size = 2 + int.from_bytes(data[:2], "big")
                    query, data = data[2:size], data[size:]
                    name, qtype, end = question(query)
                    with self._lock:
                        self.received[name] += 1
                    response = answer(query, qtype, end)
                    connection.sendall(len(response).to_bytes(2, "big") + response)


def connect(family: str, port: int = PORT) -> socket.socket:
    """Connect to the server. Each write is a packet of its own (TCP_NODELAY)."""
    number, address = FAMILIES[family]
    sender = socket.socket(number, socket.SOCK_STREAM)
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sender.connect((address or MAPPED, port))
    return sender


def finish(sender: socket.socket) -> None:
    """Close the connection after the server has read everything."""
    sender.shutdown(socket.SHUT_WR)
    while sender.recv(65536):
        pass
    sender.close()


def each(family: str, pieces: Callable[[bytes], Sequence[bytes]], name: str) -> None:
    for _ in range(COUNT):
        sender = connect(family)
        for piece in pieces(frame(name)):
            sender.sendall(piece)
        finish(sender)


def whole(family: str, name: str) -> None:
    each(family, lambda octets: [octets], name)


def length_first(family: str, name: str) -> None:
    each(family, lambda octets: [octets[:2], octets[2:]], name)


def octet_by_octet(family: str, name: str) -> None:
    each(family, lambda octets: [octets[at : at + 1] for at in range(len(octets))], name)


def split(family: str, name: str) -> None:
    """Cut one query at each octet in turn, over one connection."""
    sender = connect(family)
    octets = frame(name)
    for cut in range(1, len(octets)):
        sender.sendall(octets[:cut])
        sender.sendall(octets[cut:])
    finish(sender)


def kept_open(family: str, name: str) -> None:
    sender = connect(family)
    for _ in range(COUNT):
        sender.sendall(frame(name))
    finish(sender)


def write(family: str, name: str) -> None:
    sender = connect(family)
    for _ in range(COUNT):
        os.write(sender.fileno(), frame(name))
        os.writev(sender.fileno(), [frame(name)[:2], frame(name)[2:14], frame(name)[14:]])
    finish(sender)


def vector(family: str, name: str) -> None:
    """Each octet is a piece of its own. dnsprobe reads up to 64 pieces."""
    sender = connect(family)
    octets = frame(name)
    for _ in range(COUNT):
        sender.sendmsg([octets[at : at + 1] for at in range(len(octets))])
    finish(sender)


def pipelined(family: str, name: str) -> None:
    sender = connect(family)
    sender.sendall(frame(name) * PIPELINED)
    sender.sendall((frame(name) * 3)[:-5])
    sender.sendall(frame(name)[-5:] + frame(name))
    finish(sender)


def written_again(family: str, name: str) -> None:
    """A full socket takes a write in part or not at all, and the rest is written again."""
    sender = narrow(family)
    sender.setblocking(False)
    READING.clear()
    for octets in [frame(name) * PIPELINED] * 10:
        left = octets
        while left:
            try:
                left = left[sender.send(left) :]
            except BlockingIOError:
                READING.set()
                drain(sender)
            AGAIN[name] += bool(left)
    sender.setblocking(True)
    finish(sender)


def given_up(family: str, name: str) -> None:
    """The program gives up a write of which a full socket took nothing, and writes others, as after a timeout."""
    sender = narrow(family)
    for number in range(5):
        fill(sender, frame(f"{'x' * (9 * number + 1)}.{UNWATCHED}"))
        AGAIN[name] += 1
        READING.set()
        for _ in range(3):
            sender.sendall(frame(name))
    finish(sender)


def fill(sender: socket.socket, octets: bytes) -> None:
    """Send until the socket takes nothing any more."""
    while True:
        READING.clear()
        sender.setblocking(False)
        try:
            rest = octets[sender.send(octets) :]
        except BlockingIOError:
            return
        finally:
            sender.setblocking(True)
        if rest:
            READING.set()
            sender.sendall(rest)


def narrow(family: str) -> socket.socket:
    """Connect with the smallest buffers that the kernel allows, so that a few writes fill them."""
    listener = Server.latest.listener
    room = listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sender = connect(family)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    # The kernel doubles the value (socket(7)).
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room // 2)
    return sender


def drain(sender: socket.socket) -> None:
    try:
        sender.recv(4096)
    except BlockingIOError:
        os.sched_yield()


def of_a_thread(family: str, name: str) -> None:
    thread = threading.Thread(target=whole, args=(family, name))
    thread.start()
    thread.join()


Step = Callable[[socket.socket, str], None]


def opened(family: str, *steps: Step) -> int:
    """Open connections with TCP Fast Open, and run all steps on each. All but the first have a cookie of the server.

    Returns the number of connections.
    """
    number, address = FAMILIES[family]
    subprocess.run(["ip", "tcp_metrics", "flush"], stdout=subprocess.DEVNULL, check=True)
    for _ in range(OPENED):
        sender = socket.socket(number, socket.SOCK_STREAM)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for step in steps:
            step(sender, address or MAPPED)
        finish(sender)
    return OPENED


def writes(octets: bytes) -> Step:
    """Write to an open connection."""
    return lambda sender, _: sender.sendall(octets)


def opens(octets: bytes, port: int = PORT) -> Step:
    """Open a connection with a write. It goes with the SYN if possible; otherwise the kernel delays it."""

    def step(sender: socket.socket, address: str) -> None:
        sent = sender.sendto(octets, socket.MSG_FASTOPEN, (address, port))
        if sent != len(octets):
            raise OSError(f"only {sent} of {len(octets)} octets were sent")

    return step


def opens_again(octets: bytes, counter: str, port: int = PORT) -> Step:
    """Open a connection without blocking. What could not go with the SYN is written again when the SYN is answered."""

    def step(sender: socket.socket, address: str) -> None:
        left = octets
        sender.setblocking(False)
        while left:
            try:
                left = left[sender.sendto(left, socket.MSG_FASTOPEN, (address, port)) :]
            except BlockingIOError:
                AGAIN[counter] += 1
            except OSError as error:
                if error.errno != errno.EISCONN:
                    raise
                left = left[sender.send(left) :]
            # shutdown(2) would end a connection that is not open yet.
            select.select([], [sender], [])
        sender.setblocking(True)

    return step


def narrows(sender: socket.socket, _address: str) -> None:
    """Allow so small segments that only a part of a query goes with the SYN."""
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)


def opens_later(port: int = PORT) -> Step:
    """Make connect(2) wait for the first write, as it does if there is a cookie."""

    def step(sender: socket.socket, address: str) -> None:
        tcp_fastopen_connect = 30  # include/uapi/linux/tcp.h
        sender.setsockopt(socket.IPPROTO_TCP, tcp_fastopen_connect, 1)
        sender.connect((address, port))

    return step


# Between connections with Fast Open, ordinary connections from the same addresses test that the two are not mixed up.


def fast(family: str, name: str) -> None:
    octets = frame(name)
    opened(family, opens(octets))
    whole(family, name)
    opened(family, opens(octets[:9]), writes(octets[9:] + octets * 2 + octets[:5]), writes(octets[5:]))
    opened(family, opens(octets * 20), writes(octets[:2]), writes(octets[2:]))


def fast_again(family: str, name: str) -> None:
    octets = frame(name) * 2
    opened(family, opens_again(octets, name))
    whole(family, name)
    opened(family, opens_again(octets, name), writes(octets))
    opened(family, narrows, opens_again(octets * 5, name), writes(octets[:2]), writes(octets[2:]))


def fast_later(family: str, name: str) -> None:
    octets = frame(name)
    opened(family, opens_later(), writes(octets))
    whole(family, name)
    opened(family, opens_later(), writes(octets[:9]), writes(octets[9:] + octets), writes(octets))


def mixed(family: str, name: str) -> None:
    """Connections of all kinds in random order, with queries cut anywhere. The seed is the same each time."""
    numbers = random.Random(name)
    number, address = FAMILIES[family]
    for _ in range(40):
        octets = frame(name) * numbers.randint(1, 6)
        cuts = sorted(numbers.sample(range(1, len(octets)), numbers.randint(0, 3)))
        first, *more = [octets[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
        plain: tuple[Step, ...] = (lambda sender, address: sender.connect((address, PORT)), writes(first))
        ways = (plain, (opens(first),), (opens_again(first, "mixed"),), (opens_later(), writes(first)))
        sender = socket.socket(number, socket.SOCK_STREAM)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for step in (*numbers.choice(ways), *map(writes, more)):
            step(sender, address or MAPPED)
        finish(sender)


def encrypted() -> int:
    """Open connections of DNS over TLS, some with TCP Fast Open; return their number."""
    port = 853
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 64)
    threading.Thread(target=drain_all, args=(listener,), daemon=True).start()
    hello = bytes([22, 3, 1]) + bytes(300)
    made = 0
    for family in "46":
        for _ in range(COUNT):
            sender = connect(family, port)
            sender.sendall(hello)
            sender.sendall(hello)
            finish(sender)
        made += COUNT
        for first in ((opens(hello, port),), (opens_again(hello, "dot", port),), (opens_later(port), writes(hello))):
            made += opened(family, *first, writes(hello))
    return made


def drain_all(listener: socket.socket) -> None:
    """Read all connections to their ends, one after the other."""
    while True:
        with listener.accept()[0] as connection:
            while connection.recv(65536):
                pass


FORMS = {
    "whole": whole,
    "length-first": length_first,
    "octets": octet_by_octet,
    "split": split,
    "keptopen": kept_open,
    "write": write,
    "vector": vector,
    "pipelined": pipelined,
    "again": written_again,
    "givenup": given_up,
    "thread": of_a_thread,
    "fast": fast,
    "fastagain": fast_again,
    "fastlater": fast_later,
    "mixed": mixed,
}
#: Forms that send some octets before the tracepoint of the kernel is hit.
OPENING = {"fast", "fastagain", "fastlater", "mixed"}
DIGS = {"dig": ["+tcp"], "digopen": ["+tcp", "+keepopen"]}


def rows(families: Sequence[str] = tuple(FAMILIES), *, opening: bool = True) -> Iterator[str]:
    """Yield the first labels of all queries: form and family. ``opening`` includes the forms in OPENING."""
    for form in FORMS:
        if form in OPENING and not opening:
            continue
        for family in families:
            yield f"{form}-{family}"
    for form in DIGS:
        for family in "46":
            yield f"{form}-{family}"


def main(suffix: str, *wanted: str) -> None:
    """Send queries for the names of some rows, or of all, below ``suffix``."""
    READING.set()
    # Enable TCP Fast Open for clients and servers in this network namespace.
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3", encoding="ascii")
    server = Server()
    server.start()
    for row in wanted or rows():
        form, _, family = row.rpartition("-")
        name = f"{row}.{suffix}"
        if form in DIGS:
            address = FAMILIES[family][1]
            command = ["dig", f"@{address}", *DIGS[form], *[name] * COUNT]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        else:
            FORMS[form](family, name)
    for thread in server.done:
        thread.join()
    received = {name: count for name, count in server.received.items() if not name.endswith(UNWATCHED)}
    result = {"received": received, "encrypted": encrypted(), "written_again": min(AGAIN.values(), default=0)}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
