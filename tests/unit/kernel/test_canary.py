"""The sender of the canaries, without hooks: where the canaries go, and which of them could not be sent."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from dnsprobe.kernel import abi, canary
from dnsprobe.kernel.canary import Canaries, CanaryPort, canary_suffix
from dnsprobe.model import Process

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


ANSWER_PATHS = ("answers4", "answers6", "closed4", "unreachable4")


def reports(
    canaries: Canaries, port: CanaryPort, *, result: int = 0, times: int = 1
) -> list[abi.Event | abi.CanaryResult]:
    """Return what hooks report of canaries. ``result`` is added to what became of each."""
    found: list[abi.Event | abi.CanaryResult] = []
    for number, each in enumerate(canaries._canaries):
        process = Process(canaries._sender.pid, 5, b"python3")
        chain = abi.Chain((process, Process(os.getpid(), 1, b"")), True, 0, (), True, 0)
        server = ip_address(each.address).packed
        transport = abi.TRANSPORTS.index(each.transport)
        numbers = (0, number, 0, 0, 0, os.getuid(), 0, 0, 1, 1, port.port, abi.Kind.CANARY, transport, 0)
        found.append(abi.Event(*numbers, server, each.name, chain))
        assert each.result is not None
        found += [abi.CanaryResult(number, 5, canaries._sender.pid, each.result + result)] * times
    return found


def answered(port: CanaryPort, streams: Collection[str] = ("tcp4", "tcp6")) -> Canaries:
    """Send canaries that are answered, or end in another way."""
    canaries = Canaries(ANSWER_PATHS, port, canary_suffix(), streams)
    try:
        canaries.release()
        canaries.wait()
    finally:
        canaries.dismiss()
    assert canaries.unsent == set()
    return canaries


def test_answers_are_compared_with_what_was_sent(port: CanaryPort) -> None:
    canaries = answered(port)
    assert canaries.judge(reports(canaries, port)) == dict.fromkeys(ANSWER_PATHS, "")
    assert set(canaries.judge(reports(canaries, port, times=0)).values()) == {
        f"{way}: the hook did not report the result" for way in ("answered", "closed", "refused")
    }
    assert canaries.judge(reports(canaries, port, times=2))["closed4"] == "closed: the hook reported 2 results"
    assert canaries.judge(reports(canaries, port, result=1))["closed4"] == "closed: result is UNREACHABLE, not CLOSED"
    assert canaries.judge([])["answers6"] == f"answered: {UNREPORTED}"


def test_a_stream_whose_queries_are_not_seen_is_not_asked_for_answers(port: CanaryPort) -> None:
    ways = [each.way for each in answered(port, ["tcp6"])._canaries]
    assert ways == ["answered", "answered", "answered-stream", "closed", "refused"]
