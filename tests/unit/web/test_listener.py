"""Errors of the listening socket, each with a hint."""

from __future__ import annotations

import os
import socket

import pytest

from dnsprobe.errors import EXIT_FAILED, UserError
from dnsprobe.web.listener import inherited, listen


def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^cannot listen on 127.0.0.1:{port}: Address already in use$") as raised:
            listen("127.0.0.1", port)
        assert raised.value.hint == f"see which program uses the port: ss -ltnp 'sport = :{port}'"
        assert raised.value.status == EXIT_FAILED


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", r"^cannot listen on 192\.0\.2\.1:10059: Cannot assign requested address$"),
        ("2001:db8::1", r"^cannot listen on \[2001:db8::1\]:10059: "),
        ("a" * 70, r"^cannot listen on a+:10059: "),
    ],
)
def test_an_unavailable_address_is_an_error(host: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        listen(host, 10059)
    assert raised.value.hint
    assert raised.value.status == EXIT_FAILED


def test_an_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"^cannot listen on nowhere\.invalid:80: .*Name or service not known$"):
        listen("nowhere.invalid", 80)


def test_a_port_without_permission_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Forbidden)
    with pytest.raises(UserError, match=r"^cannot listen on 127\.0\.0\.1:80: Permission denied$") as raised:
        listen("127.0.0.1", 80)
    assert "1023" in raised.value.hint


def test_a_socket_from_systemd_is_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, inherited(os.dup(server.fileno())) as listener:
        assert listener.getsockname() == server.getsockname()
        assert not listener.getblocking()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_from_systemd_that_does_not_listen_is_an_error(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        descriptor = os.dup(other.fileno())
        with pytest.raises(UserError, match=f"^descriptor {descriptor} from systemd is not a listening TCP socket$"):
            inherited(descriptor)


def test_a_descriptor_from_systemd_that_is_not_a_socket_is_an_error() -> None:
    reader, writer = os.pipe()
    with pytest.raises(UserError, match=f"^descriptor {reader} from systemd is not a socket: "):
        inherited(reader)
    os.close(reader)
    os.close(writer)
