"""The sender of the canaries, without hooks: where the canaries go, and which of them could not be sent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsprobe.kernel import canary
from dnsprobe.kernel.canary import Canaries, CanaryPort, canary_suffix

PATHS = ("udp4", "udp6", "tcp4", "tcp6", "parts4", "parts6")
UNREPORTED = "the hook did not report the canary"


@pytest.fixture
def port() -> Iterator[CanaryPort]:
    """Yield a port that is held here."""
    made = CanaryPort(protocols=("udp", "tcp"))
    yield made
    made.close()


def sent(port: CanaryPort, *, kill: bool = False) -> Canaries:
    """Send canaries for all paths."""
    canaries = Canaries(PATHS, port, canary_suffix())
    try:
        if kill:
            canaries.kill()
        canaries.release()
        canaries.wait()
    finally:
        canaries.dismiss()
    return canaries


def test_canaries_never_arrive_where_other_users_are(port: CanaryPort) -> None:
    canaries = sent(port)
    assert canaries.unsent == set()
    assert set(canaries.judge([]).values()) == {f"{way}: {UNREPORTED}" for way in ("sendto", "whole", "cut-header")}, (
        "each path has the problem of its first canary"
    )
    for bound in port._sockets:
        if bound.type == socket.SOCK_DGRAM:
            with pytest.raises(BlockingIOError):
                bound.recv(1, socket.MSG_DONTWAIT)


def test_nobody_can_connect_to_the_port(port: CanaryPort) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port.port))


def test_what_a_sender_that_died_did_not_send_says_nothing_about_a_hook(port: CanaryPort) -> None:
    canaries = sent(port, kill=True)
    assert canaries.unsent == set(PATHS)
    assert canaries.judge([])["udp4"] == "sendto: the canary could not be sent: their sender died (-9)"


def test_a_sender_that_takes_too_long_is_ended(
    port: CanaryPort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "sender.py"
    script.write_text("import time\nprint(flush=True)\ntime.sleep(600)\n")
    monkeypatch.setattr(canary, "_SENDER", script)
    monkeypatch.setattr(canary, "_SENDER_SECONDS", 1)
    canaries = sent(port)
    assert canaries.unsent == set(PATHS), "it has sent the first one of udp4 only"


def test_the_names_of_a_round_are_its_own(port: CanaryPort) -> None:
    names = [each.name for _ in range(2) for each in sent(port)._canaries]
    assert len(names) == len(set(names)) == 24
