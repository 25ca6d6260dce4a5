"""A server that is no dnsprobe cannot make ``dnsprobe tree`` wait, use memory or write control characters."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count, repeat

import pytest

from dnsprobe.errors import UserError
from dnsprobe.treeview import client
from dnsprobe.treeview.client import NotAnswering, Target, fetch, parse

OK = b"HTTP/1.1 200 OK\r\n"
#: Seconds until the end of a connection is missed.
_PATIENCE = 30.0
BUILD = 'dnsprobe_build_info{version="1"} 1\n'


@contextmanager
def serving(parts: Callable[[], Iterator[bytes]], pause: float = 0.0) -> Iterator[str]:
    """Serve one client the parts, with a pause in seconds after each, until it leaves. Yield the URL."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            # A client that neither reads nor closes the connection fails the test and does not hang it.
            accepted.settimeout(_PATIENCE)
            with accepted, suppress(ConnectionError):
                accepted.recv(65536)
                for part in parts():
                    accepted.sendall(part)
                    if ended.wait(pause):
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        finally:
            ended.set()
            thread.join(_PATIENCE)
            assert not thread.is_alive(), "the client has left, and its connection is still open"


def error_of(url: str) -> UserError:
    with pytest.raises(UserError) as caught:
        fetch(Target(url))
    assert caught.value.hint
    assert caught.value.message.isprintable()
    return caught.value


@pytest.mark.parametrize(
    "parts",
    [
        # Each octet comes within the time for one read.
        lambda: chain([OK, b"\r\n"], repeat(b"a")),
        lambda: chain([OK, b"Content-Length: 1000000\r\n\r\n"], repeat(b"a")),
        lambda: chain([OK, b"Transfer-Encoding: chunked\r\n\r\n"], repeat(b"1\r\na\r\n")),
        lambda: repeat(b"H"),
        lambda: chain([OK], repeat(b"X")),
        lambda: chain([OK], (b"X-%d: 1\r\n" % number for number in count())),
        lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "length", "chunks", "status", "header", "headers", "continue"],
)
def test_an_octet_at_a_time_is_an_error_at_the_time_limit(
    parts: Callable[[], Iterator[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_WHOLE_TIMEOUT", 1.0)
    with serving(parts, pause=0.05) as url:
        error = error_of(url)
    assert isinstance(error, NotAnswering)
    assert error.message.endswith("did not send a whole answer within 1 seconds")


@pytest.mark.parametrize(
    "parts",
    [
        lambda: chain([OK, b"\r\n"], repeat(bytes(1 << 16))),
        lambda: chain([OK, b"Content-Length: 99999999999\r\n\r\n"], repeat(bytes(1 << 16))),
        lambda: chain([OK, b"Transfer-Encoding: chunked\r\n\r\n"], repeat(b"10000\r\n" + bytes(1 << 16) + b"\r\n")),
    ],
    ids=["body", "length", "chunks"],
)
def test_an_endless_body_is_an_error(parts: Callable[[], Iterator[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MAX_BYTES", 2 << 20)
    with serving(parts) as url:
        assert error_of(url).message == f"{url} is not a dnsprobe: the answer has more than 2 MiB"


@pytest.mark.parametrize(
    "parts",
    [
        lambda: chain([OK], repeat(b"X-A: 1\r\n")),
        lambda: chain([OK], repeat(b"X" * 4096)),
        lambda: repeat(b"H" * 4096),
    ],
    ids=["headers", "header", "status"],
)
def test_endless_headers_are_an_error(parts: Callable[[], Iterator[bytes]]) -> None:
    with serving(parts) as url:
        error_of(url)


def test_a_compressed_answer_is_an_error() -> None:
    with serving(lambda: iter([OK, b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\n", b"x"])) as url:
        assert "the answer is compressed" in error_of(url).message


def test_the_reason_of_an_error_is_escaped_and_cut() -> None:
    with serving(lambda: iter([b"HTTP/1.1 500 \x1b[2J" + b"a" * 60_000 + b"\r\n\r\n"])) as url:
        message = error_of(url).message
    assert "\\x1b[2J" in message
    assert len(message) < 300


@pytest.mark.parametrize("value", ["-1", "1e308", "NaN", "+Inf", "1e400", "18446744073709551616"])
def test_a_number_that_no_counter_has_is_an_error(value: str) -> None:
    with pytest.raises(UserError, match="is not a dnsprobe"):
        parse(f'{BUILD}dnsprobe_queries_total{{tree="a"}} {value}\n', "URL")


def test_more_series_than_any_dnsprobe_has_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MAX_LINES", 100)
    lines = [f'dnsprobe_queries_total{{tree="a{number}"}} 1\n' for number in range(101)]
    with pytest.raises(UserError, match="more series"):
        parse(BUILD + "".join(lines), "URL")
    # Only the metrics that are shown count.
    assert len(parse(BUILD + "".join(lines[:99]) + "other 1\n" * 1000, "URL").queries) == 99


def test_a_line_that_takes_too_long_to_parse_is_an_error() -> None:
    labels = ",".join(f'l{number}="x"' for number in range(100_000))
    with pytest.raises(UserError, match="longer line"):
        parse(f"{BUILD}dnsprobe_queries_total{{{labels}}} 1\n", "URL")


def test_the_time_limit_includes_the_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_WHOLE_TIMEOUT", 0.5)
    body = BUILD.encode() + b'dnsprobe_queries_total{tree="a"} 1\n' * 400_000
    with serving(lambda: iter([OK, b"Content-Length: %d\r\n\r\n" % len(body), body])) as url:
        assert "within 0 seconds" in error_of(url).message
