"""Requests and responses of the HTTP server. Large responses are made once for all who wait, if memory allows it."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from math import inf
from typing import cast

from tornado import httputil
from tornado.http1connection import HTTP1Connection

from dnsprobe import __version__
from dnsprobe.web.clients import Client, Clients

_log = logging.getLogger(__name__)

#: While more bytes than this wait to be read by clients, no further large response is made. A response that clients
#: share counts once.
_MAX_UNREAD = 64 * 1024 * 1024
#: Seconds for which a slow reader is not closed if other clients wait because of this limit.
_UNREAD_GRACE = 1.0
#: Seconds for which the same page is shown to all who ask.
PAGE_AGE = 1.0
#: Seconds after which a page no longer waits for all scrapes.
_PATIENCE = 1.0
#: The longest rest after a rendering, in seconds.
_MAX_REST = 0.1
#: How many small responses, or copies of the page, are sent in one round of the loop.
_BURST = 16
#: A larger body is not copied for each client.
_LARGE_BODY = 16 * 1024
#: How many clients are remembered for the order of scrapes.
_MAX_TURNS = 1024
#: A client with more scrapes than this at a time gets the other responses spread over a pause, in which it has no
#: further turn. The pause is _PAUSE times as long as the rendering took. If the responses take longer at _RATE octets a
#: second, it is as long as that, but at most _MAX_PAUSE seconds.
_FEW_SCRAPES = 4
_PAUSE = 4.0
_RATE = 64 * 1024 * 1024
_MAX_PAUSE = 5.0
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

    @property
    def client_name(self) -> str:
        """The user or the network of the client, as :func:`dnsprobe.web.peers.name_of` returns it."""
        return str(self.client.context)

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
                "Cross-Origin-Resource-Policy": "same-origin",
                **headers,
                **response.headers,
            }
        )
        start = httputil.ResponseStartLine("HTTP/1.1", response.status.value, response.status.phrase)
        if self.method == "HEAD":
            self._connection.write_headers(start, all_headers)
        elif len(response.body) <= _LARGE_BODY:
            self._connection.write_headers(start, all_headers, response.body)
        else:
            # Together with the headers, tornado would copy the body for each client.
            self._connection.write_headers(start, all_headers)
            self._connection.write(response.body)
        self._connection.finish()


#: What a large response shows: a path, and the format of the metrics ("" for the page).
Kind = tuple[str, str]

#: The kind of the page.
PAGE: Kind = ("/", "")


@dataclass(slots=True)
class Rendered:
    """A large response that many clients share. It is compressed once, for the first client that accepts that."""

    plain: Response
    zipped: Response | None = None

    def response_for(self, exchange: Exchange) -> Response:
        """Return the response for a request, compressed if the request accepts that."""
        if not _accepts_gzip(exchange.headers.get("Accept-Encoding", "")):
            return self.plain
        if self.zipped is None:
            headers = {**self.plain.headers, "Content-Encoding": "gzip"}
            self.zipped = replace(self.plain, body=gzip.compress(self.plain.body, _GZIP_LEVEL), headers=headers)
        return self.zipped


@dataclass(frozen=True, slots=True)
class _Turn:
    """A number that grows from turn to turn of any client, and when the next turn is, in seconds of the loop."""

    number: int = 0
    next: float = 0.0


class _Turns:
    """When the scrapes of which clients were served, and when they are next."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, _Turn] = OrderedDict()
        self._count = 0

    def of(self, exchange: Exchange) -> _Turn:
        """Return the last turn of a client; an empty one if it was not served for long."""
        return self._turns.get(exchange.client_name, _Turn())

    def last(self, exchange: Exchange) -> int:
        """Return a number that is larger for a client that was served later; 0 if it was not served for long."""
        return self.of(exchange).number

    def note(self, client_name: str, next_turn: float) -> None:
        """Note that a client is served, and when its next turn is."""
        self._count += 1
        self._turns[client_name] = _Turn(self._count, next_turn)
        self._turns.move_to_end(client_name)
        if len(self._turns) > _MAX_TURNS:
            self._turns.popitem(last=False)


class ResponseQueue:
    """Makes the large responses, and sends all responses, so that no client waits for long because of the others.

    - All requests that wait for the metrics in the same format share one rendering. It begins after the last of these
      requests was read, so a scrape never shows counts from before its request.
    - Requests for the page share one rendering too, and one that is at most ``page_age`` seconds old. If the page takes
      long to render, it is shown for longer: rendering pages takes at most a tenth of the time.
    - A client that asks for the metrics many times at once gets the responses one after the other, then has its next
      turn: see _FEW_SCRAPES. If another client asks for the same format meanwhile, they share that rendering.
    - Small responses come first, a few in each round of the loop. Metrics come before pages; a page that has waited for
      _PATIENCE takes turns with them.
    - After a rendering, the loop does its other work for as long as the rendering took, and reads further requests.
    - While too many bytes wait for slow readers, the queue waits too, and closes the slowest readers.

    ``make`` renders a response for the first of the requests that share it. ``send`` sends a response.
    """

    def __init__(
        self,
        clients: Clients,
        make: Callable[[Exchange], Response],
        send: Callable[[Exchange, Response], None],
        page_age: float = PAGE_AGE,
    ) -> None:
        self._clients = clients
        self._make = make
        self._send = send
        self._page_age = page_age
        self._scrapes: dict[Kind, list[Exchange]] = {}
        #: Requests for the page, since when (in seconds of the loop), and the page that was fresh at that time.
        self._pages: deque[tuple[Exchange, float, Rendered | None]] = deque()
        self._small: deque[tuple[Exchange, Response]] = deque()
        self._turns = _Turns()
        #: The last page, and until when (in seconds of the loop) it is shown.
        self._page: tuple[Rendered, float] | None = None
        self._next: asyncio.Handle | None = None
        #: Whether scrapes wait for pages that have waited for long, in this turn.
        self._page_first = False
        #: Until when (in seconds of the loop) nothing is rendered.
        self._rest_until = 0.0
        #: Calls :meth:`schedule` at the end of a rest, or when a slow reader can be closed.
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a large response."""
        return sum(map(len, self._scrapes.values())) + len(self._pages)

    def put(self, exchange: Exchange, kind: Kind) -> None:
        """Make and send the large response to a request as soon as possible."""
        if kind == PAGE:
            self._pages.append((exchange, self._now(), None))
        else:
            self._scrapes.setdefault(kind, []).append(exchange)
        self.schedule()

    def put_fresh_page(self, exchange: Exchange) -> bool:
        """Send the last page as soon as possible if it is fresh now; return whether it is."""
        if self._page is None or not self._page_is_fresh():
            return False
        self._pages.append((exchange, self._now(), self._page[0]))
        self.schedule()
        return True

    def put_small(self, exchange: Exchange, response: Response) -> None:
        """Send a small response as soon as possible."""
        self._small.append((exchange, response))
        self.schedule()

    def schedule(self) -> None:
        """Continue in the next round of the loop: a request has come, or a response was read."""
        if (self._scrapes or self._pages or self._small) and self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._respond)

    def close(self) -> None:
        """Make no more responses."""
        for handle in (self._next, self._timer):
            if handle is not None:
                handle.cancel()

    def _schedule_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.schedule)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _respond(self) -> None:
        """Send some responses, and at most one that has to be rendered."""
        self._next = None
        for _ in range(min(_BURST, len(self._small))):
            exchange, response = self._small.popleft()
            if not exchange.client.stream.closed():
                self._send(exchange, response)
        self._forget_closed()
        seconds = self._seconds_to_large() if self._scrapes or self._pages else 0.0
        if not seconds:
            self._send_large()
        if self._small or not seconds:
            self.schedule()
        else:
            self._schedule_in(seconds)

    def _seconds_to_large(self) -> float:
        """Return 0 if a large response can be sent now, else the seconds to wait. May close slow readers."""
        seconds = self._clients.drop_slow_readers(_MAX_UNREAD, _UNREAD_GRACE)
        turn = min(map(self._next_turn, self._scrapes.values()), default=inf)
        if seconds or (self._pages and turn > self._now() and (self._pages[0][2] or self._page_is_fresh())):
            return seconds
        return max(0.0, self._rest_until - self._now(), 0.0 if self._pages else turn - self._now())

    def _next_turn(self, exchanges: Sequence[Exchange]) -> float:
        """Return when the next turn of one of the clients is, in seconds of the loop."""
        return min(self._turns.of(exchange).next for exchange in exchanges)

    def _send_large(self) -> None:
        due = [kind for kind, exchanges in self._scrapes.items() if self._next_turn(exchanges) <= self._now()]
        if self._pages and (not due or self._page_first):
            self._page_first = False
            self._show_page()
        elif due:
            self._answer_scrapes(due)
            self._page_first = bool(self._pages) and self._pages[0][1] < self._now() - _PATIENCE

    def _page_is_fresh(self) -> bool:
        return self._page is not None and self._now() < self._page[1]

    def _forget_closed(self) -> None:
        for kind, exchanges in list(self._scrapes.items()):
            self._scrapes[kind] = [exchange for exchange in exchanges if not exchange.client.stream.closed()]
            if not self._scrapes[kind]:
                del self._scrapes[kind]
        while self._pages and self._pages[0][0].client.stream.closed():
            self._pages.popleft()

    def _answer_scrapes(self, kinds: Sequence[Kind]) -> None:
        """Render one of these kinds, and send it to all who ask for it.

        It is the one that the client asks for that was not served for the longest.
        """
        kind = min(kinds, key=lambda kind: min(map(self._turns.last, self._scrapes[kind])))
        exchanges = sorted(self._scrapes.pop(kind), key=self._turns.last)
        began = self._now()
        rendered = self._render(exchanges[0])
        seconds = self._now() - began
        responses: defaultdict[str, list[tuple[Exchange, Response]]] = defaultdict(list)
        for exchange in exchanges:
            responses[exchange.client_name].append((exchange, rendered.response_for(exchange)))
        for client_name, of_client in responses.items():
            self._turns.note(client_name, self._send_evenly(of_client, seconds))

    def _send_evenly(self, responses: Sequence[tuple[Exchange, Response]], seconds: float) -> float:
        """Send the responses to a client, the first ones now; return when its next turn is, in seconds of the loop.

        ``seconds`` is how long they took to render.
        """
        loop = asyncio.get_running_loop()
        pause = max(_PAUSE * seconds, sum(len(response.body) for _, response in responses) / _RATE)
        step = min(pause, _MAX_PAUSE) / len(responses)
        for number, (exchange, response) in enumerate(responses):
            if number < _FEW_SCRAPES or not step:
                self._send(exchange, response)
            else:
                loop.call_later(step * number, self._send_later, exchange, response)
        return self._now() + (step * len(responses) if len(responses) > _FEW_SCRAPES else 0.0)

    def _send_later(self, exchange: Exchange, response: Response) -> None:
        if not exchange.client.stream.closed():
            self._send(exchange, response)

    def _show_page(self) -> None:
        """Send the page to the first who ask for it, after rendering it if the last one is too old."""
        for _ in range(min(_BURST, len(self._pages))):
            exchange, _, rendered = self._pages.popleft()
            if not exchange.client.stream.closed():
                rendered = rendered or self._current_page(exchange)
                self._send(exchange, rendered.response_for(exchange))

    def _current_page(self, exchange: Exchange) -> Rendered:
        if self._page is None or not self._page_is_fresh():
            began = self._now()
            rendered = self._render(exchange)
            self._page = rendered, began + max(self._page_age, 10 * (self._now() - began))
        return self._page[0]

    def _render(self, exchange: Exchange) -> Rendered:
        began = self._now()
        try:
            return Rendered(self._make(exchange))
        except Exception as error:  # an error in one metric must not end the daemon
            what = "metrics" if exchange.path == "/metrics" else "page"
            if isinstance(error, OSError):  # the kernel refuses to read a map
                _log.warning("cannot collect the %s: %s", what, error.strerror or error)
            else:
                _log.exception("cannot collect the %s", what)
            text = f"cannot collect the {what}: see the log of dnsprobe"
            return Rendered(plain(HTTPStatus.INTERNAL_SERVER_ERROR, text))
        finally:
            now = self._now()
            self._rest_until = now + min(now - began, _MAX_REST)
