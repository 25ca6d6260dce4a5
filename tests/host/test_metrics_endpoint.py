"""/metrics of a real dnsprobe: its formats, and many clients at once."""

from __future__ import annotations

import asyncio
import gzip
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from conftest import PATIENCE, Service
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from promtool import promtool

#: What Prometheus 2.42 and 3.0 send.
ACCEPTED = {
    "2.42": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "3.0": "application/openmetrics-text;escaping=allow-utf-8;version=1.0.0;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
}
SCRAPERS, IDLE = 100, 300

#: Some versions of prometheus_client have no type hints.
parse_text: Any = parser.text_string_to_metric_families
parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families


@pytest.fixture
def service(start: Callable[..., Service], scene: Callable[..., Any]) -> Service:
    """Return a dnsprobe with values in every metric, among them hostile names of processes."""
    service = start("domains: [watched.test, ipv6.test]")
    scene("many", 13, 3, 7, "www.watched.test")
    scene("streams", "www.watched.test")
    for comm in ('a"b\\c', "x\ny", "\x1b[2J", "<script>"):
        scene("named", comm, "www.watched.test")
    return service


def queries(families: Any) -> dict[frozenset[tuple[str, str]], float]:
    return {
        frozenset(sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "dnsprobe_queries_total"
    }


def test_promtool_finds_nothing_wrong(service: Service) -> None:
    text = service.get("/metrics")
    assert text.count("\ndnsprobe_queries_total{") == 13 * 7 + 1 + 4
    assert "\ndnsprobe_encrypted_connections_total{" in text
    found = promtool("check", "metrics", text=text.encode())
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


@pytest.mark.parametrize("version", ACCEPTED)
def test_prometheus_gets_openmetrics(service: Service, version: str) -> None:
    headers = {"Accept": ACCEPTED[version], "Accept-Encoding": "gzip"}
    request = urllib.request.Request(f"http://{service.url}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        body = gzip.decompress(answer.read()).decode()
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert body.endswith("\n# EOF\n")
    assert queries(parse_openmetrics(body)) == queries(parse_text(service.get("/metrics")))


async def scrape(host: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept-Encoding: gzip\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    assert status == "HTTP/1.1 200 OK"
    assert len(body) == int(headers["Content-Length"])
    return gzip.decompress(body)


def test_a_hundred_scrapes_at_once_while_idle_clients_wait(service: Service) -> None:
    """There are more clients than the default limit of connections."""
    host, port = service.url.split(":")

    async def all_at_once() -> list[bytes]:
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(IDLE)]
        for _, writer in idle[::2]:
            writer.write(b"GET /metrics HTT")
        async with asyncio.timeout(PATIENCE):
            bodies = await asyncio.gather(*(scrape(host, int(port)) for _ in range(SCRAPERS)))
        for _, writer in idle:
            writer.close()
        return bodies

    bodies = asyncio.run(all_at_once())
    expected = queries(parse_text(service.get("/metrics")))
    assert sum(expected.values()) == 13 * 3 * 7 + 1 + 4
    assert len(bodies) == SCRAPERS
    for body in bodies:
        assert queries(parse_text(body.decode())) == expected
