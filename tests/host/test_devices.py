"""A packet that passes several devices, or waits for a neighbour, counts once, for the process that sent it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import HERE, PATIENCE, Service

SENDER = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, sys.argv[2].encode(), 0, 0, 0)
query = bytes.fromhex("0001 0100 0001 0000 0000 0000") + b"\\3www\\7devices\\4test\\0\\0\\1\\0\\1"
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(7):
    sender.sendto(query, (sys.argv[1], 53))
"""


@pytest.mark.parametrize("kind", ["veth", "late", "macvlan", "bridge", "shaped", "containers", "routed"])
def test_each_packet_is_counted_once_for_its_sender(start: Callable[..., Service], kind: str) -> None:
    service = start("domains: [devices.test]")
    place = ["unshare", "--net", "--mount", "bash", str(HERE / "devices.sh"), kind, sys.executable, SENDER]
    subprocess.run(place, check=True, timeout=PATIENCE)
    assert service.by("dnsprobe_queries_total", "process") == {f"s{number}": 7 for number in range(1, 6)}
