"""Situations: routes that lead nowhere, neighbours that do not answer, multicast and broadcast."""

from __future__ import annotations

import errno
import os
import socket
import struct
from functools import partial

from ways_out.place import FAR4, FAR6, NotPlayed, Place, message, send_over_tcp, send_to, sender_to

_NOWHERE4, _NOWHERE6 = "198.51.100.53", "2001:db8:9::53"
_MDNS4, _MDNS6 = "224.0.0.251", "ff02::fb"
_IPV4_PACKET_INFO = 8  # IP_PKTINFO of ip(7)


def _no_send(place: Place) -> None:
    """Ask servers that cannot be reached: the send fails, nothing leaves, and there is nothing to count."""
    for server in (_NOWHERE4, _NOWHERE6):

        def ask(server: str = server) -> None:
            try:
                send_to(server, *place.names(1))
            except OSError as error:
                if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}:
                    return
                raise
            raise AssertionError("the send did not fail")

        place.ask(ask)


def no_route(place: Place) -> None:
    _no_send(place)


def _route(place: Place, kind: str) -> None:
    place.cable()
    place.ip(place.net, f"route add {kind} {_NOWHERE4}\nroute add {kind} {_NOWHERE6}")
    _no_send(place)


def blackhole(place: Place) -> None:
    _route(place, "blackhole")


def unreachable(place: Place) -> None:
    _route(place, "unreachable")


def prohibited(place: Place) -> None:
    _route(place, "prohibit")


def silent_neighbour4(place: Place) -> None:
    _silent(place, "192.0.2.99")


def silent_neighbour6(place: Place) -> None:
    _silent(place, "2001:db8::99")


def _silent(place: Place, server: str) -> None:
    """Eight processes at once, with 30 queries each, ask a server whose link-layer address cannot be found."""
    place.cable()

    def ask(name: str) -> None:
        # With the same real-time priority, they do not interrupt each other in the middle of a BPF program. There, some
        # hooks lose queries on some kernels, and count them: tests of exactness under preemption cause that.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        with sender_to(server, connected=False) as sender:
            for _ in range(30):
                sender.sendto(message(name), (server, 53))

    askers = []
    for number, name in enumerate(place.names(8)):
        place.right(name, server=server, comm=f"asker{number}", count=30)
        askers.append(place.start(partial(ask, name), f"asker{number}"))
    for asker in askers:
        place.wait(asker)


def _devices(place: Place) -> list[int]:
    """Make three devices, and return their numbers."""
    far = place.make_net()
    indexes = []
    for number in range(3):
        place.veth(f"m{number}", far, f"p{number}")
        place.ip(
            place.net,
            f"address add 198.51.{100 + number}.1/24 dev m{number}\n"
            f"address add 2001:db8:{number + 1}::1/64 dev m{number} nodad\n"
            f"link set m{number} up",
        )
        place.ip(far, f"link set p{number} up")
        with place.net.entered():
            indexes.append(socket.if_nametoindex(f"m{number}"))
    return indexes


def _member4(index: int) -> bytes:
    """Return struct ip_mreqn of ip(7) for a group and a device."""
    return struct.pack("=4s4si", socket.inet_aton(_MDNS4), bytes(4), index)


def multicast_interface(place: Place) -> None:
    """Multicast DNS by IP_MULTICAST_IF, looped back to this host's members of the group and not: 36 sends."""
    indexes = _devices(place)
    (name,) = place.names(1)
    place.right(name, server=_MDNS4, port=5353, transport="mdns", count=36)

    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("", 5353))
            for index in indexes:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _member4(index))
            for index in indexes:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _member4(index))
                for loop in (0, 1):
                    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, loop)
                    for _ in range(6):
                        sender.sendto(message(name), (_MDNS4, 5353))

    place.ask(ask)


def multicast_packet_info(place: Place) -> None:
    """Multicast DNS as Avahi sends it: by IP_PKTINFO, and in the same way over IPv6."""
    indexes = _devices(place)
    (four,), (six,) = place.names(1, "four"), place.names(1, "six")
    place.right(four, server=_MDNS4, port=5353, transport="mdns", count=36)
    place.right(six, server=_MDNS6, port=5353, transport="mdns", count=36)

    def ask4() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("", 5353))
            for index in indexes:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _member4(index))
            for loop in (0, 1):
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, loop)
                for index in indexes * 6:
                    info = struct.pack("=i4s4s", index, bytes(4), bytes(4))
                    control = [(socket.IPPROTO_IP, _IPV4_PACKET_INFO, info)]
                    sender.sendmsg([message(four)], control, 0, (_MDNS4, 5353))

    def ask6() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.bind(("", 5353))
            group = socket.inet_pton(socket.AF_INET6, _MDNS6)
            for index in indexes:
                member = struct.pack("=16si", group, index)
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
            for loop in (0, 1):
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, loop)
                for index in indexes * 6:
                    control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16si", bytes(16), index))]
                    sender.sendmsg([message(six)], control, 0, (_MDNS6, 5353))

    place.ask(ask4)
    place.ask(ask6)


def broadcast(place: Place) -> None:
    far = place.receiver(place.cable())
    near = place.receiver(place.net)
    names = place.names(3)
    server = "192.0.2.255"
    place.right(*names, server=server)

    def ask() -> None:
        with sender_to(server, connected=False) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for name in names:
                sender.sendto(message(name), (server, 53))

    place.ask(ask)
    far.over_udp(3)
    near.over_udp(3)  # a broadcast comes back to its host


def unicast_5353(place: Place) -> None:
    """A resolver on the port of multicast DNS: dnsmasq, OpenShift's CoreDNS."""
    far = place.receiver(place.cable(), 5353)
    for tag, server in (("four", FAR4), ("six", FAR6)):
        (datagram,), (stream,) = place.names(1, tag), place.names(1, f"{tag}-tcp")
        place.right(datagram, server=server, port=5353)
        place.right(stream, server=server, port=5353, transport="tcp")
        place.ask(partial(send_to, server, datagram, port=5353))
        asker = place.start(partial(send_over_tcp, server, stream, 5353))
        if far.over_tcp() != stream:
            raise NotPlayed("another query arrived over TCP")
        place.wait(asker)
    far.over_udp(2)
