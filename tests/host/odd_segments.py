"""A TCP peer in user space, which sends answers in odd segments. Runs in a network namespace of its own.

Each scene has a connection. Its queries are for names below a domain of the scene. Prints how many queries have which
result, as JSON, and waits for a line of input.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

SERVER, HERE, PORT = "198.51.100.53", "198.51.100.1", 53
#: include/uapi/linux/if_tun.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_IP4 = struct.Struct("!BBHHHBBH4s4s")
_TCP = struct.Struct("!HHIIBBHHH")
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
#: Queries of a scene, and the response codes of their answers, in turns.
QUERIES, RCODES = 20, {"SERVFAIL": 2, "NXDOMAIN": 3, "REFUSED": 5}
_PATIENCE = 30.0


def _checksum(octets: bytes) -> int:
    """Return the checksum of RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(octets) + 1) // 2}H", octets + bytes(len(octets) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def rcode_of(number: int) -> str:
    """Return the response code of the answer to a query."""
    return list(RCODES)[number % len(RCODES)]


def query(scene: str, number: int) -> bytes:
    """Return a query, with its length in front."""
    labels = (f"n{number}", scene, "test")
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels)
    message = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + name + b"\0\0\1\0\1"
    return struct.pack("!H", len(message)) + message


def answer(scene: str, number: int, more: int = 0, rcode: int | None = None) -> bytes:
    """Return the answer to a query, with its length in front, and octets behind it."""
    asked = query(scene, number)[2:]
    flags = 0x8180 | (RCODES[rcode_of(number)] if rcode is None else rcode)
    message = asked[:2] + struct.pack("!H", flags) + asked[4:] + bytes(more)
    return struct.pack("!H", len(message)) + message


@dataclass
class Peer:
    """The server of one connection: what the kernel is at the other end."""

    device: int
    port: int = 0
    sequence: int = 1000
    expected: int = 0
    asked: int = 0

    def send(self, offset: int, octets: bytes = b"", flags: int = ACK | PSH, ahead: int = 0) -> None:
        """Send octets of the stream from an offset on. ``ahead`` moves the sequence number only."""
        source, target = socket.inet_aton(SERVER), socket.inet_aton(HERE)
        sequence = self.sequence + offset + ahead & 0xFFFFFFFF
        head = _TCP.pack(PORT, self.port, sequence, self.expected, 5 << 4, flags, 65535, 0, 0)
        pseudo = source + target + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(head) + len(octets))
        head = head[:16] + struct.pack("!H", _checksum(pseudo + head + octets)) + head[18:]
        size = _IP4.size + len(head) + len(octets)
        ip = _IP4.pack(0x45, 0, size, 0, 0, 64, socket.IPPROTO_TCP, 0, source, target)
        ip = ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:]
        os.write(self.device, ip + head + octets)

    def receive(self, size: int) -> None:
        """Open the connection, and receive octets; acknowledge them."""
        until = time.monotonic() + _PATIENCE
        while self.asked < size:
            if not select.select([self.device], [], [], until - time.monotonic())[0]:
                raise TimeoutError("the client sent nothing")
            packet = os.read(self.device, 2048)
            if packet[0] != 0x45 or packet[9] != socket.IPPROTO_TCP:
                continue
            source, _target, sequence, _ack, offset, flags, *_rest = _TCP.unpack_from(packet, 20)
            octets = packet[20 + (offset >> 4) * 4 :]
            if flags & SYN:
                self.port, self.expected = source, sequence + 1 & 0xFFFFFFFF
                self.send(0, flags=SYN | ACK)
                self.sequence += 1
            elif source == self.port and sequence == self.expected and octets:
                self.expected = sequence + len(octets) & 0xFFFFFFFF
                self.asked += len(octets)
                self.send(0, flags=ACK)


Scene = Callable[[Peer, str, random.Random], int]


def _pieces(whole: bytes, size: int) -> list[tuple[int, bytes]]:
    return [(at, whole[at : at + size]) for at in range(0, len(whole), size)]


def _all(scene: str) -> bytes:
    return b"".join(answer(scene, number) for number in range(QUERIES))


def octets(peer: Peer, scene: str, _rng: random.Random) -> int:
    """Send 64 KiB in single octets: the first answer is as long as can be."""
    whole = answer(scene, 0, 65535 - len(answer(scene, 0)) + 2)
    whole += b"".join(answer(scene, number) for number in range(1, QUERIES))
    for at, piece in _pieces(whole, 1):
        peer.send(at, piece)
    return len(whole)


def repeated(peer: Peer, scene: str, _rng: random.Random) -> int:
    """Send each segment three times, the last two with other content."""
    whole = _all(scene)
    for at, piece in _pieces(whole, 70):
        peer.send(at, piece)
        for _ in range(2):
            peer.send(at, b"\xff" * len(piece))
    return len(whole)


def overlapping(peer: Peer, scene: str, _rng: random.Random) -> int:
    """Send with each segment the octets before it, with other content."""
    whole = _all(scene)
    for at, piece in _pieces(whole, 50):
        front = min(at, 30)
        peer.send(at - front, b"\xff" * front + piece)
    return len(whole)


def swapped(peer: Peer, scene: str, _rng: random.Random) -> int:
    """Send one answer in each segment, two of them out of order."""
    at, places = 0, []
    for number in range(QUERIES):
        places.append((at, answer(scene, number)))
        at += len(places[-1][1])
    for first in range(0, QUERIES, 2):
        for place, octets_ in reversed(places[first : first + 2]):
            peer.send(place, octets_)
    return at


def shuffled(peer: Peer, scene: str, rng: random.Random) -> int:
    """Send segments that messages do not begin with, in any order."""
    whole = _all(scene)
    pieces = _pieces(whole, 70)
    rng.shuffle(pieces)
    for at, piece in pieces:
        peer.send(at, piece)
    return len(whole)


def lossy(peer: Peer, scene: str, rng: random.Random) -> int:
    """Lose half of the segments, and reset the connection."""
    pieces = _pieces(_all(scene), 70)
    there = 0
    for number, (at, piece) in enumerate(pieces):
        if rng.random() < 0.5:
            peer.send(at, piece)
            there = there if there < number else number + 1
    peer.send(70 * there if there < len(pieces) else len(_all(scene)), flags=RST | ACK)
    return -1


def reset(peer: Peer, scene: str, _rng: random.Random) -> int:
    """Answer half of the queries, and reset the connection."""
    whole = b"".join(answer(scene, number) for number in range(QUERIES // 2))
    peer.send(0, whole)
    peer.send(len(whole), flags=RST | ACK)
    return -1


def forged(peer: Peer, scene: str, _rng: random.Random) -> int:
    """Send resets and answers outside of the window, and segments that open the connection, between the answers."""
    whole = _all(scene)
    lies = b"".join(answer(scene, number, rcode=0) for number in range(QUERIES))
    for at, piece in _pieces(whole, 90):
        for flags in (ACK | PSH, RST, RST | ACK, SYN, SYN | ACK):
            peer.send(at, b"" if flags & RST else lies, flags, 1 << 30)
        peer.send(at, piece)
    return len(whole)


SCENES: dict[str, Scene] = {
    one.__name__: one for one in (octets, repeated, overlapping, swapped, shuffled, lossy, reset, forged)
}


def _read(client: socket.socket, found: list[int]) -> None:
    try:
        while got := client.recv(1 << 16):
            found.append(len(got))
    except OSError:
        pass


def play(device: int, name: str) -> socket.socket:
    """Play a scene, and return its socket, which stays open."""
    peer = Peer(device)
    asked = [query(name, number) for number in range(QUERIES)]
    client = socket.socket()
    client.settimeout(_PATIENCE)
    server = threading.Thread(target=peer.receive, args=(sum(map(len, asked)),))
    server.start()
    client.connect((SERVER, PORT))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(b"".join(asked))
    server.join()
    found: list[int] = []
    reader = threading.Thread(target=_read, args=(client, found), daemon=True)
    reader.start()
    size = SCENES[name](peer, name, random.Random(1))
    until = time.monotonic() + _PATIENCE
    while (sum(found) < size if size >= 0 else reader.is_alive()) and time.monotonic() < until:
        time.sleep(0.01)
    if size >= 0 and sum(found) != size:
        raise TimeoutError(f"{name}: the client received {sum(found)} of {size} octets")
    return client


def main() -> None:
    """Play all scenes."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"odd0", _IFF_TUN | _IFF_NO_PI))
    subprocess.run(["ip", "address", "add", f"{HERE}/24", "dev", "odd0"], check=True)
    subprocess.run(["ip", "link", "set", "odd0", "up"], check=True)
    kept = [play(device, name) for name in SCENES]
    print(json.dumps(dict.fromkeys(SCENES, QUERIES)), flush=True)
    sys.stdin.readline()
    for one in kept:
        one.close()


if __name__ == "__main__":
    main()
