"""Who a client is: a user of this host, or a network. Limits of the HTTP server are shared by it.

Any local user can open many connections, and from many addresses of 127.0.0.0/8. So for a client on this host the
kernel is asked for the user whose process has the other end of the connection.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
from contextlib import suppress

_log = logging.getLogger(__name__)

#: include/uapi/linux/netlink.h and sock_diag.h; Python has no names for them.
_AF_NETLINK, _NETLINK_SOCK_DIAG = 16, 4
_SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST = 20, 1
_NO_COOKIE = 0xFFFFFFFF
#: struct nlmsghdr: length, type, flags, sequence number, port.
_HEADER = struct.Struct("=IHHII")
#: struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h): family, protocol, extensions, states; then struct
#: inet_diag_sockid in network byte order: ports and addresses of both ends; then interface and cookie.
_REQUEST = struct.Struct("=BBBxI4s16s16sIII")
#: struct inet_diag_msg: family, state, timer and retransmissions; sockid; expiry, both queues, user, inode.
_ANSWER = struct.Struct("=BBBB48sIIIII")


def network(address: str) -> str:
    """Return the network that counts as one client: an IPv4 address, or the /64 that an IPv6 host usually has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def name_of(connection: socket.socket, address: str) -> str:
    """Return the name of the user or the network at the other end of a connection from ``address``.

    All connections of a user of this host have the same name, and so have all of a network, as :func:`network` returns
    it.
    """
    uid = _uid_of_peer(connection)
    return network(address) if uid is None else f"user {uid}"


def _uid_of_peer(connection: socket.socket) -> int | None:
    """Return the user whose process has the other end of a connection; None if it is not a process in this network.

    A connection whose process has closed it belongs to nobody: the kernel would report root.
    """
    try:
        request = _request(connection)
        with socket.socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
            diag.setblocking(False)  # the kernel answers within sendto(2)
            diag.sendto(request, (0, 0))
            answer = diag.recv(4096)
    except OSError as error:
        _log.debug("cannot ask the kernel for the user of a client: %s", error.strerror)
        return None
    with suppress(struct.error):
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind == _SOCK_DIAG_BY_FAMILY:
            *_, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
            return int(uid) if inode else None
    return None


def _request(connection: socket.socket) -> bytes:
    """Return the question for the socket at the other end of a connection."""
    source, destination = connection.getpeername()[:2], connection.getsockname()[:2]
    family = connection.family
    addresses = [ipaddress.ip_address(end[0].partition("%")[0]) for end in (source, destination)]
    mapped = [address.ipv4_mapped for address in addresses if isinstance(address, ipaddress.IPv6Address)]
    if all(mapped) and len(mapped) == len(addresses):
        # An IPv4 client of an IPv6 socket has a socket of IPv4.
        family = socket.AF_INET
        packed = [address.packed for address in mapped if address is not None]
    else:
        packed = [address.packed for address in addresses]
    ports = struct.pack("!HH", source[1], destination[1])
    body = _REQUEST.pack(
        family, socket.IPPROTO_TCP, 0, _NO_COOKIE, ports, packed[0], packed[1], 0, _NO_COOKIE, _NO_COOKIE
    )
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + body
