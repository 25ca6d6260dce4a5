"""What a real dnsmasq answers, also over a line that loses and reorders packets, is counted as its client saw it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from installed import HERE, PATIENCE, PORTS, Service, until
from networks import Net
from ways_out.place import FAR4, FAR6, Place

ZONE = "resolver.test"
TEXT = ",".join(["x" * 200] * 10)
DNSMASQ = [
    *(
        "/usr/sbin/dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=root",
        "--bind-interfaces",
    ),
    *("--no-hosts", "--no-resolv", f"--local=/{ZONE}/", f"--host-record=www.{ZONE},192.0.2.1"),
    *(f"--cname=chain.{ZONE},chain1.{ZONE}", f"--cname=chain1.{ZONE},www.{ZONE}", f"--txt-record=big.{ZONE},{TEXT}"),
    *(f"--listen-address={FAR4}", f"--listen-address={FAR6}"),
]
ASKED = [
    *(f"www.{ZONE}/A/", f"chain.{ZONE}/A/edns", f"www.{ZONE}/AAAA/", f"chain.{ZONE}/AAAA/edns"),
    *(f"none.{ZONE}/A/", f"none.{ZONE}/AAAA/edns", "elsewhere.test/A/", f"big.{ZONE}/TXT/", f"big.{ZONE}/TXT/edns"),
]
#: The buffer of the socket has room for as many answers.
COUNT = 100


class Client:
    """asking.py. It keeps its sockets open until the block ends."""

    def __init__(self, net: Net, comm: str, *arguments: object) -> None:
        command = [sys.executable, str(HERE / "asking.py"), comm, *map(str, arguments)]
        with net.entered():
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def told(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=PATIENCE)


@contextmanager
def dnsmasq(net: Net) -> Iterator[None]:
    """Run dnsmasq in a network namespace. It is ready at the start of the block."""
    with net.entered():
        server = subprocess.Popen(DNSMASQ)
    try:
        end = time.monotonic() + PATIENCE
        for address in (FAR4, FAR6):
            command = ["dig", "+tries=1", "+time=1", f"@{address}", "ready.invalid"]
            while answers_nothing(net, command):
                assert server.poll() is None
                assert time.monotonic() < end
        yield
    finally:
        server.kill()
        server.wait()


def answers_nothing(net: Net, command: list[str]) -> bool:
    with net.entered():
        return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0


@pytest.fixture(scope="module")
def place(service: Service) -> Iterator[Place]:
    service.restart(
        f"domains: [{ZONE}, elsewhere.test]\n"
        f"probe: {{hook: cgroup_skb, tcp_hook: cgroup_skb, {PORTS}}}\nanswers: {{timeout: 20s, queries: 4096}}"
    )
    place = Place("resolver", HERE, None)
    try:
        with dnsmasq(place.cable()):
            yield place
    finally:
        place.close()


def results(service: Service, process: str) -> Counter[tuple[str, str]]:
    """Return what became of the queries of a process, by transport and result."""
    until(lambda: not sum(service.by("domain", "dnsprobe_queries_waiting").values()), "the timeout")
    found: Counter[tuple[str, str]] = Counter()
    for label, metric in (("rcode", "dnsprobe_responses_total"), ("reason", "dnsprobe_unanswered_total")):
        for labels, value in service.samples(metric):
            if labels["process"] == process:
                found[labels["transport"], labels[label]] += int(value)
    assert service.by("process")[process] == found.total()
    return found


@pytest.mark.parametrize("address", [FAR4, FAR6])
def test_each_answer_is_counted_as_its_client_saw_it(service: Service, place: Place, address: str) -> None:
    comm = "asks-6" if address == FAR6 else "asks-4"
    with Client(place.net, comm, "one_by_one", address, *ASKED) as client:
        saw = client.told()
    assert {result for _, result in saw} == {"NOERROR", "NODATA", "NXDOMAIN", "REFUSED"}
    assert results(service, comm) == Counter((transport, result) for transport, result in saw)


def test_answers_that_are_lost_or_overtake_each_other(service: Service, place: Place) -> None:
    place.tc(place.net, "qdisc add dev v0 root netem delay 30ms 20ms loss 20%")
    with Client(place.net, "lossy", "burst", FAR4, f"www.{ZONE}", COUNT) as client:
        assert client.told() == "sent"
        # Whatever has not come after the timeout was lost.
        found = results(service, "lossy")
        client.tell("all")
        ids = [id_ for _, id_, _ in client.told()["received"]]
    place.tc(place.net, "qdisc del dev v0 root")
    assert ids != sorted(ids)
    assert 0 < len(set(ids)) == len(ids) < COUNT
    assert found == {("udp", "NOERROR"): len(ids), ("udp", "timeout"): COUNT - len(ids)}
