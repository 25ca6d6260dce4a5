"""The port that the canaries are sent to."""

from __future__ import annotations

import subprocess
import sys

from conftest import IN_OWN_NET

IN_FEW_PORTS = """\
import sys
from dnsprobe.kernel.canary import CanaryPort
for _ in range(60):
    port = CanaryPort()
    print(port.port)
    port.close()
"""


def test_the_canaries_port_does_not_look_like_an_address() -> None:
    setting = 'sysctl -qw net.ipv4.ip_local_port_range="32510 32515"; exec "$@"'
    command = [*IN_OWN_NET, "sh", "-ec", setting, "sh", sys.executable, "-c", IN_FEW_PORTS]
    used = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "32511" in used
    assert str(0x7F00) not in used
