"""Sends canaries. Runs as a script, without the rest of dnsprobe, so that it starts fast.

Each line of standard input has a way to send, an address, a port and the DNS message in hexadecimal. Each gets a line
on standard output: empty if the message was sent, otherwise the reason why it could not be sent.

The messages are sent in a network namespace of this process alone. No other process can connect to a listener there,
take a port, or fill a queue. If the kernel refuses such a namespace, they are sent in the present one, provided that
the daemon holds the port there: then the command line has the word "held".
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
TIMEOUT_SECONDS = 2
#: More connections than another process can open while this one calls listen(2) and connect(2).
BACKLOG = 4096

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
    with connect_to_self(family, server) as sender:
        if way == "split":
            sender.sendall(octets[:7])
            octets = octets[7:]
        sender.sendall(octets)


def connect_to_self(family: int, server: tuple[str, int]) -> socket.socket:
    """Connect to a listener that exists only until its own connection is accepted."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(server)
        listener.settimeout(TIMEOUT_SECONDS)
        listener.listen(BACKLOG)
        sender = socket.create_connection(server, TIMEOUT_SECONDS)
        while True:
            connection, peer = listener.accept()
            if peer[:2] == sender.getsockname()[:2]:
                accepted.append(connection)
                return sender
            # In the namespace of the host, other processes may connect as well.
            connection.close()


def enter_own_namespace() -> bool:
    """Move to a new network namespace, whose loopback has 127.0.0.1 and ::1. Return whether the kernel allows that."""
    libc = ctypes.CDLL(None)
    # Without privileges, the network namespace needs a user namespace that owns it.
    if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
    return True


if __name__ == "__main__":
    may_send = enter_own_namespace() or "held" in sys.argv
    for line in sys.stdin:
        way, address, port, message = line.split()
        try:
            if may_send:
                send(way, address, int(port), bytes.fromhex(message))
            print("" if may_send else "no network namespace of its own, and other programs hold all ports")
        except OSError as error:
            # If the time ran out, there is no strerror.
            print(error.strerror or error)
