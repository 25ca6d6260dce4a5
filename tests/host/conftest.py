"""Fixtures of the tests with real BPF: dnsprobe as a user runs it, and network namespaces to send from.

Senders run in a separate network namespace. Nothing else uses its loopback, so port 53 is free and all names are unused
there. The hooks see all namespaces.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from running import PATIENCE, PROGRAM, Program, Service

#: Names for the tests from another module. Whatever is defined here can be imported, too.
__all__ = ["PATIENCE", "PROGRAM", "Program", "Service"]

HERE = Path(__file__).parent

#: The paths of a host that has IPv4 and IPv6.
ALL_PATHS = ("udp4", "udp6", "tcp4", "tcp6", "parts4", "parts6")
#: Its paths of answers.
ANSWER_PATHS = ("answers4", "answers6")

#: A command prefix: the command runs as an ordinary user with the capabilities that the shipped unit gives it.
UNPRIVILEGED = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all,+bpf,+net_admin,+perfmon,+sys_ptrace",
    "--ambient-caps=+bpf,+net_admin,+perfmon,+sys_ptrace",
    "--bounding-set=-all,+bpf,+net_admin,+perfmon,+sys_ptrace",
    "--no-new-privs",
]
#: A command prefix: the command runs in a network namespace with loopback only.
IN_OWN_NET = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]


def pytest_configure(config: pytest.Config) -> None:
    # All tests share one cache of compiled programs, as all starts of a service do (test_cached_programs.py).
    folder = tempfile.TemporaryDirectory(prefix="dnsprobe-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["CACHE_DIRECTORY"] = folder.name
    _leave_the_root(config)


def _leave_the_root(config: pytest.Config) -> None:
    """Move to a control group of our own if we are in the root group, as on a host without systemd.

    The root has no name. The kernel side cannot distinguish it from a host with cgroup version 1.
    """
    groups = dict(line.split(":", 2)[::2] for line in Path("/proc/self/cgroup").read_text().splitlines())
    roots = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"]
    if os.geteuid() != 0 or groups.get("0") != "/" or not roots:
        return
    root = Path(roots[0])
    group = root / f"dnsprobe-tests-{os.getpid()}"
    group.mkdir()

    def return_to_root() -> None:
        (root / "cgroup.procs").write_text("0")
        group.rmdir()

    config.add_cleanup(return_to_root)
    (group / "cgroup.procs").write_text("0")
    # The shell makes background processes ignore SIGINT, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs root, for BPF: run scripts/test as root"))


def preemptible_btf(folder: Path) -> Path:
    """Return the BTF of this kernel with one more name, as on kernels that preempt programs at tracepoints."""
    data = bytearray(Path("/sys/kernel/btf/vmlinux").read_bytes())
    # The names come last. Their length is the last member of the header (Documentation/bpf/btf.rst).
    (size,) = struct.unpack_from("=I", data, 20)
    name = b"class_srcu_fast_notrace_t\0"
    struct.pack_into("=I", data, 20, size + len(name))
    path = folder / "btf"
    path.write_bytes(data + name)
    return path


def until(condition: Callable[[], bool], what: str = "what the test waits for") -> None:
    """Wait until ``condition`` holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.02)


@pytest.fixture
def readable(tmp_path: Path) -> None:
    """Let an ordinary user read the configuration."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Return a function that starts ``dnsprobe run`` with a configuration, and returns it when it is ready."""
    started: list[Service] = []

    def run(configuration: str, prefix: Sequence[str] = ()) -> Service:
        folder = tmp_path / f"service{len(started)}"
        folder.mkdir()
        started.append(Service(configuration, folder, prefix))
        return started[-1]

    yield run
    for service in started:
        service.kill()


@pytest.fixture
def start_watch(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Return a function that starts ``dnsprobe watch``, and returns it when it watches."""
    started: list[Program] = []

    def run(*arguments: str) -> Program:
        folder = tmp_path / f"watch{len(started)}"
        folder.mkdir()
        program = Program(["watch", *arguments], folder)
        started.append(program)
        program.wait_for("watching ")
        return program

    yield run
    for program in started:
        program.kill()


NAMESPACE = """\
ip link set lo up
mount --bind "$1/resolv.conf" /etc/resolv.conf
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
shift
exec "$@"
"""


@pytest.fixture
def in_namespace(tmp_path: Path) -> list[str]:
    """Return a command prefix: the command runs in its own network namespace, with 127.0.0.1 as resolver."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1\n")
    (folder / "nsswitch.conf").write_text("hosts: files dns\n")
    return ["unshare", "--net", "--mount", "sh", "-ec", NAMESPACE, "sh", str(folder)]


@pytest.fixture
def scene(in_namespace: list[str]) -> Callable[..., Any]:
    """Return a function that runs a function of scenes.py in a namespace, and returns the JSON that it prints."""

    def run(name: str, *arguments: object) -> Any:
        command = [*in_namespace, sys.executable, str(HERE / "scenes.py"), name, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=PATIENCE * 3)
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile and return the program that sends as fast as it can."""
    program = tmp_path_factory.mktemp("flood") / "flood"
    source = HERE.parents[1] / "benchmarks" / "flood.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", str(program), str(source)], check=True)
    return program


@pytest.fixture(scope="session")
def sender() -> Iterator[Path]:
    """Compile and return a static program that sends queries and exits. It lives for less than a millisecond."""
    source = HERE.parent / "vm/guest/senders/send.c"
    # Other users run it, too, so it cannot be in the folder of pytest, which only its owner can read.
    with tempfile.TemporaryDirectory(prefix="dnsprobe-sender-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", folder / "send", source], check=True)
        yield folder / "send"


@pytest.fixture(scope="session")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile and return the static program that makes processes as fast as it can."""
    program = tmp_path_factory.mktemp("storm") / "storm"
    source = HERE.parents[1] / "benchmarks" / "storm.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-static", "-o", str(program), str(source)], check=True)
    return program
