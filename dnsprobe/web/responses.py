"""Requests and responses of the HTTP server. Large responses are made one at a time, and only if memory allows it."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import cast

from tornado import httputil
from tornado.http1connection import HTTP1Connection

from dnsprobe import __version__
from dnsprobe.web.clients import Client, Clients

_log = logging.getLogger(__name__)

#: While more bytes than this wait to be read by clients, no further large response is made.
_MAX_UNREAD = 16 * 1024 * 1024
#: Seconds after which the slowest reader is closed if other clients wait because of this limit.
_UNREAD_GRACE = 2.0
#: Level 4 makes a scrape of many series 2 % smaller, but takes a third more time, during which the loop does nothing
#: else.
_GZIP_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Response:
    """A response without the headers that all responses have."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def plain(status: HTTPStatus, text: str, **headers: str) -> Response:
    """Return a response with one line of text."""
    return Response(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers)


def compressed(response: Response, request_headers: httputil.HTTPHeaders) -> Response:
    """Return a response compressed by gzip if the request accepts that."""
    if not _accepts_gzip(request_headers.get("Accept-Encoding", "")):
        return response
    body = gzip.compress(response.body, _GZIP_LEVEL)
    return replace(response, body=body, headers={**response.headers, "Content-Encoding": "gzip"})


def _accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an Accept-Encoding allows gzip (RFC 9110, section 12.5.3): with any weight except zero."""
    for item in accept_encoding.lower().split(","):
        coding, _, weight = item.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "").rstrip("0") not in {"q=", "q=0."}
    return False


class Exchange(httputil.HTTPMessageDelegate):
    """One request of a client, and its response. ``answer`` is called when the request was read completely."""

    def __init__(self, client: Client, connection: HTTP1Connection, answer: Callable[[Exchange], None]) -> None:
        self.client = client
        self._connection = connection
        self._answer = answer
        self.method = ""
        self.path = ""
        self.headers = httputil.HTTPHeaders()

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> None:
        """Keep method, path and headers of the request."""
        request = cast(httputil.RequestStartLine, start_line)
        self.method = request.method
        self.path = request.path.partition("?")[0]
        self.headers = headers
        if "Transfer-Encoding" in headers:
            # Otherwise tornado logs a traceback for a body with broken chunks.
            stream = self._connection.detach()
            stream.write(b"HTTP/1.1 411 Length Required\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            stream.close()

    def data_received(self, chunk: bytes) -> None:
        """Ignore the body."""

    def finish(self) -> None:
        """Answer the request."""
        self._answer(self)

    def respond(self, response: Response, headers: Mapping[str, str]) -> None:
        """Write a response, with headers of the web configuration.

        The client has read it when its next request begins or its connection ends.
        """
        all_headers = httputil.HTTPHeaders(
            {
                "Content-Type": response.content_type,
                "Content-Length": str(len(response.body)),
                "Date": httputil.format_timestamp(time.time()),
                "Server": f"dnsprobe/{__version__}",
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                **headers,
                **response.headers,
            }
        )
        start = httputil.ResponseStartLine("HTTP/1.1", response.status.value, response.status.phrase)
        self._connection.write_headers(start, all_headers, None if self.method == "HEAD" else response.body)
        self._connection.finish()


class ResponseQueue:
    """Makes the large responses (metrics and page) one at a time, in the order of their requests.

    Between two of them the loop does its other work. While too many bytes wait for slow readers, the queue waits too,
    and closes the slowest reader after a while. ``make`` returns a response, ``send`` sends it.
    """

    def __init__(
        self, clients: Clients, make: Callable[[Exchange], Response], send: Callable[[Exchange, Response], None]
    ) -> None:
        self._clients = clients
        self._make = make
        self._send = send
        self.waiting: deque[Exchange] = deque()
        self._next: asyncio.Handle | None = None
        #: Runs :meth:`_close_slowest_reader` while responses wait.
        self._grace_timer: asyncio.TimerHandle | None = None

    def put(self, exchange: Exchange) -> None:
        """Make and send the response to a request as soon as possible."""
        self.waiting.append(exchange)
        self.schedule()

    def schedule(self) -> None:
        """Continue in the next round of the loop: a request has come, or a response was read."""
        if self.waiting and self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._respond_to_next)

    def close(self) -> None:
        """Close no more slow readers."""
        if self._grace_timer is not None:
            self._grace_timer.cancel()

    def _respond_to_next(self) -> None:
        self._next = None
        while self.waiting and self._clients.unread_bytes < _MAX_UNREAD:
            exchange = self.waiting.popleft()
            if exchange.client.stream.closed():
                continue
            self._send(exchange, self._make_or_report(exchange))
            self.schedule()
            return
        if self.waiting and self._grace_timer is None:
            self._grace_timer = asyncio.get_running_loop().call_later(_UNREAD_GRACE, self._close_slowest_reader)

    def _make_or_report(self, exchange: Exchange) -> Response:
        try:
            return self._make(exchange)
        except Exception:  # an error in one metric must not end the daemon
            what = "metrics" if exchange.path == "/metrics" else "page"
            _log.exception("cannot collect the %s", what)
            return plain(HTTPStatus.INTERNAL_SERVER_ERROR, f"cannot collect the {what}: see the log of dnsprobe")

    def _close_slowest_reader(self) -> None:
        self._grace_timer = None
        if self.waiting and self._clients.unread_bytes >= _MAX_UNREAD:
            self._clients.drop_slowest_reader()
        self.schedule()
