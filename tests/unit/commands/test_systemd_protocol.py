"""What a service sends to systemd, and the sockets that it gets from there, with a socket in the place of systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsprobe.commands.systemd import PassedSockets, forget_sockets, keep_socket, notify, passed_sockets

pytest.importorskip("systemd.daemon", reason="python3-systemd is not installed")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield manager


def test_a_socket_is_given_to_systemd(manager: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        keep_socket(listener.fileno())
        message, (descriptor,), *_ = socket.recv_fds(manager, 4096, 2)
        assert message.decode().splitlines() == ["FDSTORE=1", "FDNAME=dnsprobe-address", "FDPOLL=0"]
        with socket.socket(fileno=descriptor) as kept:
            assert kept.getsockname() == listener.getsockname()


def test_a_state_is_sent(manager: socket.socket) -> None:
    notify("READY=1\nSTATUS=good")
    assert socket.recv_fds(manager, 4096, 1)[:2] == (b"READY=1\nSTATUS=good", [])


def test_forgetting_waits_for_systemd(manager: socket.socket) -> None:
    handled: list[str] = []

    def handle() -> None:
        handled.extend(manager.recv(4096).decode().splitlines())
        message, (barrier,), *_ = socket.recv_fds(manager, 4096, 1)
        handled.extend(message.decode().splitlines())
        os.close(barrier)

    thread = threading.Thread(target=handle)
    thread.start()
    forget_sockets()
    thread.join()
    assert handled == ["FDSTOREREMOVE=1", "FDNAME=dnsprobe-address", "BARRIER=1"]


PASSED = """
import os, sys
from dnsprobe.commands.systemd import passed_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
print(*passed_sockets(), "LISTEN_FDS" in os.environ)
"""


@pytest.mark.parametrize(
    ("names", "passed"),
    [
        ("dnsprobe.socket", "[3] [] False"),
        ("dnsprobe-address", "[] [3] False"),
        ("dnsprobe.socket:dnsprobe-address", "[3] [4] False"),
        (None, "[3] [] False"),
    ],
)
def test_sockets_of_units_and_kept_ones_are_told_apart(names: str | None, passed: str) -> None:
    environment = {**os.environ, "LISTEN_FDS": str(len(names.split(":")) if names else 1)}
    if names is not None:
        environment["LISTEN_FDNAMES"] = names
    script = f"exec 3</dev/null 4</dev/null; exec '{sys.executable}' -c \"$1\""
    done = subprocess.run(
        ["sh", "-c", script, "sh", PASSED], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == passed


def test_without_systemd_there_are_no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert passed_sockets() == PassedSockets()
    keep_socket(0)
    forget_sockets()
