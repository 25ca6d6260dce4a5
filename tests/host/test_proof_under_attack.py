"""The proof of the hooks while an ordinary user attacks it, or while it fails for another reason.

Nobody switches a path off, and a path that was lost comes back without a restart.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ALL_PATHS, HERE, PATIENCE, UNPRIVILEGED, Program, Service, until
from scraped import samples_of
from test_lifecycle import NO_NAMESPACES, attached, children

Start = Callable[..., Service]
Scene = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("readable")

ORDINARY_USER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
CONFIGURATION = "domains: [streams.test, one.test]\nprobe: {verify_interval: 1s}"
ADDRESS = "127.0.0.1:10059"
#: The kernel has few ports to assign, so that it takes little to hold them all.
FEW_PORTS = 'sysctl -qw net.ipv4.ip_local_port_range="32510 32519"'
#: A firewall that refuses all connections but those to ADDRESS.
REFUSE_TCP = """\
nft -f - <<END
table inet t {
    chain c {
        type filter hook output priority 0
        tcp dport != 10059 tcp flags & (syn | ack) == syn reject with tcp reset
    }
}
END
"""


class Host:
    """A network namespace in which a dnsprobe and other users share a loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        hold = ["unshare", "--net", "sh", "-ec", "ip link set lo up; echo up; exec sleep infinity"]
        self._holder = subprocess.Popen(hold, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"
        self.enter = ["nsenter", "--net", f"--target={self._holder.pid}"]
        self._others: list[subprocess.Popen[bytes]] = []
        self._programs: list[Program] = []

    def attack(self, kind: str) -> None:
        """Start an attack by an ordinary user, and return when it goes on."""
        # -S -P, and a copy, because the user cannot read the folders of the tests.
        script = (HERE / "canary_attacker.py").read_text("utf-8")
        command = [*self.enter, *ORDINARY_USER, sys.executable, "-S", "-c", script, kind]
        self._others.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"))
        output = self._others[-1].stdout
        assert output is not None
        assert output.readline()

    def run(self, prefix: Sequence[str] = ()) -> Program:
        """Start dnsprobe, and return when it counts."""
        folder = self._folder / f"service{len(self._programs)}"
        folder.mkdir()
        (folder / "dnsprobe.yaml").write_text(CONFIGURATION, "utf-8")
        arguments = ["run", "--config", str(folder / "dnsprobe.yaml"), "--listen", ADDRESS, "--log-target", "console"]
        self._programs.append(Program(arguments, folder, [*self.enter, *prefix]))
        return self._programs[-1]

    def shell(self, command: str) -> str:
        return subprocess.run([*self.enter, "sh", "-ec", command], check=True, stdout=subprocess.PIPE, text=True).stdout

    def get(self, path: str) -> str:
        """Return the status of an answer, and its body."""
        return self.shell(f"curl -s --local-port 60990-60999 -w '%{{http_code}}' http://{ADDRESS}{path}")

    def proved(self) -> set[str]:
        samples = samples_of("dnsprobe_path_verified", self.get("/metrics").rpartition("\n")[0])
        return {labels["path"] for labels, value in samples if value == 1}

    def counted(self) -> dict[str, int]:
        """Return the queries by transport."""
        found: dict[str, int] = {}
        for labels, value in samples_of("dnsprobe_queries_total", self.get("/metrics").rpartition("\n")[0]):
            found[labels["transport"]] = found.get(labels["transport"], 0) + int(value)
        return found

    def close(self) -> None:
        for program in self._programs:
            program.kill()
        for process in (*self._others, self._holder):
            process.kill()
            process.communicate()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Yield a network namespace."""
    made = Host(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("prefix", [[], UNPRIVILEGED, NO_NAMESPACES], ids=["root", "service", "no_namespaces"])
def test_whoever_fills_queues_switches_no_path_off(host: Host, scene: Scene, prefix: list[str]) -> None:
    host.attack("listeners")
    service = host.run(prefix)
    service.wait_for("ready after")
    assert host.get("/-/ready") == "ready\n200"
    # Several rounds of canaries.
    time.sleep(4)
    assert "not proved any more" not in service.err.read_text("utf-8")
    assert host.proved() == set(ALL_PATHS)
    scene("streams", "www.streams.test")
    assert host.counted() == {"tcp": 1}


@pytest.mark.parametrize("prefix", [[], UNPRIVILEGED], ids=["root", "service"])
def test_whoever_takes_all_ports_switches_no_path_off(host: Host, prefix: list[str]) -> None:
    host.shell(FEW_PORTS)
    host.attack("ports")
    service = host.run(prefix)
    service.wait_for("ready after")
    assert host.proved() == set(ALL_PATHS)
    time.sleep(3)
    assert host.get("/-/ready") == "ready\n200"
    assert "not proved any more" not in service.err.read_text("utf-8")


def test_without_namespaces_and_ports_the_start_fails_with_the_reason(host: Host) -> None:
    host.shell(FEW_PORTS)
    host.attack("ports")
    service = host.run(NO_NAMESPACES)
    with pytest.raises(AssertionError):
        service.wait_for("ready after")
    assert service.stop() == 1
    assert "no network namespace of its own, and other programs hold all ports" in service.err.read_text("utf-8")


def test_a_path_without_a_hook_at_the_start_is_reported_and_gets_one_later(host: Host, scene: Scene) -> None:
    """Without namespaces, canaries go over the loopback here, where a firewall refuses connections."""
    host.shell(REFUSE_TCP)
    service = host.run(NO_NAMESPACES)
    line = service.wait_for("not ready after")
    for path in ("tcp4", "tcp6"):
        (reason,) = re.findall(f"{path}: ([^|]+)", line)
        assert reason.strip().endswith("cgroup egress_stream: whole: the canary could not be sent: Connection refused")
    answer = host.get("/-/ready")
    assert answer.startswith("not ready: tcp4: ")
    assert answer.endswith("\n503")
    assert host.proved() == set(ALL_PATHS) - {"tcp4", "tcp6"}
    assert "not ready: not every path is proved" in host.get("/")
    scene("send", "www.one.test", 11)
    assert host.counted() == {"udp": 11}
    host.shell("nft flush ruleset")
    service.wait_for("tcp6 is proved again, at ")
    until(lambda: host.get("/-/ready") == "ready\n200")
    scene("streams", "www.streams.test")
    scene("send", "www.one.test", 13)
    assert host.counted() == {"udp": 24, "tcp": 1}
    assert host.proved() == set(ALL_PATHS)


def bpf(command: int, number: int) -> int:
    """Call bpf(2) with one number as its argument."""
    attribute = ctypes.create_string_buffer(struct.pack("=I", number), 64)
    result = ctypes.CDLL(None, use_errno=True).syscall(BPF[os.uname().machine], command, attribute, 64)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return int(result)


BPF = {"x86_64": 321, "aarch64": 280}
#: include/uapi/linux/bpf.h
LINK_GET_FD_BY_ID, LINK_DETACH = 30, 34


@pytest.mark.parametrize("prefix", [[], UNPRIVILEGED], ids=["root", "service"])
def test_a_hook_that_is_detached_is_replaced_without_a_restart(start: Start, scene: Scene, prefix: list[str]) -> None:
    # TCP has a hook of another kind, so that it goes on.
    service = start("domains: [streams.test, one.test]\nprobe: {verify_interval: 1s, tcp_hook: tcp_tracepoint}", prefix)
    links = attached(str(service.process.pid))
    scene("send", "www.one.test", 11)
    scene("streams", "www.streams.test")
    for link in links:
        bpf(LINK_DETACH, bpf(LINK_GET_FD_BY_ID, int(link)))
    service.wait_for("is not proved any more: ")
    # The other paths go on to count.
    scene("streams", "www.streams.test")
    service.wait_for("is proved again, at ")
    until(lambda: service.by("dnsprobe_path_verified", "path") == dict.fromkeys(ALL_PATHS, 1))
    scene("send", "www.one.test", 13)
    assert service.by("dnsprobe_queries_total", "transport") == {"udp": 24, "tcp": 2}
    assert service.get("/-/ready") == "ready\n"
    assert len(attached(str(service.process.pid))) == len(links), "no trial stays attached"
    assert sum(service.by("dnsprobe_packets_unparsed_total", "reason").values()) == 0
    # The loader has ended, and the process that starts it remains.
    (keeper,) = children(service.process.pid, "loader_keeper")
    until(lambda: children(keeper) == [])
    assert service.stop() == 0


def test_a_stop_does_not_wait_for_an_exchange(start: Start) -> None:
    service = start("domains: [one.test]\nprobe: {verify_interval: 1s}")
    for link in attached(str(service.process.pid)):
        bpf(LINK_DETACH, bpf(LINK_GET_FD_BY_ID, int(link)))
    service.wait_for("is not proved any more: ")
    assert service.stop() == 0
    assert "Traceback" not in service.err.read_text("utf-8")


def test_doctor_agrees_with_ready(host: Host) -> None:
    host.shell(REFUSE_TCP)
    command = [*host.enter, *NO_NAMESPACES, sys.executable, "-m", "dnsprobe", "doctor", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    paths = {line["path"]: line["proved"] for line in map(json.loads, done.stdout.splitlines()) if "path" in line}
    assert paths == {path: not path.startswith("tcp") for path in ALL_PATHS}
