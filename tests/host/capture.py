"""What became of the queries of a client, read from the packets on loopback: RFC 1035, without anything of dnsprobe."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.rdatatype
from answer_text import outcome
from networks import Net

_ETH_P_IP, _SO_RCVBUFFORCE, _PACKET_OUTGOING = 0x0800, 33, 4  # include/uapi/linux
_ETHERNET, _IP, _UDP_HEADER, _ICMP_HEADER = 14, 20, 8, 8
_ICMP, _TCP, _UDP = 1, 6, 17
_DESTINATION_UNREACHABLE = 3
#: The address of systemd-resolved. Queries to it are of its clients.
_STUB = bytes([127, 0, 0, 53])

#: Queries, by type, transport, and what became of them: as the labels of the metrics.
Outcomes = Counter[tuple[str, str, str]]


class _Query(NamedTuple):
    """What a query, its answer, and the same query sent again have in common."""

    transport: str
    client_port: int
    server: bytes
    id: int
    question: str
    qtype: str


class Capture:
    """All IPv4 packets on the loopback device of a network namespace, until it is closed."""

    def __init__(self, net: Net) -> None:
        with net.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
            self._socket.bind(("lo", _ETH_P_IP))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def _packets(self) -> Iterator[bytes]:
        while True:
            try:
                packet, (_, _, kind, *_) = self._socket.recvfrom(65600)
            except BlockingIOError:
                return
            # Each passes loopback twice: it leaves, and it arrives.
            if kind != _PACKET_OUTGOING:
                yield packet[_ETHERNET:]

    def outcomes(self, *, hears_errors: bool) -> Outcomes:
        """Return what became of the queries since the last call. All sockets of the client must be closed.

        ``hears_errors`` is whether its sockets are connected, so that the kernel tells them about ICMP errors.
        """
        found: Outcomes = Counter()
        waiting: set[_Query] = set()
        answered: dict[int, tuple[_Query, str]] = {}
        streams: dict[tuple[bytes, bytes, bytes], bytes] = {}
        for packet in self._packets():
            payload = packet[_IP:]
            ends = (packet[12:16], packet[16:20], payload[:4])
            if packet[9] == _ICMP and payload[0] == _DESTINATION_UNREACHABLE:
                port, other_port = struct.unpack_from("!HH", payload, _ICMP_HEADER + _IP)
                if port == 53 and other_port in answered:
                    # The socket was closed before its answer came.
                    query, result = answered.pop(other_port)
                    found[query.qtype, query.transport, result] -= 1
                    waiting.add(query)
                elif other_port == 53 and hears_errors:
                    for query in [one for one in waiting if one.client_port == port]:
                        waiting.remove(query)
                        found[query.qtype, query.transport, "unreachable"] += 1
            elif packet[9] == _UDP:
                _see(found, waiting, answered, "udp", ends, payload[_UDP_HEADER:])
            elif packet[9] == _TCP:
                stream = streams.get(ends, b"") + payload[payload[12] // 16 * 4 :]
                while len(stream) >= 2 and len(stream) >= 2 + int.from_bytes(stream[:2], "big"):
                    end = 2 + int.from_bytes(stream[:2], "big")
                    _see(found, waiting, answered, "tcp", ends, stream[2:end])
                    stream = stream[end:]
                streams[ends] = stream
        found.update((query.qtype, query.transport, "closed") for query in waiting)
        return +found


def _see(
    found: Outcomes,
    waiting: set[_Query],
    answered: dict[int, tuple[_Query, str]],
    transport: str,
    ends: tuple[bytes, bytes, bytes],
    message: bytes,
) -> None:
    """Take a message into account. ``answered`` has the latest answer to each port, if a query waited for it."""
    source, destination, ports = ends
    source_port, destination_port = struct.unpack("!HH", ports)
    try:
        read = dns.message.from_wire(message)
    except dns.exception.DNSException:
        return
    (question,) = read.question
    is_answer = bool(read.flags & dns.flags.QR)
    if (source_port if is_answer else destination_port) != 53:
        return
    query = _Query(
        transport,
        destination_port if is_answer else source_port,
        source if is_answer else destination,
        read.id,
        question.name.to_text().lower(),
        dns.rdatatype.to_text(question.rdtype),
    )
    if is_answer:
        answered.pop(query.client_port, None)
    if query.server == _STUB:
        return
    if query in waiting:
        waiting.remove(query)
        result = outcome(read) if is_answer else "superseded"
        found[query.qtype, transport, result] += 1
        if is_answer:
            answered[query.client_port] = (query, result)
    if not is_answer:
        waiting.add(query)
