"""Which server is asked: the label ``server``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import servers
from conftest import HERE, IN_OWN_NET, PATIENCE, Service

from dnsprobe.kernel.abi import SERVERS

GUEST = HERE.parent / "vm/guest"
PROBE = f"ports: [53, {servers.OTHER_PORT}], dot_ports: [853]"
#: The second rule matches names that the daemon decides.
DOMAINS = "domains: [www.server.test, 'a-*.server.test']"


def by_server(service: Service, metric: str) -> Counter[tuple[str, str]]:
    """Return the sum of a metric by transport and server."""
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in service.samples(metric):
        found[labels["transport"], labels["server"]] += int(value)
    return found


def ask() -> None:
    """Send all queries of servers.py."""
    command = ["unshare", "--net", sys.executable, str(GUEST / "servers.py"), "server.test"]
    subprocess.run(command, check=True, timeout=PATIENCE, env={**os.environ, "PYTHONPATH": str(GUEST)})


@pytest.mark.parametrize("hook", ["cgroup_skb", "tcp_tracepoint"])
@pytest.mark.parametrize("answers", ["off", "{timeout: 1s}"])
def test_each_query_is_counted_for_its_server(start: Callable[..., Service], hook: str, answers: str) -> None:
    service = start(
        f"{DOMAINS}\nprobe: {{hook: cgroup_skb, tcp_hook: {hook}, {PROBE}}}\n"
        f"metrics: {{labels: [unit, server]}}\nanswers: {answers}"
    )
    ask()
    assert by_server(service, "dnsprobe_queries_total") == servers.queries()
    assert by_server(service, "dnsprobe_encrypted_connections_total") == servers.connections()
    assert by_server(service, "dnsprobe_messages_unread_total") == servers.unread()
    assert service.by("dnsprobe_queries_unattributed_total", "reason")["servers_full"] == 0
    if answers != "off":
        # The servers answer each datagram, and close each connection.
        datagrams = Counter({key: number for key, number in servers.queries().items() if key[0] == "udp"})
        assert by_server(service, "dnsprobe_responses_total") == datagrams
        assert by_server(service, "dnsprobe_unanswered_total") == servers.queries() - datagrams


def test_without_the_label_the_sums_are_the_same(start: Callable[..., Service]) -> None:
    service = start(f"{DOMAINS}\nprobe: {{hook: cgroup_skb, tcp_hook: cgroup_skb, {PROBE}}}")
    ask()
    assert sum(value for _, value in service.samples("dnsprobe_queries_total")) == servers.queries().total()
    assert all("server" not in labels for labels, _ in service.samples("dnsprobe_queries_total"))


#: A user id that no account of the host has, and how many servers this user asks: more than the kernel tells apart.
GREEDY, ASKED = 3_000_001, SERVERS + 900

FLOOD = """
import os, socket, sys
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
os.setuid(int(sys.argv[1]))
for number in range(int(sys.argv[2])):
    asker.sendto(bytes.fromhex(sys.argv[3]), (f"127.{sys.argv[4]}.{number >> 8}.{number & 255}", 53))
"""


def flood(user: int, number: int, network: int) -> None:
    """Ask many servers in a network of loopback once, as a user."""
    arguments = [str(user), str(number), servers.query("www.server.test").hex(), str(network)]
    subprocess.run([*IN_OWN_NET, sys.executable, "-c", FLOOD, *arguments], check=True, timeout=PATIENCE)


def test_who_asks_very_many_servers_leaves_room_for_others(start: Callable[..., Service]) -> None:
    service = start(
        f"{DOMAINS}\nprobe: {{hook: cgroup_skb, tcp_hook: cgroup_skb, dot_ports: []}}\n"
        "metrics: {labels: [user, server]}"
    )
    flood(GREEDY, ASKED, 9)
    flood(0, 10, 8)
    found: dict[str, Counter[str]] = {"root": Counter(), str(GREEDY): Counter()}
    for labels, value in service.samples("dnsprobe_queries_total"):
        found[labels["user"]][labels["server"]] += int(value)
    assert found["root"] == Counter({f"127.8.0.{number}": 1 for number in range(10)})
    greedy = found[str(GREEDY)]
    without = greedy.pop("(other)")
    assert set(greedy.values()) == {1}
    assert greedy.total() + without == ASKED
    assert greedy.total() == SERVERS // 2
    assert service.by("dnsprobe_queries_unattributed_total", "reason")["servers_full"] == without
