"""Labels of servers."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from typing import cast

import pytest

from dnsprobe.kernel.servers import Server, ServerNumbers
from dnsprobe.pipeline.servers import ServerLabels, server_label


def server(address: str, port: int = 53) -> Server:
    return Server(ip_address(address).packed, port)


class Numbers:
    """Numbers of servers without a kernel."""

    def __init__(self, *servers: Server) -> None:
        self.servers = dict(enumerate(servers, 1))

    def read(self) -> dict[int, Server]:
        return dict(self.servers)

    def forget(self, servers: Collection[Server]) -> None:
        self.servers = {number: each for number, each in self.servers.items() if each not in servers}


def labels(numbers: Numbers) -> ServerLabels:
    return ServerLabels(cast(ServerNumbers, numbers))


@pytest.mark.parametrize(
    ("address", "port", "transport", "label"),
    [
        ("192.0.2.53", 53, "udp", "192.0.2.53"),
        ("2001:db8::53", 53, "tcp", "2001:db8::53"),
        ("192.0.2.53", 853, "dot", "192.0.2.53"),
        ("192.0.2.53", 53, "dot", "192.0.2.53:53"),
        ("192.0.2.53", 853, "udp", "192.0.2.53:853"),
        ("224.0.0.251", 5353, "mdns", "224.0.0.251"),
        ("ff02::1:3", 5355, "llmnr", "ff02::1:3"),
        ("127.0.0.1", 5300, "udp", "127.0.0.1:5300"),
        ("::1", 5300, "udp", "[::1]:5300"),
    ],
)
def test_a_port_is_shown_unless_it_is_the_usual_one(address: str, port: int, transport: str, label: str) -> None:
    assert server_label(server(address, port), transport) == label


def test_a_number_becomes_a_label() -> None:
    numbers = Numbers(server("192.0.2.1"), server("::1"))
    found = labels(numbers)
    assert [found.label(number, "udp") for number in (0, 1, 2, 3)] == ["(other)", "192.0.2.1", "::1", "(other)"]
    numbers.servers[3] = server("192.0.2.3")
    assert found.label(3, "udp") == "192.0.2.3"


def test_a_server_is_forgotten_if_no_counter_has_it_for_two_sweeps() -> None:
    numbers = Numbers(server("192.0.2.1"), server("192.0.2.2"))
    found = labels(numbers)
    found.sweep({1})
    assert numbers.servers.keys() == {1, 2}
    found.sweep({1})
    assert numbers.servers.keys() == {1}


def test_a_server_that_is_asked_again_stays() -> None:
    numbers = Numbers(server("192.0.2.1"))
    found = labels(numbers)
    for used in ({0}, {1}, {0}):
        found.sweep(used)
    assert numbers.servers.keys() == {1}


def test_a_label_stays_for_as_long_as_a_counter_has_the_number() -> None:
    numbers = Numbers(server("192.0.2.1"))
    found = labels(numbers)
    found.sweep(set())
    found.sweep(set())
    assert numbers.servers == {}
    # A run of a BPF program had read the number before.
    found.sweep({1})
    found.sweep({1})
    assert found.label(1, "udp") == "192.0.2.1"
    found.sweep(set())
    found.sweep(set())
    assert found.label(1, "udp") == "(other)"
