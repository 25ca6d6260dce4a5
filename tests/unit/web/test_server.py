"""The HTTP server, with real sockets on loopback, and with slow, idle and hostile clients."""

import asyncio
import gzip
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from async_http import PATIENCE, Answer, read_answer, run, until

from dnsprobe.errors import UserError
from dnsprobe.model import Series
from dnsprobe.sinks.metrics import Registry, Snapshot
from dnsprobe.web import clients, listener, peers, responses
from dnsprobe.web import server as web
from dnsprobe.web.origin import Origin
from dnsprobe.web.page import Page
from dnsprobe.web.server import Server

SNAPSHOT = Snapshot(counts={Series(".", "A", "udp", "remote", "dig", "bash;dig", "", ""): 42}, events=7)


def big_registry(megabytes: int = 8) -> Registry:
    """Return a registry whose metrics are larger than the kernel's buffers for a connection."""
    tree = "x" * 1_000_000
    counts = {Series(".", f"TYPE{number}", "udp", "remote", "x", tree, "", ""): 1 for number in range(megabytes)}
    return Registry(lambda: Snapshot(counts=counts))


@asynccontextmanager
async def serving(
    registry: Registry | None = None,
    unready: Callable[[], str] = lambda: "",
    connections: int = 128,
    page: Callable[[], Page] | None = lambda: Page(SNAPSHOT),
    origin: Origin | None = None,
) -> AsyncIterator[Server]:
    server = Server(registry or Registry(lambda: SNAPSHOT), unready, connections, page, origin=origin)
    server.bind("127.0.0.1", 0)
    server.start()
    try:
        yield server
    finally:
        await server.stop()


class Client:
    """One connection to the server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection(*self.server.address, limit=64 * 1024 * 1024)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def answer(self, head: bool = False) -> Answer:
        return await read_answer(self.reader, head=head)

    async def ask(self, path: str = "/metrics", method: str = "GET", more: str = "", body: bytes = b"") -> Answer:
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode() + body)
        return await self.answer(head=method == "HEAD")

    async def closed(self) -> bool:
        """Wait for the end of the connection; return True if no byte came before it."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True


async def ask(server: Server, path: str = "/metrics", method: str = "GET", more: str = "", body: bytes = b"") -> Answer:
    async with Client(server) as client:
        return await client.ask(path, method, more, body)


def test_metrics_are_served_as_text() -> None:
    async def test() -> None:
        async with serving() as server:
            answer = await ask(server)
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert b"\ndnsprobe_events_total 7.0\n" in answer.body
            assert b"\nprocess_resident_memory_bytes " in answer.body
            assert "content-encoding" not in answer.headers
            assert (await ask(server, "/metrics?x=y")).status == 200

    run(test)


def test_openmetrics_are_served_on_request() -> None:
    async def test() -> None:
        async with serving() as server:
            accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n"
            answer = await ask(server, more=accept)
            assert answer.headers["content-type"].startswith("application/openmetrics-text; version=")
            assert answer.body.endswith(b"\n# EOF\n")

    run(test)


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip; q=1.0", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0.001", True),
        ("br", False),
        ("gzippy", False),
        ("", False),
    ],
)
def test_a_response_is_compressed_if_accepted(accepted: str, zipped: bool) -> None:
    async def test() -> None:
        async with serving() as server:
            answer = await ask(server, more=f"Accept-Encoding: {accepted}\r\n")
            assert ("content-encoding" in answer.headers) is zipped
            assert "Accept-Encoding" in answer.headers["vary"]
            body = gzip.decompress(answer.body) if zipped else answer.body
            assert b"\ndnsprobe_events_total 7.0\n" in body

    run(test)


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/-/ready", "/nothing"])
def test_head_is_get_without_the_body(path: str) -> None:
    async def test() -> None:
        async with serving() as server, Client(server) as client:
            got = await client.ask(path)
            head = await client.ask(path, method="HEAD")
            assert head.status == got.status
            assert head.body == b""
            assert head.headers.keys() == got.headers.keys()
            assert int(head.headers["content-length"]) > 0
            assert (await client.ask(path)).status == got.status  # no rest of a body precedes it

    run(test)


def test_checks_report_health_and_readiness() -> None:
    async def test() -> None:
        unready = "tcp4: the hook did not report the canary"
        async with serving(unready=lambda: unready) as server:
            assert (await ask(server, "/-/healthy")).status == 200
            answer = await ask(server, "/-/ready")
            assert (answer.status, answer.body) == (
                503,
                b"not ready: tcp4: the hook did not report the canary\n",
            )
            unready = ""
            answer = await ask(server, "/-/ready")
            assert (answer.status, answer.body) == (200, b"ready\n")

    run(test)


def test_the_page_is_served() -> None:
    async def test() -> None:
        async with serving() as server:
            answer = await ask(server, "/?x=y")
            assert answer.status == 200
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            page = answer.body.decode()
            assert "<strong>42</strong>" in page
            links = re.findall('<a href="([^"]*)"', page)
            assert links == ["/metrics", "/-/ready", "/-/healthy"]
            for link in links:
                assert (await ask(server, link)).status == 200
            zipped = await ask(server, "/", more="Accept-Encoding: gzip\r\n")
            assert zipped.headers["content-encoding"] == "gzip"
            assert zipped.headers["vary"] == "Accept-Encoding"
            assert gzip.decompress(zipped.body).decode() == page

    run(test)


def test_the_page_can_be_switched_off() -> None:
    async def test() -> None:
        async with serving(page=None) as server:
            answer = await ask(server, "/")
            assert (answer.status, answer.body) == (404, b"not found\n")

    run(test)


def test_an_error_in_the_page_closes_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Page:
        raise RuntimeError("broken")

    async def test() -> None:
        async with serving(page=broken) as server, Client(server) as client:
            answer = await client.ask("/")
            assert answer.status == 500
            assert b"broken" not in answer.body
            assert (await client.ask("/metrics")).status == 200

    run(test)
    assert "cannot collect the page" in caplog.text


@pytest.mark.parametrize(
    "path", ["/metrics/", "/Metrics", "//", "/-/", "/favicon.ico", "/..%2f", "*", "http://x/metrics", "/<script>", "x"]
)
def test_other_paths_are_not_found(path: str) -> None:
    async def test() -> None:
        async with serving() as server:
            answer = await ask(server, path)
            assert (answer.status, answer.body) == (404, b"not found\n")

    run(test)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "X"])
def test_other_methods_are_refused(method: str) -> None:
    async def test() -> None:
        async with serving() as server, Client(server) as client:
            for body in (b"", b"x" * 4096):
                answer = await client.ask("/metrics", method, f"Content-Length: {len(body)}\r\n", body)
                assert answer.status == 405
                assert answer.headers["allow"] == "GET, HEAD"
            assert (await client.ask()).status == 200  # the connection stays open

    run(test)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nContent-Length: 4097\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 411),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nContent-Length: 3\r\n\r\nabc", 411),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /" + b"a" * 20000, None),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000, None),
    ],
)
def test_bad_requests_are_closed_and_not_logged(
    raw: bytes, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving() as server:
            async with Client(server) as client:
                client.writer.write(raw)
                try:
                    received = await client.reader.read()
                except ConnectionResetError:
                    received = b""
                assert received.startswith(b"" if status is None else b"HTTP/1.1 %d " % status)
                assert received.count(b"HTTP/1.1") <= 1
            assert (await ask(server)).status == 200

    run(test)
    assert not caplog.records


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/-/ready", "/nothing"])
def test_a_name_of_another_site_is_misdirected(path: str) -> None:
    async def raw(server: Server, lines: str) -> Answer:
        async with Client(server) as client:
            client.writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
            return await client.answer()

    async def test() -> None:
        async with serving(origin=Origin(["proxy.example"])) as server:
            for host in ("attacker.example", "attacker.example:10059", "localhost.attacker.example", ""):
                answer = await raw(server, f"Host: {host}\r\n")
                assert answer.status == 421
                assert b"metrics.hosts" in answer.body
            # Two names: a proxy could take the other one.
            assert (await raw(server, "Host: localhost\r\nHost: attacker.example\r\n")).status == 421
            good = (await raw(server, "Host: localhost\r\n")).status
            assert good in {200, 404}
            for lines in ("", "Host: 127.0.0.1:10059\r\n", "Host: [::1]\r\n", "Host: PROXY.example:80\r\n"):
                assert (await raw(server, lines)).status == good

    run(test)


def test_what_a_browser_requests_for_another_site_is_refused() -> None:
    async def test() -> None:
        async with serving() as server:
            for mode, status in (("cors", 403), ("no-cors", 403), ("navigate", 200)):
                answer = await ask(server, more=f"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: {mode}\r\n")
                assert answer.status == status
            answer = await ask(server, "/", more="Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n")
            assert answer.status == 200
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert "access-control-allow-origin" not in answer.headers

    run(test)


def test_a_connection_serves_several_requests() -> None:
    async def test() -> None:
        async with serving() as server, Client(server) as client:
            client.writer.write(b"GET /-/healthy HTTP/1.1\r\n\r\n" * 50)
            for _ in range(50):
                assert (await client.answer()).status == 200
            answer = await client.ask(more="Connection: close\r\n")
            assert answer.headers["connection"] == "close"
            assert await client.closed()

    run(test)


def test_an_http_1_0_client_is_served() -> None:
    async def test() -> None:
        async with serving() as server, Client(server) as client:
            client.writer.write(b"GET /-/healthy HTTP/1.0\r\n\r\n")
            assert (await client.answer()).body == b"healthy\n"
            assert await client.closed()

    run(test)


def test_an_error_in_the_metrics_closes_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Snapshot:
        raise RuntimeError("broken")

    async def test() -> None:
        async with serving(Registry(broken)) as server, Client(server) as client:
            answer = await client.ask()
            assert answer.status == 500
            assert b"broken" not in answer.body
            assert (await client.ask("/-/healthy")).status == 200

    run(test)
    assert "cannot collect the metrics" in caplog.text


def test_scrapers_are_served_during_a_flood_of_idle_clients() -> None:
    async def test() -> None:
        async with serving() as server, AsyncExitStack() as idle:
            for _ in range(300):
                await idle.enter_async_context(Client(server))
            answers = await asyncio.gather(*(ask(server) for _ in range(100)))
            assert [answer.status for answer in answers] == [200] * 100
            assert len(server._clients.idle) + len(server._clients.busy) <= 128

    run(test)


def test_scrapes_succeed_during_a_continuing_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_IDLE_GRACE", 0.1)

    async def test() -> None:
        async with serving(connections=16) as server:

            async def flood() -> None:
                async with AsyncExitStack() as kept:
                    for _ in range(100):
                        client = await kept.enter_async_context(Client(server))
                        client.writer.write(b"GET /metrics HTT")
                    await asyncio.Event().wait()

            flooders = [asyncio.create_task(flood()) for _ in range(3)]
            for _ in range(5):
                answers = await asyncio.gather(*(ask(server) for _ in range(5)))
                assert [answer.status for answer in answers] == [200] * 5
            for flooder in flooders:
                flooder.cancel()
            await asyncio.gather(*flooders, return_exceptions=True)

    run(test)


@pytest.mark.parametrize("connections", [1, 2, 128])
def test_more_scrapers_than_connections_are_served(connections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that is busy may take longer to answer than a client of a greedy user has.
    for name in ("_IDLE_GRACE", "_BUSY_GRACE", "_GREEDY_IDLE_GRACE", "_GREEDY_BUSY_GRACE"):
        monkeypatch.setattr(clients, name, 600.0)

    async def test() -> None:
        async with serving(connections=connections) as server:
            many = 12 if connections < 128 else 300
            answers = await asyncio.gather(*(ask(server, more="Connection: close\r\n") for _ in range(many)))
            assert [answer.status for answer in answers] == [200] * many

    run(test)


def test_the_longest_idle_client_is_closed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_IDLE_GRACE", 0.0)

    async def test() -> None:
        async with (
            serving(connections=3) as server,
            Client(server) as first,
            Client(server) as second,
            Client(server) as third,
        ):
            for client in (first, second, third, first):
                await client.ask("/-/healthy")
            async with Client(server) as fourth:
                assert (await fourth.ask()).status == 200
                assert await second.closed()
                for client in (first, third, fourth):
                    assert (await client.ask()).status == 200

    run(test)


def test_a_client_with_half_a_request_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_IDLE_GRACE", 0.0)

    async def test() -> None:
        async with serving(connections=1) as server, Client(server) as slow:
            slow.writer.write(b"GET /metrics HTTP/1.1\r\nHost:")
            assert (await ask(server)).status == 200
            assert await slow.closed()

    run(test)


def test_a_client_with_half_a_request_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_REQUEST_TIMEOUT", 0.05)

    async def test() -> None:
        async with serving() as server, Client(server) as slow, Client(server) as idle:
            slow.writer.write(b"GET /metrics HTTP/1.1\r\nHost:")
            assert await slow.closed()
            assert await idle.closed()

    run(test)


def stuck(server: Server) -> socket.socket:
    """Request the metrics, and read nothing of the response."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(server.address)
    connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    return connection


class Renderings:
    """What a server renders, and the paths whose responses it sends, in order.

    While it is held, the server reads requests but makes no response.
    """

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rendered: list[str] = []
        self.sent: list[str] = []
        self._queue = server._responses
        make, send, respond = self._queue._make, self._queue._send, self._queue._respond
        self._held = False

        def making(exchange: Any) -> Any:
            self.rendered.append(exchange.path)
            return make(exchange)

        def sending(exchange: Any, response: Any) -> None:
            self.sent.append(exchange.path)
            send(exchange, response)

        def responding() -> None:
            if self._held:
                self._queue._next = None
            else:
                respond()

        monkeypatch.setattr(self._queue, "_make", making)
        monkeypatch.setattr(self._queue, "_send", sending)
        monkeypatch.setattr(self._queue, "_respond", responding)

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        self._queue.schedule()

    async def answers(self, *requests: Any, number: int) -> list[Answer]:
        """Return the answers to requests that all wait at the same time; ``number`` of them for large responses."""
        self.hold()
        asking = asyncio.gather(*requests)
        await until(lambda: self._queue.waiting == number)
        self.release()
        return await asking


OPENMETRICS = "Accept: application/openmetrics-text\r\n"
ZIPPED = "Accept-Encoding: gzip\r\n"


def test_all_who_wait_share_one_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving() as server:
            renderings = Renderings(server, monkeypatch)
            requests = [("GET", ""), ("GET", ZIPPED), ("HEAD", "")] * 20
            scrapes = [ask(server, method=method, more=more) for method, more in requests]
            answers = await renderings.answers(*scrapes, number=60)
            assert renderings.rendered == ["/metrics"]
            assert {gzip.decompress(answer.body) for answer in answers[1::3]} == {answers[0].body}
            assert {answer.body for answer in answers[::3]} == {answers[0].body}
            # Another format, and the page.
            renderings.rendered.clear()
            others = [("/metrics", OPENMETRICS + ZIPPED), ("/metrics", ""), ("/", ""), ("/", ZIPPED)] * 10
            await renderings.answers(*(ask(server, path, more=more) for path, more in others), number=40)
            assert sorted(renderings.rendered) == ["/", "/metrics", "/metrics"]

    run(test)


def test_a_scrape_never_gets_what_was_rendered_before_its_request() -> None:
    counted = 0

    def snapshot() -> Snapshot:
        return Snapshot(counts=SNAPSHOT.counts, events=counted)

    async def test() -> None:
        nonlocal counted
        async with serving(Registry(snapshot)) as server, Client(server) as first, Client(server) as second:
            for _ in range(50):
                for client in (first, second):
                    counted += 1
                    answer = await client.ask()
                    assert f"\ndnsprobe_events_total {float(counted)}\n".encode() in answer.body

    run(test)


def test_a_page_is_rendered_once_for_all_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving() as server:
            renderings = Renderings(server, monkeypatch)
            queue = server._responses
            now = 100.0
            monkeypatch.setattr(queue, "_now", lambda: now)
            for _ in range(5):
                await ask(server, "/")
            assert renderings.rendered == ["/"]
            now += responses.PAGE_AGE
            await asyncio.gather(*(ask(server, "/") for _ in range(100)))
            assert renderings.rendered == ["/", "/"]

    run(test)


def test_a_fresh_page_needs_no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = 0

    def when_collected(call: Callable[[], None]) -> None:
        nonlocal collected
        collected += 1
        call()

    async def test() -> None:
        async with serving() as server:
            now = 100.0
            monkeypatch.setattr(server, "_when_collected", when_collected)
            monkeypatch.setattr(server._responses, "_now", lambda: now)
            renderings = Renderings(server, monkeypatch)
            for expected in (1, 2, 3):
                for _ in range(10):
                    await ask(server, "/")
                # Those who asked while the page was fresh get it, even if it is not when their turn comes.
                now += 0.9 * responses.PAGE_AGE
                renderings.hold()
                asking = asyncio.gather(*(ask(server, "/") for _ in range(10)))
                await until(lambda: server._responses.waiting == 10)
                now += 0.2 * responses.PAGE_AGE
                renderings.release()
                await asking
                assert collected == len(renderings.rendered) == expected

    run(test)


def test_a_page_that_takes_long_is_shown_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def slow() -> Page:
        nonlocal now
        now += 1.0
        return Page(SNAPSHOT)

    async def test() -> None:
        nonlocal now
        async with serving(page=slow) as server:
            renderings = Renderings(server, monkeypatch)
            monkeypatch.setattr(server._responses, "_now", lambda: now)
            await ask(server, "/")
            now += 8.9
            await ask(server, "/")
            assert renderings.rendered == ["/"]
            now += 0.2
            await ask(server, "/")
            assert renderings.rendered == ["/", "/"]

    run(test)


def test_a_scrape_overtakes_pages_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving() as server:
            renderings = Renderings(server, monkeypatch)
            pages = [ask(server, "/") for _ in range(100)]
            await renderings.answers(*pages, ask(server), number=101)
            assert renderings.sent == ["/metrics", *["/"] * 100]

    run(test)


def test_pages_that_have_waited_for_long_take_turns_with_scrapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_PATIENCE", -1.0)
    monkeypatch.setattr(responses, "_MAX_PAUSE", 0.0)

    async def test() -> None:
        async with serving() as server:
            renderings = Renderings(server, monkeypatch)
            scrapes = [ask(server, more=more) for more in (OPENMETRICS, "") for _ in range(10)]
            await renderings.answers(*(ask(server, "/") for _ in range(10)), *scrapes, number=30)
            assert renderings.sent == ["/metrics"] * 10 + ["/"] * 10 + ["/metrics"] * 10

    run(test)


class Scrapes:
    """Scrapes of clients with made-up names."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self._server = server
        self._names: dict[int, str] = {}
        monkeypatch.setattr(peers, "name_of", lambda connection, _: self._names.get(connection.getpeername()[1], ""))

    async def ask(self, name: str, more: str) -> Answer:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self._names[bound.getsockname()[1]] = name
            bound.setblocking(False)
            await asyncio.get_running_loop().sock_connect(bound, self._server.address)
            reader, writer = await asyncio.open_connection(sock=bound.dup())
            writer.write(f"GET /metrics HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
            answer = await read_answer(reader)
            writer.close()
            return answer


def test_scrapes_of_many_formats_take_turns_by_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_MAX_PAUSE", 0.0)

    async def test() -> None:
        async with serving() as server:
            scrape = Scrapes(server, monkeypatch).ask
            renderings = Renderings(server, monkeypatch)
            asked: list[str] = []
            make = server._responses._make

            def making(exchange: Any) -> Any:
                asked.append(exchange.client_name)
                return make(exchange)

            monkeypatch.setattr(server._responses, "_make", making)

            flood = [scrape("greedy", OPENMETRICS) for _ in range(20)]
            await renderings.answers(*flood, number=20)
            # The scraper was not served yet, so its format comes first, although it asks last.
            flood = [scrape("greedy", OPENMETRICS) for _ in range(20)]
            await renderings.answers(*flood, scrape("scraper", ""), number=21)
            assert asked == ["greedy", "scraper", "greedy"]

    run(test)


def test_a_client_with_many_scrapes_gets_a_few_at_once_and_waits_for_its_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(responses, "_RATE", 1)
    monkeypatch.setattr(responses, "_MAX_PAUSE", 10 * PATIENCE)

    async def test() -> None:
        async with serving() as server:
            scrape = Scrapes(server, monkeypatch).ask
            renderings = Renderings(server, monkeypatch)
            renderings.hold()
            first = [asyncio.create_task(scrape("greedy", OPENMETRICS)) for _ in range(20)]
            await until(lambda: server._responses.waiting == 20)
            renderings.release()
            await until(lambda: len(renderings.sent) == responses._FEW_SCRAPES)
            # Another format for somebody else does not wait, nor do the few scrapes of an ordinary client.
            for _ in range(3):
                await asyncio.gather(*(scrape("scraper", "") for _ in range(responses._FEW_SCRAPES)))
            assert renderings.rendered == ["/metrics"] * 4
            second = [asyncio.create_task(scrape("greedy", OPENMETRICS)) for _ in range(responses._FEW_SCRAPES)]
            await until(lambda: server._responses.waiting == responses._FEW_SCRAPES)
            await ask(server, "/-/healthy")
            assert renderings.rendered == ["/metrics"] * 4
            # A page does not wait for those who have no turn, nor does somebody else with the same format.
            await ask(server, "/")
            await scrape("scraper", OPENMETRICS)
            await asyncio.gather(*second)
            assert renderings.rendered == ["/metrics"] * 4 + ["/", "/metrics"]
            assert sum(task.done() for task in first) == responses._FEW_SCRAPES
            for task in first:
                task.cancel()
            await asyncio.gather(*first, return_exceptions=True)

    run(test)


def test_all_responses_come_in_time_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_RATE", 1)
    monkeypatch.setattr(responses, "_MAX_PAUSE", 0.1)

    async def test() -> None:
        async with serving() as server:
            renderings = Renderings(server, monkeypatch)
            for _ in range(2):
                answers = await renderings.answers(*(ask(server) for _ in range(50)), number=50)
                assert {answer.status for answer in answers} == {200}
            assert renderings.rendered == ["/metrics"] * 2

    run(test)


def test_small_responses_do_not_wait_for_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving() as server:
            renderings = Renderings(server, monkeypatch)
            asking = [ask(server), ask(server, "/"), ask(server, "/-/healthy"), ask(server, "/nothing")]
            await renderings.answers(*asking, number=2)
            assert set(renderings.sent[:2]) == {"/-/healthy", "/nothing"}

    run(test)


def test_the_loop_does_other_work_between_two_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving() as server:
            order: list[str] = []
            collect = server._responses._make

            def collecting(exchange: Any) -> Any:
                order.append(exchange.path)
                return collect(exchange)

            async def other() -> None:
                while True:
                    order.append("other")
                    await asyncio.sleep(0)

            monkeypatch.setattr(server._responses, "_make", collecting)
            turns = asyncio.create_task(other())
            for _ in range(5):
                await asyncio.gather(ask(server), ask(server, more=OPENMETRICS))
            turns.cancel()
            served = [at for at, what in enumerate(order) if what != "other"]
            assert len(served) == 10
            assert all(after > at + 1 for at, after in pairwise(served))

    run(test)


def test_a_slow_reader_blocks_nobody_and_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving(big_registry()) as server:
            begun: list[int] = []
            send = server._responses._send

            def sending(*arguments: Any) -> None:
                send(*arguments)
                begun.append(len(server._clients._unread))

            monkeypatch.setattr(clients, "_RESPONSE_TIMEOUT", 0.2)
            monkeypatch.setattr(server._responses, "_send", sending)
            with stuck(server):
                # The current number would be unsafe: on a busy processor, the timeout may have passed already.
                await until(lambda: bool(begun))
                assert begun == [1]
                monkeypatch.setattr(clients, "_RESPONSE_TIMEOUT", PATIENCE)
                answer = await ask(server)
                assert (answer.status, len(answer.body) > 8_000_000) == (200, True)
                assert (await ask(server, "/-/healthy")).status == 200
                await until(lambda: not server._clients._unread)
                assert server._clients.unread_bytes == 0

    run(test)


def test_slow_readers_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_UNREAD_GRACE", 0.05)
    monkeypatch.setattr(responses, "_MAX_UNREAD", 20_000_000)

    async def test() -> None:
        async with serving(big_registry()) as server:
            renderings = Renderings(server, monkeypatch)
            slow = []
            for _ in range(8):
                # One after the other: those who wait together share a response.
                slow.append(stuck(server))
                await until(lambda: len(renderings.sent) == len(slow))
                assert server._clients.unread_bytes < responses._MAX_UNREAD + 9_000_000
            answer = await ask(server)
            assert (answer.status, len(answer.body) > 8_000_000) == (200, True)
            assert server._clients.unread_bytes < responses._MAX_UNREAD + 9_000_000
            assert (await ask(server, "/-/healthy")).status == 200
            for connection in slow:
                connection.close()
            await until(lambda: not server._clients._unread and not server._responses.waiting)
            assert server._clients.unread_bytes == 0

    run(test)


def test_a_response_that_clients_share_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving(big_registry()) as server, AsyncExitStack() as slow:
            renderings = Renderings(server, monkeypatch)
            renderings.hold()
            for _ in range(50):
                slow.enter_context(stuck(server))
            await until(lambda: server._responses.waiting == 50)
            renderings.release()
            await until(lambda: len(renderings.sent) == 50)
            assert renderings.rendered == ["/metrics"]
            assert 8_000_000 < server._clients.unread_bytes < 9_000_000
            assert (await ask(server)).status == 200

    run(test)


def test_the_user_with_the_most_connections_loses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_IDLE_GRACE", 0.0)

    async def test() -> None:
        async with serving(connections=4) as server, AsyncExitStack() as stack:
            name = "scraper"
            monkeypatch.setattr(peers, "name_of", lambda *_: name)
            scraper = await stack.enter_async_context(Client(server))
            assert (await scraper.ask()).status == 200
            name = "greedy"
            # The scraper has been idle for the longest, but has only one connection.
            for _ in range(40):
                greedy = await stack.enter_async_context(Client(server))
                assert (await greedy.ask("/-/healthy")).status == 200
            assert server._clients._held == {"scraper": 1, "greedy": 3}
            assert (await scraper.ask()).status == 200

    run(test)


def test_slow_readers_cannot_take_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_BUSY_GRACE", 0.05)

    async def test() -> None:
        async with serving(big_registry(4), connections=2) as server:
            slow = [stuck(server) for _ in range(2)]
            await until(lambda: len(server._clients.busy) == 2)
            assert (await ask(server)).status == 200
            for connection in slow:
                connection.close()

    run(test)


def test_clients_that_leave_are_forgotten() -> None:
    async def test() -> None:
        async with serving(big_registry(4), connections=8) as server:
            for _ in range(3):
                for connection in [stuck(server) for _ in range(4)]:
                    connection.close()
                async with Client(server), Client(server) as asking:
                    asking.writer.write(b"GET /metr")
            await until(lambda: not server._clients.connected)
            assert not server._clients.idle
            assert not server._clients.busy
            assert not server._clients._unread
            assert server._clients.unread_bytes == 0

    run(test)


def test_accepting_continues_after_a_lack_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(socket.socket):
        refusals = 3

        def accept(self) -> tuple[socket.socket, tuple[str, int]]:
            if Exhausted.refusals:
                Exhausted.refusals -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    monkeypatch.setattr(listener, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(socket, "socket", Exhausted)

    async def test() -> None:
        async with serving() as server:
            assert (await ask(server)).status == 200
            assert Exhausted.refusals == 0

    run(test)


def test_stop_closes_everything() -> None:
    async def test() -> None:
        async with serving() as server, Client(server) as client:
            await client.ask()
            address = server.address
            await server.stop()
            assert await client.closed()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)
            await server.stop()

    run(test)


def test_stop_succeeds_before_start() -> None:
    async def test() -> None:
        server = Server(Registry(Snapshot), lambda: "", 1)
        await server.stop()
        server.bind("127.0.0.1", 0)
        await server.stop()

    run(test)


def new_server() -> Server:
    return Server(Registry(Snapshot), lambda: "", 1)


def test_a_server_that_is_not_started_keeps_its_port() -> None:
    async def test() -> None:
        first = new_server()
        first.bind("127.0.0.1", 0)
        with pytest.raises(UserError, match="Address already in use"):
            new_server().bind(*first.address)
        await first.stop()
        second = new_server()
        second.bind("127.0.0.1", 0)
        await second.stop()

    run(test)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback: sysctl net.ipv6.conf.lo.disable_ipv6=0")
@pytest.mark.parametrize(("host", "reached_by"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
def test_ipv6_addresses_are_served(host: str, reached_by: list[str]) -> None:
    async def test() -> None:
        server = new_server()
        server.bind(host, 0)
        server.start()
        assert server.address[0] == host
        for address in reached_by:
            reader, writer = await asyncio.open_connection(address, server.address[1])
            writer.write(b"GET /-/healthy HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"healthy\n")
            writer.close()
        await server.stop()

    run(test)


def test_a_restart_can_use_the_same_port() -> None:
    async def test() -> None:
        async with serving() as server:
            async with Client(server) as client:
                await client.ask()
            port = server.address[1]
        again = new_server()
        again.bind("127.0.0.1", port)  # SO_REUSEADDR ignores old connections in TIME_WAIT
        await again.stop()

    run(test)
