"""System calls and options that send a datagram: each function takes a connected socket and the message."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

# include/uapi/linux/udp.h, include/uapi/asm-generic/socket.h, include/linux/socket.h
UDP_CORK, UDP_SEGMENT = 1, 103
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000

Way = Callable[[socket.socket, bytes], object]


def at_once(sender: socket.socket, query: bytes) -> None:
    sender.send(query)


def corked(sender: socket.socket, query: bytes) -> None:
    sender.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 1)
    for part in (query[:12], query[12:20], query[20:]):
        sender.send(part)
    sender.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 0)


def more(at: int) -> Way:
    """Return a way that sends in two parts, cut at an octet (MSG_MORE)."""

    def way(sender: socket.socket, query: bytes) -> None:
        sender.send(query[:at], socket.MSG_MORE)
        sender.send(query[at:])

    return way


def spliced(sender: socket.socket, query: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, query)
    assert os.splice(reader, sender.fileno(), len(query)) == len(query)
    os.close(reader)
    os.close(writer)


def from_file(sender: socket.socket, query: bytes) -> None:
    file = os.memfd_create("query")
    os.write(file, query)
    assert os.sendfile(sender.fileno(), file, 0, len(query)) == len(query)
    os.close(file)


def zerocopy(sender: socket.socket, query: bytes) -> None:
    sender.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    sender.send(query, MSG_ZEROCOPY)


def segmented(sender: socket.socket, *queries: bytes) -> None:
    """Send queries of the same length in one packet."""
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(queries[0]))
    sender.send(b"".join(queries))
