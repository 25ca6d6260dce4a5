"""The port that the canaries are sent to."""

from __future__ import annotations

import subprocess
import sys

from conftest import IN_OWN_NET

#: A command prefix: the kernel has only six ports to assign.
SIX_PORTS = ["sh", "-ec", 'sysctl -qw net.ipv4.ip_local_port_range="32510 32515"; exec "$@"', "sh"]

IN_FEW_PORTS = """\
import sys
from dnsprobe.kernel.canary import CanaryPort
for _ in range(60):
    port = CanaryPort()
    print(port.port)
    port.close()
"""

IN_TAKEN_PORTS = """\
import socket
from dnsprobe.kernel.canary import CanaryPort
taken = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(6)]
for number, bound in enumerate(taken):
    bound.bind(("", 32510 + number))
port = CanaryPort([53], ("udp", "tcp"))
print(port.held, port.port not in (53, 0x7F00), *port.paths)
taken.pop().close()
print(CanaryPort([53], ("udp", "tcp")).held)
"""

AS_ANOTHER_USER = """\
import contextlib, os, socket
from dnsprobe.kernel.canary import CanaryPort
port = CanaryPort(protocols=("udp", "tcp"))
os.setresuid(65534, 65534, 65534)
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::1")):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with contextlib.suppress(OSError), socket.socket(family, kind) as other:
                other.setsockopt(socket.SOL_SOCKET, option, 1)
                other.bind((address, port.port))
                print("taken", family, address, kind, option)
"""


def run(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_the_canaries_port_does_not_look_like_an_address() -> None:
    command = [*IN_OWN_NET, *SIX_PORTS, sys.executable, "-c", IN_FEW_PORTS]
    used = set(run(command).split())
    assert "32511" in used
    assert str(0x7F00) not in used


def test_without_a_free_port_none_is_held() -> None:
    lines = run([*IN_OWN_NET, *SIX_PORTS, sys.executable, "-c", IN_TAKEN_PORTS]).splitlines()
    assert lines == ["False True udp4 tcp4 udp6 tcp6", "True"]


def test_no_other_user_can_bind_the_port() -> None:
    assert run([*IN_OWN_NET, sys.executable, "-c", AS_ANOTHER_USER]) == ""
