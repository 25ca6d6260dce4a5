"""The HTTP server: metrics for Prometheus, two checks, and a page for people.

It serves many connections in the only event loop of the daemon, and clients may be idle, slow or hostile. So everything
that a client can use up has a limit: connections, bytes of a request, bytes of unread responses, and time. At a limit,
the client that has used its place for the longest is closed, and no other client waits for long.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from tornado import httputil
from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters

from dnsprobe.sinks.metrics import Registry
from dnsprobe.web import listener, peers
from dnsprobe.web.clients import Client, Clients
from dnsprobe.web.origin import Origin, of_other_site
from dnsprobe.web.passwords import Verdict
from dnsprobe.web.protection import Protection
from dnsprobe.web.responses import PAGE, Exchange, Kind, Response, ResponseQueue, plain

if TYPE_CHECKING:
    from dnsprobe.web.page import Page

_MAX_HEADER = 16 * 1024
#: No request needs a body. A small one is read and ignored, so that its sender can read the answer.
_MAX_BODY = 4 * 1024
_READ_CHUNK = 4 * 1024
#: What the kernel keeps of a response that a client does not read, at most net.core.wmem_max. By itself, it would take
#: up to 4 MiB for each client.
_SEND_BUFFER = 208 * 1024

#: Seconds until a connection is closed that sends no complete request: it is idle, or slow to send its headers.
_REQUEST_TIMEOUT = 75.0
_BODY_TIMEOUT = 5.0
#: Seconds that clients get to read their responses when the server stops.
_STOP_SECONDS = 2.0


class Server(httputil.HTTPServerConnectionDelegate):
    """Serves metrics, readiness and the page to at most ``connections`` clients at a time.

    ``unready`` returns why ``/-/ready`` answers 503; if it is empty, the answer is 200. ``remark`` returns what the
    answer 200 adds to ``ready``; it may be empty. ``page`` returns the data of the page; None switches the page off.
    ``protection`` has the web configuration; None is plain HTTP without passwords. ``origin`` decides which names the
    server has; None means those of this host. ``when_collected`` calls a function once the counts for metrics and page
    include all queries up to now.
    """

    def __init__(
        self,
        registry: Registry,
        unready: Callable[[], str],
        connections: int,
        page: Callable[[], Page] | None = None,
        protection: Protection | None = None,
        origin: Origin | None = None,
        when_collected: Callable[[Callable[[], None]], None] = lambda call: call(),
        remark: Callable[[], str] = lambda: "",
    ) -> None:
        self.protection = protection or Protection()
        self._origin = origin or Origin()
        self._registry, self._when_collected = registry, when_collected
        self._unready, self._remark = unready, remark
        self._page = page
        self._parameters = HTTP1ConnectionParameters(
            chunk_size=_READ_CHUNK,
            max_header_size=_MAX_HEADER,
            header_timeout=_REQUEST_TIMEOUT,
            max_body_size=_MAX_BODY,
            body_timeout=_BODY_TIMEOUT,
        )
        self._listener: socket.socket | None = None
        self._acceptor: listener.Acceptor | None = None
        self._clients = Clients(connections)
        self._responses = ResponseQueue(self._clients, self._collect, self._send)

    def adopt(self, descriptor: int) -> None:
        """Use the listening socket that systemd passed as this descriptor. Raises UserError if it is something else."""
        self._listener = listener.inherited(descriptor)

    def bind(self, host: str, port: int, *, early: bool = False) -> None:
        """Listen on an address, as :func:`dnsprobe.web.listener.listen` does. Connections wait until :meth:`start`."""
        self._listener = listener.listen(host, port, early=early)

    @property
    def listening(self) -> bool:
        """Whether there is a listening socket."""
        return self._listener is not None

    def fileno(self) -> int:
        """Return the descriptor of the listening socket."""
        assert self._listener is not None
        return self._listener.fileno()

    def abandon(self) -> None:
        """Close the listening socket before :meth:`start`."""
        assert self._acceptor is None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @property
    def address(self) -> tuple[str, int]:
        """The address and port of the listening socket."""
        assert self._listener is not None
        host, port = self._listener.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Accept connections in the running loop."""
        assert self._listener is not None
        # Below errors, tornado logs bad requests, with words of their senders.
        logging.getLogger("tornado.general").setLevel(logging.ERROR)
        self._acceptor = listener.Acceptor(
            self._listener, self._clients.seconds_to_room, self._accepted, self._clients.drop_longest_idle
        )

    async def stop(self) -> None:
        """Accept no more clients, wait a moment until the last responses are read, and close all connections."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for client in list(self._clients.idle):
            self._clients.drop(client)
        until = time.monotonic() + _STOP_SECONDS
        while self._clients.busy and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(client.close() for client in list(self._clients.connected)))
        self._responses.close()
        self.protection.close()

    def _accepted(self, connection: socket.socket, address: str) -> None:
        try:
            name = peers.name_of(connection, address)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            stream = self.protection.stream(connection, _MAX_HEADER + _MAX_BODY, _READ_CHUNK)
        except OSError:
            connection.close()
            return
        client = Client(stream, self._parameters, name)
        # During its TLS handshake, a client is idle like one that sends no request, so the same limits apply.
        self._clients.set_idle(client)
        client.start_serving(self)

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Wait for a request of a client: it is new, or it has read its last response."""
        client = cast(Client, server_conn)
        self._clients.set_idle(client)
        self._client_changed()
        return Exchange(client, cast(HTTP1Connection, request_conn), self._authenticate)

    def on_close(self, server_conn: object) -> None:
        """Forget a client whose connection has ended."""
        self._clients.remove(cast(Client, server_conn))
        self._client_changed()

    def _client_changed(self) -> None:
        self._responses.schedule()
        if self._acceptor is not None:
            self._acceptor.end_pause()

    def _authenticate(self, exchange: Exchange) -> None:
        client = exchange.client
        if not self._clients.set_busy(client):
            return
        refusal = self._refusal(exchange)
        if refusal is not None:
            self._responses.put_small(exchange, refusal)
        else:
            self.protection.authenticate(
                exchange.headers.get("Authorization", ""),
                str(client.context),
                lambda verdict: self._answer(exchange, verdict),
                lambda: not client.stream.closed(),
            )

    def _refusal(self, exchange: Exchange) -> Response | None:
        """Return the response to a request that another web site may have made, else None."""
        if of_other_site(exchange.headers):
            return plain(HTTPStatus.FORBIDDEN, "requests of other web sites are refused")
        # A site that takes over a name has neither the certificate nor the password for it.
        if self.protection.scheme == "https" or self.protection.asks_for_password:
            return None
        local_address = exchange.client.stream.socket.getsockname()[0]
        if self._origin.good_host(exchange.headers.get("Host"), local_address):
            return None
        return plain(HTTPStatus.MISDIRECTED_REQUEST, "not a name of this server: see metrics.hosts of dnsprobe")

    def _answer(self, exchange: Exchange, verdict: Verdict) -> None:
        if exchange.client.stream.closed():
            return
        kind = self._kind(exchange)
        if verdict is not Verdict.GOOD:
            self._responses.put_small(exchange, _denial(verdict))
        elif exchange.method not in {"GET", "HEAD"}:
            refusal = plain(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", Allow="GET, HEAD")
            self._responses.put_small(exchange, refusal)
        elif kind is not None:
            # A page that is fresh needs no counts, so those who load it in a loop do not delay the counts of a scrape.
            if kind != PAGE or not self._responses.put_fresh_page(exchange):
                self._when_collected(lambda: self._responses.put(exchange, kind))
        else:
            self._responses.put_small(exchange, self._check(exchange.path))

    def _kind(self, exchange: Exchange) -> Kind | None:
        """Return the kind of large response that a request asks for, None if it asks for something else."""
        if exchange.path == "/metrics":
            return "/metrics", self._registry.content_type(exchange.headers.get("Accept", ""))
        return PAGE if exchange.path == "/" and self._page is not None else None

    def _check(self, path: str) -> Response:
        if path == "/-/healthy":
            return plain(HTTPStatus.OK, "healthy")
        if path == "/-/ready":
            return self._readiness()
        return plain(HTTPStatus.NOT_FOUND, "not found")

    def _readiness(self) -> Response:
        if unready := self._unready():
            return plain(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {unready}")
        remark = self._remark()
        return plain(HTTPStatus.OK, f"ready; {remark}" if remark else "ready")

    def _collect(self, exchange: Exchange) -> Response:
        if exchange.path == "/" and self._page is not None:
            from dnsprobe.web import page  # noqa: PLC0415 - start-up time and memory: many never open the page

            body, content_type = page.render(self._page()), page.CONTENT_TYPE
            headers = {"Vary": "Accept-Encoding", **page.HEADERS}
        else:
            body, content_type = self._registry.encode(exchange.headers.get("Accept", ""))
            headers = {"Vary": "Accept, Accept-Encoding"}
        return Response(HTTPStatus.OK, content_type, body, headers)

    def _send(self, exchange: Exchange, response: Response) -> None:
        self._clients.set_unread(exchange.client, response.body)
        exchange.respond(response, self.protection.headers)


def _denial(verdict: Verdict) -> Response:
    """Return the response to a request whose password is wrong or cannot be verified now."""
    if verdict is Verdict.BUSY:
        text = "too many passwords wait to be verified"
        return plain(HTTPStatus.TOO_MANY_REQUESTS, text, **{"Retry-After": "1"})
    challenge = {"WWW-Authenticate": 'Basic realm="dnsprobe", charset="UTF-8"'}
    return plain(HTTPStatus.UNAUTHORIZED, "unauthorized", **challenge)
