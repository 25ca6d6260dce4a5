"""Whether the server of a query is on this host: the label ``to``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import places
import pytest
from conftest import HERE, PATIENCE, Service

GUEST = HERE.parent / "vm/guest"


def counted(service: Service) -> dict[tuple[str, str, str], int]:
    """Return the queries by process, transport and place of the server."""
    found: Counter[tuple[str, str, str]] = Counter()
    for labels, value in service.samples("dnsprobe_queries_total"):
        found[labels["process"], labels["transport"], labels["to"]] += int(value)
    return found


@pytest.mark.parametrize("hook", ["cgroup_skb", "tcp_tracepoint"])
def test_each_query_is_counted_for_the_place_of_its_server(start: Callable[..., Service], hook: str) -> None:
    service = start(f"domains: [place.test]\nprobe: {{hook: cgroup_skb, tcp_hook: {hook}, dot_ports: []}}")
    command = ["unshare", "--net", sys.executable, str(GUEST / "places.py"), "place.test"]
    subprocess.run(command, check=True, timeout=PATIENCE, env={**os.environ, "PYTHONPATH": str(GUEST)})
    # At the tracepoint, the route is that of the socket, in front of NAT.
    behind_nat = ("udp", "tcp") if hook == "cgroup_skb" else ("udp",)
    assert counted(service) == places.expected(*behind_nat)
