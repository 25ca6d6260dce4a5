"""The label ``server``: the address that was asked, by the number of the server in the kernel's counters."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address

from dnsprobe.kernel.servers import Server, ServerNumbers
from dnsprobe.model import OTHER

#: The port that is left out, by transport: RFC 1035, RFC 7766, RFC 6762, RFC 4795 and RFC 7858.
USUAL_PORTS = {"udp": 53, "tcp": 53, "mdns": 5353, "llmnr": 5355, "dot": 853}


def server_label(server: Server, transport: str) -> str:
    """Return the address of a server, with its port if that is not the usual one of the transport."""
    address = ip_address(server.address)
    if server.port == USUAL_PORTS[transport]:
        return str(address)
    return f"{address}:{server.port}" if address.version == 4 else f"[{address}]:{server.port}"


class ServerLabels:
    """Labels of servers, and which of them take room in the kernel for nothing."""

    def __init__(self, numbers: ServerNumbers) -> None:
        self._numbers = numbers
        #: Servers by number: those that the kernel knows, and those that counters may still have.
        self._known: dict[int, Server] = {}
        #: Numbers that no counter had at the last sweep.
        self._unused: set[int] = set()

    def label(self, number: int, transport: str) -> str:
        """Return the label of a server, ``(other)`` if it is not known."""
        if number and number not in self._known:
            # The kernel side notes a server before it counts its first query.
            self._known.update(self._numbers.read())
        server = self._known.get(number)
        return OTHER if server is None else server_label(server, transport)

    def sweep(self, used: Collection[int]) -> None:
        """Forget servers that no counter has had for two sweeps. ``used`` are the numbers that counters have.

        The kernel side may have read a number just before it is forgotten, and count with it. So the label stays known
        until the next sweep, or for as long as a counter has the number.
        """
        present = self._numbers.read()
        self._known.update(present)
        unused = self._known.keys() - used
        for number in (self._unused & unused) - present.keys():
            del self._known[number]
        self._numbers.forget([present[number] for number in self._unused & unused & present.keys()])
        self._unused = unused & self._known.keys()
