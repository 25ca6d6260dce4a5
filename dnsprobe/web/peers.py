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
    try:
        ends = connection.getpeername()[:2], connection.getsockname()[:2]
    except OSError:  # the client has left
        return network(address)
    uid = _uid(*ends)
    return network(address) if uid is None else f"user {uid}"


def uid_of_listener(host: str, port: int) -> int | None:
    """Return the user who listens on a TCP address of this host; None if nobody does, or the kernel does not answer."""
    anything = "::" if ":" in host else "0.0.0.0"
    return _uid((host, port), (anything, 0))


def _uid(local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """Return the user of the socket between two ends, an address and a port each; None if no process here has one.

    A socket that its process has closed belongs to nobody: the kernel would report root.
    """
    try:
        with socket.socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
            diag.setblocking(False)  # the kernel answers within sendto(2)
            diag.sendto(_request(local, remote), (0, 0))
            answer = diag.recv(4096)
    except OSError as error:
        _log.debug("cannot ask the kernel for the user of a socket: %s", error.strerror)
        return None
    with suppress(struct.error):
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind == _SOCK_DIAG_BY_FAMILY:
            *_, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
            return int(uid) if inode else None
    return None


def _request(local: tuple[str, int], remote: tuple[str, int]) -> bytes:
    """Return the question for the socket between two ends. Addresses of IPv4 within IPv6 belong to sockets of IPv4."""
    addresses = [ipaddress.ip_address(end[0].partition("%")[0]) for end in (local, remote)]
    mapped = [address.ipv4_mapped for address in addresses if isinstance(address, ipaddress.IPv6Address)]
    of_ipv4 = [address for address in mapped if address is not None]
    packed = [address.packed for address in (of_ipv4 if len(of_ipv4) == len(addresses) else addresses)]
    family = socket.AF_INET if len(packed[0]) == len(packed[1]) == 4 else socket.AF_INET6
    ports = struct.pack("!HH", local[1], remote[1])
    body = _REQUEST.pack(
        family, socket.IPPROTO_TCP, 0, _NO_COOKIE, ports, packed[0], packed[1], 0, _NO_COOKIE, _NO_COOKIE
    )
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + body
