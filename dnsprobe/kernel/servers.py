"""The numbers of servers: the kernel side counts by the number of a server, if it tells servers apart."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from dnsprobe.kernel import abi, libbpf
from dnsprobe.kernel.shares import SharedMap
from dnsprobe.kernel.typed_map import Codec


class Server(NamedTuple):
    """A server as the asker gave it: 4 or 16 octets of its address, and its port."""

    address: bytes
    port: int


def _encode_server(server: Server) -> bytes:
    return abi.SERVER.pack(server.address, server.port, 4 if len(server.address) == 4 else 6)


def _decode_server(data: bytes) -> Server:
    address, port, family = abi.SERVER.unpack(data)
    return Server(address[:4] if family == 4 else address, port)


SERVER_CODEC = Codec(abi.SERVER.size, _encode_server, _decode_server)
#: User space only reads the numbers. What it would write has no share.
NUMBER_CODEC: Codec[int] = Codec(
    abi.NUMBERED_SERVER.size,
    lambda number: abi.NUMBERED_SERVER.pack(number, abi.SHARE_OF_NOBODY),
    lambda data: int(abi.NUMBERED_SERVER.unpack(data)[0]),
)


class ServerNumbers:
    """The servers that have a number, and the numbers that are free, ``room`` of them at first.

    The kernel side takes a free number for a server that it has not seen. A number is never given out again: a counter
    may have it long after its server was forgotten.
    """

    def __init__(self, servers: SharedMap[Server, int], free: libbpf.Map, room: int) -> None:
        self._servers, self._free, self._last = servers, free, abi.OTHER_SERVER
        self._add_free(room)

    def read(self) -> dict[int, Server]:
        """Return the servers by their numbers."""
        return {number: server for server, number in self._servers.items()}

    def forget(self, servers: Collection[Server]) -> None:
        """Forget servers, and give back their room. If one is asked again, it gets another number."""
        self._add_free(len(list(self._servers.take_many(servers))))

    def _add_free(self, numbers: int) -> None:
        for _ in range(numbers):
            self._last += 1
            self._free.push(abi.COUNTER.pack(self._last))
