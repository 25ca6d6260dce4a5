"""Situations: programs that write the UDP header themselves, or the whole packet."""

from __future__ import annotations

import socket

from ways_out.place import FAR4, FAR6, NEAR4, Place, hardware_address, ip4_header, message, udp_header

_IPV6_CHECKSUM = 7  # raw(7) of IPv6: the offset of a checksum that the kernel fills in
_ETH_P_IP = 0x0800


def raw4(place: Place) -> None:
    far = place.receiver(place.cable())
    names = place.names(3)
    place.right(*names)

    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sender:
            for name in names:
                query = message(name)
                sender.sendto(udp_header(query) + query, (FAR4, 0))

    place.ask(ask)
    far.over_udp(3)


def raw4_whole(place: Place) -> None:
    far = place.receiver(place.cable())
    names = place.names(3)
    place.right(*names)

    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            for name in names:
                sender.sendto(_packet(name), (FAR4, 0))

    place.ask(ask)
    far.over_udp(3)


def raw6(place: Place) -> None:
    far = place.receiver(place.cable())
    names = place.names(3)
    place.right(*names, server=FAR6)

    def ask() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP) as sender:
            sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 6)
            for name in names:
                query = message(name)
                sender.sendto(udp_header(query) + query, (FAR6, 0))

    place.ask(ask)
    far.over_udp(3)


def packet_socket(place: Place) -> None:
    far_net = place.cable()
    far = place.receiver(far_net)
    with far_net.entered():
        address = hardware_address("v1")
    names = place.names(3)
    place.right(*names)

    def ask() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sender:
            for name in names:
                sender.sendto(_packet(name), ("v0", _ETH_P_IP, 0, 0, address))

    place.ask(ask)
    far.over_udp(3)


def _packet(name: str) -> bytes:
    query = message(name)
    return ip4_header(17, 8 + len(query), NEAR4, FAR4) + udp_header(query) + query
