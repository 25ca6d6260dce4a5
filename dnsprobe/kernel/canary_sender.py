"""Sends canaries. Runs as a script, without the rest of dnsprobe, so that it starts fast.

Each line of standard input has a way to send, an address, a port and the DNS message in hexadecimal. Each gets a line
on standard output: empty if the message was sent, otherwise the reason why it could not be sent.
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

#: Where a message is cut: inside the DNS header, or inside the name behind it. Octets.
CUTS = {"cut-header": 7, "cut-name": 20}
#: More than a connection over loopback takes.
TIMEOUT_SECONDS = 5

in_own_namespace = False
accepted: list[socket.socket] = []


def send(way: str, address: str, port: int, message: bytes) -> None:
    """Send one message in one of the ways that programs use."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if way in {"whole", "split"}:
        send_stream(family, way, (address, port), message)
        return
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        if way in CUTS:
            # The kernel puts what follows the first part into other pages. So the question lies in two places.
            sender.connect((address, port))
            sender.send(message[: CUTS[way]], socket.MSG_MORE)
            sender.send(message[CUTS[way] :])
        elif way == "connected":
            sender.connect((address, port))
            sender.send(message)
        else:
            sender.sendto(message, (address, port))


def send_stream(family: int, way: str, server: tuple[str, int], message: bytes) -> None:
    """Send over TCP, in one write, or in two: the first ends inside the DNS header."""
    octets = len(message).to_bytes(2, "big") + message
    with connect_to_self(family, server) if in_own_namespace else connect(server) as sender:
        if way == "split":
            sender.sendall(octets[:7])
            octets = octets[7:]
        sender.sendall(octets)


def connect(server: tuple[str, int]) -> socket.socket:
    """Connect to the socket of the daemon."""
    return socket.create_connection(server, TIMEOUT_SECONDS)


def connect_to_self(family: int, server: tuple[str, int]) -> socket.socket:
    """Connect in the namespace of this process, where the daemon does not listen."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(server)
        listener.listen()
        sender = connect(server)
        accepted.append(listener.accept()[0])
    return sender


def enter_own_namespace() -> None:
    """Move to a new network namespace. IPv6 is on there even if it is off here, so its loopback has ``::1``."""
    libc = ctypes.CDLL(None)
    # Without privileges, the network namespace needs a user namespace that owns it.
    if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def has_address(address: str) -> bool:
    """Return whether this namespace has an IPv6 address."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as test:
            test.bind((address, 0))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    for line in sys.stdin:
        way, address, port, message = line.split()
        try:
            if ":" in address and not has_address(address):
                enter_own_namespace()
                in_own_namespace = True
            send(way, address, int(port), bytes.fromhex(message))
        except OSError as error:
            print(error.strerror)
        else:
            print()
