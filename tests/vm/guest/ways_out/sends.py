"""Situations: the system calls and options by which a program sends a query over UDP."""

from __future__ import annotations

import ctypes
import socket
import struct
import subprocess
from functools import partial

from ways_out import datagrams
from ways_out.place import FAR4, FAR6, Absent, Place, message, padding, send_to, sender_to


def _ask_both(place: Place, way: datagrams.Way, behind: bytes = b"") -> None:
    """Send queries in one way over IPv4 and IPv6 to the other end of a cable, and over loopback."""
    far = place.receiver(place.cable())
    near = place.receiver(place.net)
    for number, (server, receiver) in enumerate(
        ((FAR4, far), (FAR6, far), ("127.0.0.1", near), ("::1", near)),
    ):
        names = place.names(2, f"s{number}")

        def ask(server: str = server, names: list[str] = names) -> None:
            for name in names:
                with sender_to(server) as sender:
                    way(sender, message(name, behind))

        place.right(*names, server=server)
        place.ask(ask)
        receiver.over_udp(len(names))


def plain(place: Place) -> None:
    far = place.receiver(place.cable())
    for tag, server in (("four", FAR4), ("six", FAR6)):
        names = place.names(3, tag)
        place.right(*names, server=server)
        place.ask(partial(send_to, server, *names))
        far.over_udp(3)


def connected(place: Place) -> None:
    _ask_both(place, datagrams.at_once)


def mapped(place: Place) -> None:
    far = place.receiver(place.cable())
    names = place.names(3)
    place.right(*names)
    place.ask(lambda: send_to(f"::ffff:{FAR4}", *names))
    far.over_udp(3)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint32))


def sendmmsg(place: Place) -> None:
    far = place.receiver(place.cable())
    for tag, server in (("four", FAR4), ("six", FAR6)):
        names = place.names(5, tag)

        def ask(server: str = server, names: list[str] = names) -> None:
            queries = [message(name) for name in names]
            vectors = [_Iovec(query, len(query)) for query in queries]
            batch = (_Mmsghdr * len(names))(
                *(_Mmsghdr(_Msghdr(iov=ctypes.pointer(vector), iovlen=1)) for vector in vectors)
            )
            with sender_to(server) as sender:
                assert ctypes.CDLL(None).sendmmsg(sender.fileno(), batch, len(names), 0) == len(names)

        place.right(*names, server=server)
        place.ask(ask)
        far.over_udp(len(names))


def _uring(place: Place, way: str) -> None:
    near = place.receiver(place.net)
    for family, server in (("4", "127.0.0.1"), ("6", "::1")):
        (name,) = place.names(1, f"s{family}")
        with place.net.entered():
            command = [str(place.sender), way, family, name, "3", "asker"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Absent(done.stderr)  # io_uring may be turned off: the sysctl kernel.io_uring_disabled
        place.right(name, server=server, count=3)
        near.over_udp(3)


def uring(place: Place) -> None:
    _uring(place, "uring")


def uring_worker(place: Place) -> None:
    _uring(place, "uringasync")


def corked(place: Place) -> None:
    _ask_both(place, datagrams.corked)


def more_behind_header(place: Place) -> None:
    _ask_both(place, datagrams.more(12))


def more_behind_question(place: Place) -> None:
    behind = padding(8)
    _ask_both(place, datagrams.more(-len(behind)), behind)


def spliced(place: Place) -> None:
    _ask_both(place, datagrams.spliced)


def sendfile(place: Place) -> None:
    _ask_both(place, datagrams.from_file)


def zerocopy(place: Place) -> None:
    _ask_both(place, datagrams.zerocopy)


def zerocopy_padded(place: Place) -> None:
    _ask_both(place, datagrams.zerocopy, padding(1000))


def _segmented(place: Place, count: int) -> None:
    far = place.receiver(place.cable())
    for tag, server in (("four", FAR4), ("six", FAR6)):
        names = place.names(count, tag)

        def ask(server: str = server, names: list[str] = names) -> None:
            with sender_to(server) as sender:
                datagrams.segmented(sender, *map(message, names))

        place.right(*names, server=server)
        place.ask(ask)
        far.over_udp(count)


def segmented_2(place: Place) -> None:
    _segmented(place, 2)


def segmented_10(place: Place) -> None:
    _segmented(place, 10)


def segmented_64(place: Place) -> None:
    _segmented(place, 64)


def fragments4(place: Place) -> None:
    _fragments(place, FAR4)


def fragments6(place: Place) -> None:
    _fragments(place, FAR6)


def _fragments(place: Place, server: str) -> None:
    far = place.receiver(place.cable())
    names = place.names(3)
    place.right(*names, server=server)

    def ask() -> None:
        with sender_to(server) as sender:
            for name in names:
                sender.send(message(name, padding(4000)))

    place.ask(ask)
    far.over_udp(3)


def options4(place: Place) -> None:
    far = place.receiver(place.cable())
    names = place.names(3)
    place.right(*names)

    def ask() -> None:
        with sender_to(FAR4) as sender:
            # RFC 791, section 3.1: record the route, for three addresses; then the end of the list.
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([7, 15, 4, *bytes(12), 0]))
            for name in names:
                sender.send(message(name))

    place.ask(ask)
    far.over_udp(3)


def _extended(place: Place, option: int, value: bytes) -> None:
    far_net = place.cable()
    far = place.receiver(far_net)
    names = place.names(3)
    place.right(*names, server=FAR6)

    def ask() -> None:
        with sender_to(FAR6) as sender:
            sender.setsockopt(socket.IPPROTO_IPV6, option, value)
            for name in names:
                sender.send(message(name))

    place.ask(ask)
    far.over_udp(3)


#: RFC 8200, section 4.2: the next header, no further 8 octets, and an option that only pads.
_PADDED = bytes([0, 0, 1, 4, 0, 0, 0, 0])


def hop_by_hop(place: Place) -> None:
    _extended(place, socket.IPV6_HOPOPTS, _PADDED)


def destination_options(place: Place) -> None:
    _extended(place, socket.IPV6_DSTOPTS, _PADDED)


def routing_header(place: Place) -> None:
    """By another address of the server's host, which passes it on to the right one (RFC 8754)."""
    far_net = place.cable()
    far = place.receiver(far_net)
    place.ip(far_net, "address add 2001:db8::99/64 dev v1 nodad")
    for device in ("all", "v1"):
        place.sysctl(far_net, f"ipv6/conf/{device}/seg6_enabled", "1")
    names = place.names(3)
    place.right(*names, server=FAR6)
    addresses = [socket.inet_pton(socket.AF_INET6, address) for address in (FAR6, "2001:db8::99")]
    header = struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + b"".join(addresses)

    def ask() -> None:
        with sender_to(FAR6) as sender:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
            for name in names:
                sender.send(message(name))

    place.ask(ask)
    far.over_udp(3)
