"""Sends canaries: run by itself, without the rest of dnsprobe, so that it starts fast.

Each line of standard input is a way to send, an address, a port and the DNS message in hexadecimal. For each there is a
line of standard output: empty, or why it could not be sent.
"""

import ctypes
import fcntl
import socket
import struct
import sys

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

#: More than a connection over loopback takes.
SECONDS = 5

own_namespace = False
accepted: list[socket.socket] = []


def send(way: str, address: str, port: int, message: bytes) -> None:
    """Send one message in one of the ways that programs use."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if way in {"whole", "split"}:
        send_stream(family, way, (address, port), message)
        return
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        if way == "connected":
            sender.connect((address, port))
            sender.send(message)
        else:
            sender.sendto(message, (address, port))


def send_stream(family: int, way: str, server: tuple[str, int], message: bytes) -> None:
    """Send over TCP, in one write or in two that cut the header."""
    octets = len(message).to_bytes(2, "big") + message
    with socket.create_connection(server, SECONDS) if not own_namespace else connect_to_self(family, server) as sender:
        if way == "split":
            sender.sendall(octets[:7])
            octets = octets[7:]
        sender.sendall(octets)


def connect_to_self(family: int, server: tuple[str, int]) -> socket.socket:
    """Connect in a namespace where nobody else listens."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(server)
        listener.listen()
        sender = socket.create_connection(server, SECONDS)
        accepted.append(listener.accept()[0])
    return sender


def to_own_namespace() -> None:
    """Go where loopback has all its addresses: a new network namespace does not inherit that IPv6 is off."""
    libc = ctypes.CDLL(None)
    # Without privileges it takes a user namespace to make one, and to own what is in it.
    if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def has_address(address: str) -> bool:
    """Tell whether this namespace has an address."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as test:
            test.bind((address, 0))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    for line in sys.stdin:
        what, where, number, octets = line.split()
        try:
            if ":" in where and not has_address(where):
                to_own_namespace()
                own_namespace = True
            send(what, where, int(number), bytes.fromhex(octets))
        except OSError as error:
            print(error.strerror)
        else:
            print()
