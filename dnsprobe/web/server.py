"""The HTTP side: metrics for Prometheus, two checks, and a page for people.

It serves many connections in the daemon's only loop, and clients may be idle, slow or hostile. So everything that a
client can make grow has a bound: connections, bytes of a request, bytes of responses that wait to be read, and time.
At a bound, whoever has held on for the longest gives way, and no one else's scrape waits for long.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import cast

from tornado import httputil
from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters, HTTP1ServerConnection

from dnsprobe import __version__
from dnsprobe.errors import UserError
from dnsprobe.sinks.metrics import Registry
from dnsprobe.web.page import CONTENT_TYPE, HEADERS, Page, render
from dnsprobe.web.passwords import Verdict
from dnsprobe.web.protection import Protection

_log = logging.getLogger(__name__)

_BACKLOG = 1024
#: include/uapi/linux/in.h; for IPv6 sockets too (net/ipv6/ipv6_sockglue.c asks for the same flag).
_IP_FREEBIND = 15
_MAX_HEADER = 16 * 1024
#: No request needs a body; a small one is read and ignored, so that its sender gets to read the answer.
_MAX_BODY = 4 * 1024
_READ_CHUNK = 4 * 1024

#: Seconds until a connection is closed that does not come up with a whole request: idle, or slow in its headers.
_REQUEST_TIMEOUT = 75.0
_BODY_TIMEOUT = 5.0
#: Seconds until a connection is closed whose client does not read its response.
_RESPONSE_TIMEOUT = 30.0

#: Where there is no room: seconds for which a connection without a request, or with one, is safe from being closed.
_IDLE_GRACE = 0.25
_BUSY_GRACE = 2.0
#: Bytes of responses that may wait for their readers before new ones are put off.
_MAX_UNREAD = 16 * 1024 * 1024

#: At level 4 a scrape of many series becomes 2 % smaller in a third more time, in which the loop does nothing else.
_GZIP_LEVEL = 3

_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Response:
    status: HTTPStatus
    content_type: str
    body: bytes
    headers: dict[str, str]


def _plain(status: HTTPStatus, text: str, **headers: str) -> _Response:
    return _Response(status, _PLAIN, f"{text}\n".encode(), headers)


def _takes_gzip(accept_encoding: str) -> bool:
    """Tell whether an Accept-Encoding allows gzip (RFC 9110, section 12.5.3); weights count as yes, except zero."""
    for item in accept_encoding.lower().split(","):
        coding, _, weight = item.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "").rstrip("0") not in {"q=", "q=0."}
    return False


def _zipped(response: _Response, headers: httputil.HTTPHeaders) -> _Response:
    """Return a response compressed, for a request that allows it."""
    if not _takes_gzip(headers.get("Accept-Encoding", "")):
        return response
    body = gzip.compress(response.body, _GZIP_LEVEL)
    return replace(response, body=body, headers={**response.headers, "Content-Encoding": "gzip"})


def _metrics(registry: Registry, headers: httputil.HTTPHeaders) -> _Response:
    body, content_type = registry.encode(headers.get("Accept", ""))
    more = {"Vary": "Accept, Accept-Encoding"}
    return _zipped(_Response(HTTPStatus.OK, content_type, body, more), headers)


def _page(now: Page, headers: httputil.HTTPHeaders) -> _Response:
    more = {"Vary": "Accept-Encoding", **HEADERS}
    return _zipped(_Response(HTTPStatus.OK, CONTENT_TYPE, render(now), more), headers)


class _Exchange(httputil.HTTPMessageDelegate):
    """One request of a connection, from its headers to its response."""

    def __init__(self, server: Server, client: HTTP1ServerConnection, connection: HTTP1Connection) -> None:
        self._server = server
        self.client = client
        self._connection = connection
        self.method = ""
        self.path = ""
        self.headers = httputil.HTTPHeaders()

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> None:
        request = cast(httputil.RequestStartLine, start_line)
        self.method = request.method
        self.path = request.path.partition("?")[0]
        self.headers = headers
        if "Transfer-Encoding" in headers:
            # Left to tornado, a body in broken chunks ends as a traceback in the log.
            stream = self._connection.detach()
            stream.write(b"HTTP/1.1 411 Length Required\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            stream.close()

    def data_received(self, chunk: bytes) -> None:
        """Ignore what is in a body."""

    def finish(self) -> None:
        self._server.answer(self)

    def respond(self, response: _Response) -> None:
        """Write a response; its end shows as the connection's next request or as its close."""
        headers = httputil.HTTPHeaders(
            {
                "Content-Type": response.content_type,
                "Content-Length": str(len(response.body)),
                "Date": httputil.format_timestamp(time.time()),
                "Server": f"dnsprobe/{__version__}",
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                **self._server.protection.headers,
                **response.headers,
            }
        )
        start = httputil.ResponseStartLine("HTTP/1.1", response.status.value, response.status.phrase)
        self._connection.write_headers(start, headers, None if self.method == "HEAD" else response.body)
        self._connection.finish()


@dataclass(slots=True)
class _Unread:
    size: int
    deadline: asyncio.TimerHandle


class Server(httputil.HTTPServerConnectionDelegate):
    """Serves ``registry`` and the answer of ``ready`` over HTTP, to at most ``connections`` clients at a time.

    ``page`` gives what the page for people shows; without it there is none.

    At that bound, a new client takes the place of the one that has been without a request for the longest, or, if all
    have one, of the one whose request is the oldest.
    """

    def __init__(
        self,
        registry: Registry,
        ready: Callable[[], bool],
        connections: int,
        page: Callable[[], Page] | None = None,
        protection: Protection | None = None,
    ) -> None:
        self.protection = protection or Protection()
        self._registry = registry
        self._ready = ready
        self._page = page
        self._limit = connections
        self._parameters = HTTP1ConnectionParameters(
            chunk_size=_READ_CHUNK,
            max_header_size=_MAX_HEADER,
            header_timeout=_REQUEST_TIMEOUT,
            max_body_size=_MAX_BODY,
            body_timeout=_BODY_TIMEOUT,
        )
        self._socket: socket.socket | None = None
        self._accepting = False
        self._pause: asyncio.TimerHandle | None = None
        self._relief: asyncio.TimerHandle | None = None
        self._clients: set[HTTP1ServerConnection] = set()
        # When each of them began to be so, in seconds of the loop; the longest first. A client that was told to close
        # is in neither.
        self._idle: dict[HTTP1ServerConnection, float] = {}
        self._busy: dict[HTTP1ServerConnection, float] = {}
        self._unread: dict[HTTP1ServerConnection, _Unread] = {}
        self._unread_bytes = 0
        self._put_off: deque[_Exchange] = deque()
        self._serving: asyncio.Handle | None = None

    def adopt(self, descriptor: int) -> None:
        """Take a listening socket that is there already, as systemd passes it. Raises UserError if it is none."""
        try:
            listener = socket.socket(fileno=descriptor)
            kind = (listener.type, listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except OSError as error:
            raise UserError(f"descriptor {descriptor} from systemd is no socket: {error.strerror}") from error
        if listener.family not in {socket.AF_INET, socket.AF_INET6} or kind != (socket.SOCK_STREAM, 1):
            raise UserError(
                f"descriptor {descriptor} from systemd is not a TCP socket that listens",
                "dnsprobe.socket has to have ListenStream=ADDRESS:PORT, and Accept=no",
            )
        listener.setblocking(False)
        self._socket = listener

    def bind(self, host: str, port: int, *, early: bool = False) -> None:
        """Take an address, without serving it yet; port 0 takes any that is free. Raises UserError if that fails.

        ``early`` allows an address that no interface has yet: at boot, the network comes later.
        """
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise UserError(f"cannot listen on {shown}: {error}", "metrics.listen has to be ADDRESS:PORT") from error
        failure: OSError | None = None
        for family, kind, protocol, _, address in addresses:
            try:
                listener = socket.socket(family, kind, protocol)
            except OSError as error:  # booted with ipv6.disable=1
                failure = failure or error
                continue
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    # Whatever net.ipv6.bindv6only says, [::] is all addresses, those of IPv4 too.
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                try:
                    listener.bind(address)
                except OSError as error:
                    if not early or error.errno != errno.EADDRNOTAVAIL:
                        raise
                    _log.warning("no interface has %s yet: /metrics can be asked for once one has", host)
                    listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                    listener.bind(address)
                # Now, because of two that share an address thanks to SO_REUSEADDR the second fails only here.
                listener.listen(_BACKLOG)
            except OSError as error:
                listener.close()
                failure = failure or error
            else:
                listener.setblocking(False)
                self._socket = listener
                return
        assert failure is not None  # getaddrinfo gives at least one address
        hint = {
            errno.EADDRINUSE: f"see who has the port: ss -ltnp 'sport = :{port}'",
            errno.EADDRNOTAVAIL: "see this host's addresses: ip address",
            errno.EACCES: "take a port above 1023, or grant CAP_NET_BIND_SERVICE",
            errno.EAFNOSUPPORT: "the kernel has no IPv6 here: take an IPv4 address",
        }.get(failure.errno or 0, "")
        raise UserError(f"cannot listen on {shown}: {failure.strerror}", hint) from failure

    @property
    def address(self) -> tuple[str, int]:
        """The address and port taken by :meth:`bind` or :meth:`adopt`."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Serve the address in the running loop."""
        # What tornado reports below errors is what strangers send, in their words.
        logging.getLogger("tornado.general").setLevel(logging.ERROR)
        self._resume()

    async def stop(self) -> None:
        """Take no new clients, give the last responses a moment, and close all connections."""
        if self._socket is not None:
            self._hold()
            self._socket.close()
            self._socket = None
        for client in list(self._idle):
            self._drop(client)
        until = time.monotonic() + _BUSY_GRACE
        while self._busy and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(client.close() for client in list(self._clients)))
        if self._relief is not None:
            self._relief.cancel()
        self.protection.close()

    # Clients: accepted, idle, busy, gone

    def _resume(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._socket is not None and not self._accepting:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)
            self._accepting = True

    def _hold(self, seconds: float | None = None) -> None:
        loop = asyncio.get_running_loop()
        if self._socket is not None and self._accepting:
            loop.remove_reader(self._socket)
            self._accepting = False
        if self._pause is not None:
            self._pause.cancel()
        self._pause = None if seconds is None else loop.call_later(seconds, self._resume)

    def _accept(self) -> None:
        # One at a time: the loop gets to the requests of those who came before, so a flood does not push them out.
        assert self._socket is not None
        wait = self._make_room()
        if wait:
            self._hold(wait)
            return
        try:
            connection, address = self._socket.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                # The client stays in the backlog, so without a pause the loop would spin.
                if self._idle:
                    self._drop(next(iter(self._idle)))
                self._hold(_IDLE_GRACE)
            return  # anything else is the client's, who is gone already
        try:
            # A handshake of TLS is like a request that does not come: its client is idle, in the same bounds.
            stream = self.protection.stream(connection, _MAX_HEADER + _MAX_BODY, _READ_CHUNK)
        except OSError:
            connection.close()
            return
        client = HTTP1ServerConnection(stream, self._parameters, address[0])
        self._clients.add(client)
        self._idle[client] = asyncio.get_running_loop().time()
        client.start_serving(self)

    def _make_room(self) -> float:
        """Return 0.0 where one more client has room, after closing another if need be; else seconds to wait."""
        if len(self._idle) + len(self._busy) < self._limit:
            return 0.0
        held, grace = (self._idle, _IDLE_GRACE) if self._idle else (self._busy, _BUSY_GRACE)
        client, since = next(iter(held.items()))
        wait = since + grace - asyncio.get_running_loop().time()
        if wait > 0:
            return wait
        self._drop(client)
        return 0.0

    def _drop(self, client: HTTP1ServerConnection) -> None:
        self._forget(client)
        client.stream.close()

    def _forget(self, client: HTTP1ServerConnection) -> None:
        self._idle.pop(client, None)
        self._busy.pop(client, None)
        unread = self._unread.pop(client, None)
        if unread is not None:
            unread.deadline.cancel()
            self._unread_bytes -= unread.size

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Take a client as idle: it is new, or has read its last response."""
        client = cast(HTTP1ServerConnection, server_conn)
        self._forget(client)
        if not client.stream.closed():
            self._idle[client] = asyncio.get_running_loop().time()
        self._changed()
        return _Exchange(self, client, cast(HTTP1Connection, request_conn))

    def on_close(self, server_conn: object) -> None:
        """Forget a client whose connection has ended."""
        client = cast(HTTP1ServerConnection, server_conn)
        self._forget(client)
        self._clients.discard(client)
        self._changed()

    def _changed(self) -> None:
        self._serve_put_off()
        if self._pause is not None:
            self._resume()

    # Requests: answered at once, or put off while too much waits to be read

    def answer(self, exchange: _Exchange) -> None:
        """Answer a request that has been read."""
        client = exchange.client
        self._idle.pop(client, None)
        if client.stream.closed():
            return
        self._busy[client] = asyncio.get_running_loop().time()
        self.protection.admit(
            exchange.headers.get("Authorization", ""),
            str(client.context),
            lambda verdict: self._admit(exchange, verdict),
            lambda: not client.stream.closed(),
        )

    def _admit(self, exchange: _Exchange, verdict: Verdict) -> None:
        if exchange.client.stream.closed():
            return
        if verdict is Verdict.BAD:
            challenge = {"WWW-Authenticate": 'Basic realm="dnsprobe", charset="UTF-8"'}
            self._respond(exchange, _plain(HTTPStatus.UNAUTHORIZED, "unauthorized", **challenge))
        elif verdict is Verdict.BUSY:
            text = "too many passwords at a time"
            self._respond(exchange, _plain(HTTPStatus.TOO_MANY_REQUESTS, text, **{"Retry-After": "1"}))
        elif exchange.method not in {"GET", "HEAD"}:
            self._respond(exchange, _plain(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", Allow="GET, HEAD"))
        elif exchange.path == "/metrics" or (exchange.path == "/" and self._page is not None):
            self._put_off.append(exchange)
            self._serve_put_off()
        elif exchange.path == "/-/healthy":
            self._respond(exchange, _plain(HTTPStatus.OK, "healthy"))
        elif exchange.path == "/-/ready":
            ready = self._ready()
            self._respond(
                exchange,
                _plain(HTTPStatus.OK, "ready") if ready else _plain(HTTPStatus.SERVICE_UNAVAILABLE, "not ready"),
            )
        else:
            self._respond(exchange, _plain(HTTPStatus.NOT_FOUND, "not found"))

    def _serve_put_off(self) -> None:
        """Have what was put off served, one at a time: between two of them the loop does what else there is to do."""
        if self._put_off and self._serving is None:
            self._serving = asyncio.get_running_loop().call_soon(self._serve_next)

    def _serve_next(self) -> None:
        self._serving = None
        while self._put_off and self._unread_bytes < _MAX_UNREAD:
            exchange = self._put_off.popleft()
            if exchange.client.stream.closed():
                continue
            try:
                response = self._collect(exchange)
            except Exception:  # one bad metric must not end the daemon
                what = "metrics" if exchange.path == "/metrics" else "page"
                _log.exception("cannot collect the %s", what)
                response = _plain(HTTPStatus.INTERNAL_SERVER_ERROR, f"cannot collect the {what}: see dnsprobe's log")
            self._respond(exchange, response)
            self._serve_put_off()
            return
        if self._put_off and self._relief is None:
            self._relief = asyncio.get_running_loop().call_later(_BUSY_GRACE, self._relieve)

    def _collect(self, exchange: _Exchange) -> _Response:
        if exchange.path == "/" and self._page is not None:
            return _page(self._page(), exchange.headers)
        return _metrics(self._registry, exchange.headers)

    def _relieve(self) -> None:
        """Close whoever has not read its response for the longest, while others wait for theirs."""
        self._relief = None
        if self._put_off and self._unread_bytes >= _MAX_UNREAD:
            self._drop(next(iter(self._unread)))
        self._serve_put_off()

    def _respond(self, exchange: _Exchange, response: _Response) -> None:
        deadline = asyncio.get_running_loop().call_later(_RESPONSE_TIMEOUT, self._drop, exchange.client)
        self._unread[exchange.client] = _Unread(len(response.body), deadline)
        self._unread_bytes += len(response.body)
        exchange.respond(response)
