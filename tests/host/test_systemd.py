"""The service and systemd: notifications, passed sockets, and the capabilities that stay."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from conftest import ALL_PATHS, IN_OWN_NET, PATIENCE, PROGRAM, UNPRIVILEGED, Service, free_ports

from dnsprobe.kernel.hooks import RUNGS
from dnsprobe.privileges import ONLY_AT_START, Capability

Start = Callable[..., Service]
Scene = Callable[..., Any]


class Manager:
    """A service manager: receives the notifications of a service (sd_notify(3)).

    A thread receives them at once, as systemd does: only ten wait in the kernel (net.unix.max_dgram_qlen), and then the
    service would wait, too.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._messages: SimpleQueue[dict[str, str]] = SimpleQueue()
        self._kept: SimpleQueue[tuple[int, str]] = SimpleQueue()
        self._thread = threading.Thread(target=self._receive_all, daemon=True)
        self._thread.start()

    def _receive_all(self) -> None:
        while True:
            octets, descriptors, *_ = socket.recv_fds(self._socket, 65536, 4)
            if not octets:
                return
            message = dict(line.split("=", 1) for line in octets.decode().splitlines())
            if "FDSTORE" in message:
                self._kept.put((descriptors.pop(), message["FDNAME"]))
            for descriptor in descriptors:
                os.close(descriptor)
            self._messages.put(message)

    def receive(self, state: str) -> dict[str, str]:
        """Return the variables of the next message that has ``state``; queue.Empty if there is none."""
        while True:
            message = self._messages.get(timeout=PATIENCE)
            if state in message:
                return message

    def receive_kept(self) -> tuple[int, str]:
        """Return the next socket that the service asks the manager to keep, and its name."""
        return self._kept.get(timeout=PATIENCE)

    def receives_nothing_for(self, seconds: float) -> bool:
        with suppress(Empty):
            while True:
                self._messages.get_nowait()
        try:
            self._messages.get(timeout=seconds)
        except Empty:
            return True
        return False

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.close()


@pytest.mark.quick
def test_systemd_gets_each_state_of_the_service(start: Start, scene: Scene, manager: Manager) -> None:
    service = start("domains: [watched.test]", ["env", f"NOTIFY_SOCKET={manager.path}", "WATCHDOG_USEC=30000000"])
    trying = manager.receive("EXTEND_TIMEOUT_USEC")
    assert trying["STATUS"].startswith("trying ")
    ready = manager.receive("READY")
    hooks = ", ".join(
        f"{labels['path']} at {RUNGS[labels['hook'], labels['attach']].place(labels['symbol'])}"
        for labels, _ in service.samples("dnsprobe_hook_info")
    )
    assert ready == {"READY": "1", "STATUS": f"{hooks}; 1 rule; 0 queries"}
    assert manager.receive("WATCHDOG") == {"WATCHDOG": "1"}
    scene("send", "www.watched.test", 101)
    while (status := manager.receive("STATUS")["STATUS"]).endswith("; 0 queries"):
        pass
    assert status == f"{hooks}; 1 rule; 101 queries"
    service.configuration.write_text("domains: [watched.test, other.test]")
    service.process.send_signal(signal.SIGHUP)
    assert int(manager.receive("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert manager.receive("READY")["STATUS"] == f"{hooks}; 2 rules; 101 queries"
    assert service.stop() == 0
    assert manager.receive("STOPPING")


def test_an_event_loop_that_hangs_feeds_no_watchdog(start: Start, manager: Manager, tmp_path: Path) -> None:
    # Python imports this module at its start. The handler runs in the event loop, and never returns.
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, threading\ndef hang(*_): threading.Event().wait()\nsignal.signal(signal.SIGUSR2, hang)\n"
    )
    variables = [f"NOTIFY_SOCKET={manager.path}", "WATCHDOG_USEC=30000000", f"PYTHONPATH={tmp_path}"]
    service = start("domains: [watched.test]", ["env", *variables])
    manager.receive("WATCHDOG")
    service.process.send_signal(signal.SIGUSR2)
    # The first of them may receive what was sent before the signal.
    assert any(manager.receives_nothing_for(3) for _ in range(2))
    # systemd then sends SIGABRT. The log shows where the loop hung.
    assert service.stop(signal.SIGABRT) == -signal.SIGABRT
    log = service.err.read_text("utf-8")
    assert "Fatal Python error: Aborted" in log
    assert "in hang" in log


JOURNAL_ELSEWHERE = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal
mount --bind "$0" /run/systemd/journal
JOURNAL_STREAM=$(stat --dereference --format=%d:%i /proc/self/fd/2) exec "$@"
"""


def test_log_lines_go_to_the_journal(tmp_path: Path) -> None:
    configuration = tmp_path / "quiet.yaml"
    configuration.write_text("domains: [watched.test]")
    folder = tmp_path / "journal"
    folder.mkdir()
    command = [str(PROGRAM), "run", "--config", str(configuration), "--listen", "127.0.0.1:0"]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald,
        (tmp_path / "err").open("w") as err,
        subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", JOURNAL_ELSEWHERE, str(folder), *command], stderr=err
        ) as process,
    ):
        try:
            journald.bind(str(folder / "socket"))
            journald.settimeout(PATIENCE)
            fields: list[str] = []
            while not any("ready after" in field for field in fields):
                fields = journald.recv(65536).decode().splitlines()
        finally:
            process.terminate()
    assert {"PRIORITY=6", "SYSLOG_IDENTIFIER=dnsprobe"} <= set(fields)
    (message,) = [field for field in fields if field.startswith("MESSAGE=")]
    assert re.fullmatch(r"MESSAGE=ready after [0-9.]+ s.*", message)
    assert (tmp_path / "err").read_text() == ""


def test_the_service_runs_without_standard_error(manager: Manager, tmp_path: Path) -> None:
    configuration = tmp_path / "quiet.yaml"
    configuration.write_text("domains: [watched.test]")
    command = [str(PROGRAM), "run", "--config", str(configuration), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command], env={**os.environ, "NOTIFY_SOCKET": str(manager.path)}
    )
    try:
        manager.receive("READY")
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


PASS_SOCKETS = """\
import os, socket, sys
os.closerange(3, 20)
for number, port in enumerate(sys.argv[1].split(",")):
    listener = socket.socket()
    listener.bind(("127.0.0.1", int(port)))
    listener.listen()
    descriptor = listener.detach()
    if descriptor != 3 + number:
        os.dup2(descriptor, 3 + number)
    os.set_inheritable(3 + number, True)
os.environ.update(LISTEN_FDS=str(number + 1), LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_the_service_uses_a_socket_from_systemd(start: Start) -> None:
    (port,) = free_ports(1)
    service = start("domains: [watched.test]", [sys.executable, "-c", PASS_SOCKETS, str(port)])
    assert service.url == f"127.0.0.1:{port}"
    assert service.get("/-/ready")


@pytest.mark.parametrize(
    ("passed", "message"),
    [
        ([sys.executable, "-c", PASS_SOCKETS, "{0},{1}"], "systemd passed 2 sockets"),
        (
            ["sh", "-c", 'exec 3</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "sh"],
            "descriptor 3 from systemd is not a socket",
        ),
    ],
)
def test_wrong_sockets_from_systemd_are_an_error(passed: list[str], message: str, tmp_path: Path) -> None:
    ports = free_ports(2)
    prefix = [part.format(*ports) if part == "{0},{1}" else part for part in passed]
    result = subprocess.run(
        [*prefix, str(PROGRAM), "run", "--log-target", "console"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 1
    assert message in result.stderr


AGAIN = """\
import os, sys
descriptor = int(sys.argv[1])
if descriptor != 3:
    os.dup2(descriptor, 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=sys.argv[2])
os.execvp(sys.argv[3], sys.argv[3:])
"""


def test_the_address_is_kept_during_a_restart(manager: Manager, tmp_path: Path) -> None:
    """What systemd does with FileDescriptorStoreMax=1, without systemd."""
    (port,) = free_ports(1)
    configuration = tmp_path / "quiet.yaml"
    configuration.write_text("domains: [watched.test]")
    command = [str(PROGRAM), "run", "--config", str(configuration), "--listen", f"127.0.0.1:{port}"]
    environment = {**os.environ, "NOTIFY_SOCKET": str(manager.path)}
    process = subprocess.Popen([*command, "--log-target", "console"], env=environment)
    try:
        kept, name = manager.receive_kept()
        manager.receive("READY")
        # A crash, at which the daemon does nothing for its address.
        process.kill()
        process.wait(PATIENCE)
        with pytest.raises(OSError, match="Address already in use"):
            socket.create_server(("127.0.0.1", port))
        early = socket.create_connection(("127.0.0.1", port))
        early.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        process = subprocess.Popen(
            [sys.executable, "-c", AGAIN, str(kept), name, *command, "--log-target", "console"],
            env=environment,
            pass_fds=[kept],
        )
        manager.receive("READY")
        early.settimeout(PATIENCE)
        assert early.makefile("rb").read().endswith(b"healthy\n")
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_daemon_whose_port_is_taken_counts_and_says_so(
    start: Start, scene: Scene, manager: Manager, tmp_path: Path
) -> None:
    thief = socket.create_server(("127.0.0.1", 0))
    port = thief.getsockname()[1]
    configuration, log = tmp_path / "taken.yaml", tmp_path / "log"
    configuration.write_text("domains: [watched.test]")
    command = [str(PROGRAM), "run", "--config", str(configuration), "--listen", f"127.0.0.1:{port}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--log-target", "console"],
            stderr=output,
            env={**os.environ, "NOTIFY_SOCKET": str(manager.path)},
        )
    try:
        problem = f"no metrics, because another program has 127.0.0.1:{port}"
        assert manager.receive("READY")["STATUS"].endswith(f"; {problem}")
        scene("send", "www.watched.test", 101)
        thief.close()
        # The next status is that of the sweep or that of the address.
        while problem in manager.receive("STATUS")["STATUS"]:
            pass
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
            counted = re.findall(r"^dnsprobe_queries_total\{.*} (.*)$", answer.read().decode(), re.MULTILINE)
        assert sum(map(float, counted)) == 101
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
    text = log.read_text("utf-8")
    assert text.count(f"cannot listen on 127.0.0.1:{port}: Address already in use, by user ") == 1
    assert "ss -ltnp" in text
    assert f"127.0.0.1:{port} is free" in text


def test_a_service_may_listen_on_an_address_that_appears_later(start: Start, manager: Manager) -> None:
    configuration = manager.path.with_name("late.yaml")
    configuration.write_text("domains: [watched.test]\nmetrics: {listen: '192.0.2.1:10059'}")
    command = [*IN_OWN_NET, str(PROGRAM), "run", "--config", str(configuration), "--log-target", "console"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "cannot listen on 192.0.2.1:10059" in refused.stderr
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NOTIFY_SOCKET": str(manager.path)}
    )
    try:
        manager.receive("READY")
        enter = ["nsenter", "--net", f"--target={process.pid}"]
        subprocess.run([*enter, "ip", "address", "add", "192.0.2.1/32", "dev", "lo"], check=True)
        page = subprocess.run([*enter, "curl", "-s", "http://192.0.2.1:10059/-/ready"], capture_output=True, check=True)
        assert page.stdout == b"ready\n"
    finally:
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE)
    assert "no interface has 192.0.2.1 yet" in log


def capabilities(pid: int, kind: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(status.split(f"{kind}:", 1)[1].split(maxsplit=1)[0], 16)


def test_capabilities_of_the_start_are_dropped(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]\nprobe: {verify_interval: 1s}")
    for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        held = capabilities(service.process.pid, kind)
        assert not any(held >> capability & 1 for capability in ONLY_AT_START)
    for thread in Path(f"/proc/{service.process.pid}/task").iterdir():
        assert capabilities(int(thread.name), "CapEff") == capabilities(service.process.pid, "CapEff")
    # The service needs none of them after its start.
    scene("send", "www.watched.test", 101)
    service.configuration.write_text("domains: [watched.test, other.test]")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("reloaded: 2 rules")
    time.sleep(3)
    assert service.by("dnsprobe_path_verified", "path") == dict.fromkeys(ALL_PATHS, 1)
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": 101}


def test_the_service_runs_as_a_user_with_the_capabilities_of_the_unit(
    start: Start, scene: Scene, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    service = start("domains: [ipv6.test]\nprobe: {verify_interval: 1s}", UNPRIVILEGED)
    assert capabilities(service.process.pid, "CapPrm") == 1 << Capability.CAP_BPF | 1 << Capability.CAP_SYS_PTRACE
    scene("clients")
    time.sleep(2)
    assert service.by("dnsprobe_path_verified", "path") == dict.fromkeys(ALL_PATHS, 1)
    assert service.by("dnsprobe_queries_total", "domain") == {"ipv6.test": 19}
    (entry,) = service.entries()
    assert "exe /" in entry
