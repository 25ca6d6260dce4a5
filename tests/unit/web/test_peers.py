"""Who a client is: the user of a local process, or a network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dnsprobe.web import peers

#: Connects as a user, keeps the connection until standard input ends, and then ends itself.
CONNECT = """
import os, socket, sys
os.setuid(int(sys.argv[3]))
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    sys.stdin.read()
"""


@contextmanager
def connected(host: str, reached_by: str, uid: int) -> Iterator[tuple[socket.socket, str]]:
    """Yield a connection that a process of a user has opened, and the address of its other end."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as listener:
        command = [sys.executable, "-c", CONNECT, reached_by, str(listener.getsockname()[1]), str(uid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            connection, address = listener.accept()
            with connection:
                yield connection, address[0]
                assert process.stdin is not None
                process.stdin.close()
                process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for processes of other users")
@pytest.mark.parametrize(
    ("host", "reached_by"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.9.9.9"), ("::1", "::1"), ("::", "127.0.0.1")]
)
def test_a_local_client_is_its_user(host: str, reached_by: str) -> None:
    for uid in (0, 65534):
        with connected(host, reached_by, uid) as (connection, address):
            assert peers.name_of(connection, address) == f"user {uid}"


def test_a_connection_that_its_process_has_closed_is_not_that_of_root() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        connection, (address, _) = listener.accept()
        client.close()
        with connection:
            assert peers.name_of(connection, address) == "127.0.0.1"


def test_without_netlink_a_client_is_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_AF_NETLINK", 255)
    with connected("127.0.0.1", "127.0.0.1", os.getuid()) as (connection, address):
        assert peers.name_of(connection, address) == "127.0.0.1"


@pytest.mark.parametrize(("host", "asked"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_who_listens(host: str, asked: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        assert peers.uid_of_listener(asked, port) == os.getuid()
    assert peers.uid_of_listener(asked, port) is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
        ("user 0", "user 0"),
    ],
)
def test_a_remote_client_is_its_network(address: str, network: str) -> None:
    assert peers.network(address) == network
