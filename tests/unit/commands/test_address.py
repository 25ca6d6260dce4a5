"""The address of the HTTP server: sockets from systemd, and other programs that have the port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dnsprobe.commands import address
from dnsprobe.commands.address import ServerAddress, holder, written
from dnsprobe.commands.systemd import PassedSockets
from dnsprobe.errors import UserError
from dnsprobe.sinks.journal import ADDRESS_TAKEN_ID
from dnsprobe.sinks.metrics import Registry, Snapshot
from dnsprobe.web.server import Server


class Keeper:
    """Records what systemd is asked to keep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        monkeypatch.setattr(address, "keep_socket", lambda descriptor: self.asked.append("keep"))
        monkeypatch.setattr(address, "forget_sockets", lambda: self.asked.append("forget"))


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    return Keeper(monkeypatch)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(Registry(Snapshot), lambda: "", 1)
    yield server
    server.abandon()


def passed(host: str = "127.0.0.1", port: int = 0) -> tuple[int, int]:
    """Return a listening socket as systemd would pass it, and its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    port = listener.getsockname()[1]
    return listener.detach(), port


def test_a_new_socket_is_kept(server: Server, keeper: Keeper) -> None:
    ours = ServerAddress(server, ("127.0.0.1", 0))
    ours.take(PassedSockets())
    assert server.address[1] > 0
    assert (ours.problem, keeper.asked) == ("", ["keep"])


def test_a_kept_socket_is_used_again(server: Server, keeper: Keeper) -> None:
    descriptor, port = passed()
    ServerAddress(server, ("127.0.0.1", port)).take(PassedSockets(kept=[descriptor]))
    assert (server.address, server.fileno()) == (("127.0.0.1", port), descriptor)
    assert keeper.asked == []


@pytest.mark.parametrize("wanted", [("127.0.0.2", None), ("127.0.0.1", 0), ("::1", None)])
def test_a_kept_socket_of_another_address_is_forgotten(
    server: Server, keeper: Keeper, wanted: tuple[str, int | None]
) -> None:
    descriptor, port = passed()
    host, wanted_port = wanted
    ServerAddress(server, (host, port if wanted_port is None else wanted_port)).take(PassedSockets(kept=[descriptor]))
    # Port 0 means any port: the kept one is as good as another.
    kept = wanted_port == 0
    assert server.address == ((host, port) if kept or wanted_port is None else None)
    assert keeper.asked == ([] if kept else ["forget", "keep"])


def test_something_else_that_was_kept_is_forgotten(server: Server, keeper: Keeper) -> None:
    with socket.socket() as other:
        ServerAddress(server, ("127.0.0.1", 0)).take(PassedSockets(kept=[os.dup(other.fileno())]))
    assert server.listening
    assert keeper.asked == ["forget", "keep"]


def test_a_socket_unit_comes_before_a_kept_socket(
    server: Server, keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    (of_unit, port), (kept, _) = passed(), passed()
    ServerAddress(server, ("127.0.0.1", port)).take(PassedSockets([of_unit], [kept]))
    assert server.fileno() == of_unit
    assert keeper.asked == ["forget"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)
    assert not caplog.records


def test_a_socket_unit_with_another_address_is_reported(
    server: Server, keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    of_unit, port = passed()
    ServerAddress(server, ("192.0.2.1", 10059)).take(PassedSockets([of_unit]))
    assert server.address == ("127.0.0.1", port)
    assert (
        f"dnsprobe.socket listens on 127.0.0.1:{port}, so metrics.listen (192.0.2.1:10059) has no effect" in caplog.text
    )


def test_two_sockets_of_units_are_an_error(server: Server, keeper: Keeper) -> None:
    with pytest.raises(UserError, match="systemd passed 2 sockets"):
        ServerAddress(server, ("127.0.0.1", 0)).take(PassedSockets([3, 4]))


def test_a_taken_address_is_reported_once_and_taken_when_it_is_free(
    server: Server, keeper: Keeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(server, "start", lambda: started.append(True))
    other = socket.create_server(("127.0.0.1", 0))
    port = other.getsockname()[1]
    ours = ServerAddress(server, ("127.0.0.1", port))
    ours.take(PassedSockets())
    ours.serve()
    for _ in range(3):
        assert not ours.retry()
    assert not server.listening
    assert ours.problem == f"no metrics, because another program has 127.0.0.1:{port}"
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert vars(record)["message_id"] == ADDRESS_TAKEN_ID
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in record.getMessage()
    assert "Queries are counted" in record.getMessage()
    assert (started, keeper.asked) == ([], [])
    other.close()
    assert ours.retry()
    assert not ours.retry()
    assert (ours.problem, started, keeper.asked) == ("", [True], ["keep"])
    assert server.address == ("127.0.0.1", port)


def test_an_address_that_is_wrong_stays_an_error(server: Server, keeper: Keeper) -> None:
    with pytest.raises(UserError, match="Cannot assign requested address"):
        ServerAddress(server, ("192.0.2.1", 10059)).take(PassedSockets())


def test_who_has_an_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert f"({os.getuid()})" in holder(*other.getsockname())
        assert f"[{os.getpid()}]" in holder(*other.getsockname())
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as other:
        assert f"({os.getuid()})" in holder("::1", other.getsockname()[1])
        assert written(*other.getsockname()[:2]) == f"[::]:{other.getsockname()[1]}"
    assert holder("127.0.0.1", 1) == "an unknown user"


LONG_NAME = """
import ctypes, socket, time
ctypes.CDLL(None).prctl(15, b"a-name-of-15-oc")
thief = socket.create_server(("127.0.0.1", 0))
print(thief.getsockname()[1], flush=True)
time.sleep(60)
"""


def test_who_has_an_address_is_found_without_the_memory_of_the_process() -> None:
    """Whoever reads the command line of a process may wait for it for ever."""
    command = ["a-name-of-15-octets-as-the-command-line", "-c", LONG_NAME]
    with subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE) as thief:
        try:
            assert thief.stdout is not None
            assert holder("127.0.0.1", int(thief.stdout.readline())).endswith(f", a-name-of-15-oc[{thief.pid}]")
        finally:
            thief.kill()


TAKE = """
import os, socket, sys
os.setuid(int(sys.argv[3]))
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as thief:
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        thief.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        thief.bind((sys.argv[1], int(sys.argv[2])))
        thief.listen()
        print("taken")
    except OSError as error:
        print(error.strerror)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for processes of other users")
@pytest.mark.parametrize("uid", [0, 65534])
@pytest.mark.parametrize(
    ("host", "thief"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")]
)
def test_nobody_shares_the_port(server: Server, keeper: Keeper, host: str, thief: str, uid: int) -> None:
    ServerAddress(server, (host, 0)).take(PassedSockets())
    command = [sys.executable, "-c", TAKE, thief, str(server.address[1]), str(uid)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "Address already in use\n"
