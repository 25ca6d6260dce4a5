"""Measure how long a scrape and a check of health wait while many other clients keep the HTTP server busy.

Usage: .venv/bin/python benchmarks/busy_server.py [CLIENTS [SERIES [SECONDS [LOAD...]]]]

One daemon without hooks holds made-up series, as in scrape_cost.py. For each load, CLIENTS clients (default: 120) in
two other processes do the same thing again and again for SECONDS (10), as fast as the server allows. Meanwhile a
scraper requests /metrics as Prometheus does, four times a second, and a monitor requests /-/healthy; each opens a
connection for each request. Prints the median and the longest of each wait, in milliseconds, and the responses that the
other clients received in a second. The clients share the processors with the daemon, so a machine with more processors
shows shorter waits. Run as root, the clients belong to another user than scraper and monitor do.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import suppress
from statistics import median
from time import perf_counter

from scrape_cost import Served

_ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
_PAUSE = 0.25
#: The user nobody.
_OTHER_USER = 65534


def _request(path: str, more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


_SCRAPE = _request("/metrics", f"Accept: {_ACCEPT}\r\nAccept-Encoding: gzip\r\n")

#: The request of each load, whether each request has a connection of its own, and how it is sent and read.
_LOADS = {
    "nobody": (b"", False, "not at all"),
    "page": (_request("/"), False, "fast"),
    "page, new connections": (_request("/"), True, "fast"),
    "page, compressed": (_request("/", "Accept-Encoding: gzip\r\n"), False, "fast"),
    "metrics": (_request("/metrics"), False, "fast"),
    "metrics, new connections": (_request("/metrics"), True, "fast"),
    "metrics, as the scraper": (_SCRAPE, False, "fast"),
    "not found": (_request("/nothing"), False, "fast"),
    "not found, new connections": (_request("/nothing"), True, "fast"),
    "metrics, not read": (_request("/metrics"), True, "not read"),
    "metrics, read slowly": (_request("/metrics"), True, "read slowly"),
    "half requests": (_request("/metrics")[:-2], True, "not read"),
}


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    (size,) = [int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")]
    await reader.readexactly(size)


async def _ask_fast(port: int, request: bytes, answers: list[int], again: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            writer.write(request)
            await _answer(reader)
            answers[0] += 1
            if not again:
                return
    finally:
        writer.transport.abort()


async def _ask_and_wait(port: int, request: bytes, answers: list[int], octets_a_second: int) -> None:
    """Send a request, and read nothing or little of the response until the server closes the connection."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.sock_sendall(connection, request)
        # No octet can be read of a response that is not to be read, so its end is noticed with the next octet sent.
        for _ in range(40):
            await asyncio.sleep(0.25)
            if octets_a_second and not await loop.sock_recv(connection, octets_a_second // 4):
                break
            if not octets_a_second:
                await loop.sock_sendall(connection, b"X")
    answers[0] += 1


async def _client(port: int, load: str, answers: list[int]) -> None:
    request, new_connections, how = _LOADS[load]
    while True:
        with suppress(OSError, EOFError):
            if how == "fast":
                await _ask_fast(port, request, answers, not new_connections)
            else:
                await _ask_and_wait(port, request, answers, 0 if how == "not read" else 4096)


async def _load(port: int, load: str, clients: int) -> None:
    """Run the clients of one process until standard input ends; print how many responses they received."""
    answers = [0]
    tasks = [asyncio.create_task(_client(port, load, answers)) for _ in range(clients)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(answers[0])


async def _wait_of(port: int, request: bytes) -> float:
    began = perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    writer.write(request)
    await _answer(reader)
    writer.transport.abort()
    return (perf_counter() - began) * 1000


async def _waits(port: int, seconds: float) -> list[tuple[float, float]]:
    """Return the waits of the scraper and of the monitor."""
    waits = []
    until = perf_counter() + seconds
    while perf_counter() < until:
        await asyncio.sleep(_PAUSE)
        waits.append((await _wait_of(port, _SCRAPE), await _wait_of(port, _request("/-/healthy"))))
    return waits


def _measure(port: int, load: str, clients: int, seconds: float) -> None:
    command = [sys.executable, __file__, "--load", str(port), load, str(clients // 2)]
    loaders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2 if load != "nobody" else 0)
    ]
    waits = asyncio.run(_waits(port, seconds))
    answers = sum(int(loader.communicate()[0]) for loader in loaders)
    scrapes, checks = zip(*waits, strict=True)
    print(
        f"{load:<28} scrape {median(scrapes):6.0f} {max(scrapes):6.0f} ms   health {median(checks):6.0f} "
        f"{max(checks):6.0f} ms   {answers / seconds:7.0f} other responses a second",
        flush=True,
    )


def main() -> None:
    """Print the waits under each load."""
    if sys.argv[1:2] == ["--load"]:
        if os.geteuid() == 0:
            os.setuid(_OTHER_USER)
        asyncio.run(_load(int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
        return
    clients, series, seconds = (
        int(sys.argv[at]) if len(sys.argv) > at else default for at, default in ((1, 120), (2, 10_000), (3, 10))
    )
    loads = sys.argv[4:] or list(_LOADS)
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, {clients} clients, {series:,} series")
    served = Served("dnsprobe", series)
    try:
        for load in loads:
            _measure(served.port, load, clients, seconds)
    finally:
        served.stop()


if __name__ == "__main__":
    main()
