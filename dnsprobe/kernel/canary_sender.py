"""Sends canaries, and the answers to them. Runs as a script, without the rest of dnsprobe, so that it starts fast.

Each line of standard input has a port, a way to send, an address, the DNS message and the answer to it, both in
hexadecimal. Each gets a line on standard output: empty if the message was sent and its answer came, otherwise the
reason why not.

The messages are sent in a network namespace of this process alone. No other process can connect to a listener there,
take a port, or fill a queue. If the kernel refuses such a namespace, they are sent in the present one, provided that
the daemon holds the port there: then the command line has the word "held", and behind it the descriptors of its
sockets, from which answers are sent.
"""

import ctypes
import fcntl
import os
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
has_own_namespace = False


def send(way: str, address: str, port: int, message: bytes, answer: bytes) -> None:
    """Send one message in one of the ways that programs use."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if way in {"whole", "split", "answered-stream"}:
        send_stream(family, way, (address, port), message, answer)
        return
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(TIMEOUT_SECONDS)
        if way in CUTS:
            # The kernel puts what follows the first part into other pages. So the question lies in two places.
            sender.connect((address, port))
            sender.send(message[: CUTS[way]], socket.MSG_MORE)
            sender.send(message[CUTS[way] :])
        elif way == "connected":
            sender.connect((address, port))
            sender.send(message)
        elif way == "answered":
            with open_responder(family, (address, port)) as responder:
                sender.connect((address, port))
                sender.send(message)
                responder.sendto(answer, sender.getsockname())
                expect(sender, len(answer))
        elif way == "refused" and not has_own_namespace:
            raise OSError("the port is held in this network namespace")
        elif way == "refused":
            sender.connect((address, port))
            sender.send(message)
            expect_refusal(sender)
        else:
            sender.sendto(message, (address, port))


def open_responder(family: int, server: tuple[str, int]) -> socket.socket:
    """Return a socket from which to send answers. It need not read the queries."""
    if not has_own_namespace:
        for held in map(int, sys.argv[2:]):
            with socket.socket(fileno=os.dup(held)) as found:
                if found.family == family:
                    return found.dup()
    responder = socket.socket(family, socket.SOCK_DGRAM)
    responder.bind(server)
    return responder


def expect(sender: socket.socket, missing: int) -> None:
    """Wait until an answer of this many octets has come; OSError if it does not come."""
    try:
        while missing > 0:
            octets = sender.recv(missing)
            if not octets:
                raise OSError("the connection was closed before its answer came")
            missing -= len(octets)
    except TimeoutError:
        raise OSError("its answer did not come") from None


def expect_refusal(sender: socket.socket) -> None:
    """Wait until the error has come back that there is no server; OSError if it does not come."""
    try:
        sender.recv(1)
    except ConnectionRefusedError:
        return
    except TimeoutError:
        pass
    raise OSError("no error came back")


def send_stream(family: int, way: str, server: tuple[str, int], message: bytes, answer: bytes) -> None:
    """Send over TCP, in one write, or in two: the first ends inside the DNS header."""
    octets = len(message).to_bytes(2, "big") + message
    with connect_to_self(family, server) as sender:
        if way == "split":
            sender.sendall(octets[:7])
            octets = octets[7:]
        sender.sendall(octets)
        if way == "answered-stream":
            accepted[-1].sendall(len(answer).to_bytes(2, "big") + answer)
            expect(sender, 2 + len(answer))


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
    has_own_namespace = enter_own_namespace()
    may_send = has_own_namespace or "held" in sys.argv
    for line in sys.stdin:
        port, way, address, message, answer = line.split()
        try:
            if may_send:
                send(way, address, int(port), bytes.fromhex(message), bytes.fromhex(answer.strip("-")))
            print("" if may_send else "no network namespace of its own, and other programs hold all ports")
        except OSError as error:
            # If the time ran out, there is no strerror.
            print(error.strerror or error)
