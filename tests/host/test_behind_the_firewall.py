"""The hook behind the firewall: NAT has replaced the server, and a firewall in user space sends packets on.

The guests play more situations, at all hooks: tests/vm/guest/test_vm_ways_out.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import HERE, IN_OWN_NET
from running import PATIENCE, Service

Scene = Callable[[str], Service]

CONFIGURATION = """
domains: [nat.test, queue.test, front.test, "ads*.wild.test", last.test]
probe: {hook: cgroup_skb, ports: [53]}
"""
LINE = re.compile(r"(\S+)\[\d+\] asked for (\S+) \(A, udp\) by .*?, server (\S+), ")


@pytest.fixture
def scene(start: Callable[..., Service], sender: Path) -> Scene:
    """Return a function that plays a scene of firewall.py, and returns the service that has seen it."""

    def run(name: str) -> Service:
        service = start(CONFIGURATION)
        paths = os.pathsep.join([*filter(None, sys.path)])
        command = [*IN_OWN_NET, sys.executable, str(HERE / "firewall.py"), name, str(sender)]
        subprocess.run(command, check=True, timeout=PATIENCE, env={**os.environ, "PYTHONPATH": paths})
        # What was sent before this is in the log when this is.
        subprocess.run([*IN_OWN_NET, str(sender), "sendto", "4", "www.last.test", "1"], check=True, timeout=PATIENCE)
        service.wait_for("asked for www.last.test")
        return service

    return run


def counted(service: Service) -> dict[tuple[str, str], int]:
    """Return the counts by domain and process."""
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in service.samples("dnsprobe_queries_total"):
        if value and labels["domain"] != "last.test":
            found[labels["domain"], labels["process"]] += int(value)
    return found


def unattributed(service: Service) -> dict[str, int]:
    return service.by("dnsprobe_queries_unattributed_total", "reason")


def test_a_query_has_the_server_that_its_sender_gave(scene: Scene) -> None:
    service = scene("translated")
    servers = {"port": "127.0.0.11#53", "mapped": "127.0.0.11#53", "six": "::1#53", "address": "127.0.0.13#53"}
    askers = [f"{tag}-{way}" for tag in servers for way in ("sendto", "connect")]
    assert counted(service) == {("nat.test", asker): 3 for asker in askers}
    assert set(LINE.findall(service.err.read_text("utf-8"))) >= {
        (asker, f"{asker}.nat.test", servers[asker.partition("-")[0]]) for asker in askers
    }


def test_without_conntrack_a_connected_socket_has_the_server(scene: Scene) -> None:
    service = scene("rewritten")
    assert counted(service) == {("nat.test", "rewritten"): 1}
    assert ("rewritten", "www.nat.test", "127.0.0.14#53") in LINE.findall(service.err.read_text("utf-8"))


def test_a_query_of_a_socket_that_is_connected_elsewhere_is_counted(scene: Scene) -> None:
    service = scene("elsewhere")
    ((_, process),) = counted(service)
    assert counted(service) == {("nat.test", process): 6}


def test_a_firewall_in_user_space_is_not_the_asker(scene: Scene) -> None:
    service = scene("held_back")
    waiting = ("recv", "recv_beside_a_t", "poll", "epoll")
    assert counted(service) == {
        # Its own two queries.
        ("queue.test", "the-firewall"): 2,
        ("queue.test", "same-name"): 3,
        **{("queue.test", process): 1 for process in waiting},
        ("ads*.wild.test", "undecided"): 1,
        # Those of a socket that is shared or closed.
        ("queue.test", "(unknown)"): 2,
        ("ads*.wild.test", "(unknown)"): 1,
    }
    assert unattributed(service)["firewall"] == 3
    askers = {comm for comm, name, _ in LINE.findall(service.err.read_text("utf-8")) if name != "www.last.test"}
    assert askers == {"the-firewall", "same-name", "undecided", *waiting}


def test_a_firewall_in_user_space_is_not_the_asker_over_tcp(scene: Scene) -> None:
    service = scene("held_back_streams")
    assert counted(service) == {
        ("queue.test", "the-firewall"): 1,
        **{("queue.test", process): 1 for process in ("recv", "poll", "among-others")},
        ("queue.test", "twice"): 2,
        # Those of a socket that is shared or closed, although it was not when its first packet left.
        ("queue.test", "(unknown)"): 3,
    }
    assert unattributed(service)["firewall"] == 3
    assert service.by("dnsprobe_encrypted_connections_total", "process") == {"dot": 1}
    shown = service.err.read_text("utf-8")
    askers = re.findall(r"(\S+)\[\d+\] asked for \S+ \(A, tcp\) by .*?, server 127\.0\.0\.1#53, ", shown)
    assert set(askers) == {"the-firewall", "recv", "poll", "twice", "among-others"}


def test_a_firewall_that_holds_nothing_back_hides_no_asker(scene: Scene) -> None:
    service = scene("in_front")
    files = ("0-0", "0-100", "100-0", "1000-1000", "2035-0", "3000-10")
    ways = ("sendto", "send", "sendmmsg", "thread", "uring", "uringasync", "uringfixed", "uringasyncfixed")
    expected = {f"files-{number}": 3 for number in files} | {
        f"{family}{way}"[:15]: 3 for way in ways for family in "46"
    }
    assert counted(service) == {("front.test", process): count for process, count in expected.items()}
    assert unattributed(service)["firewall"] == 0
