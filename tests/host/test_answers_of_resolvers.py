"""What real resolvers answer, or do not answer, is counted for the process that asked, as the process saw it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, PATIENCE, Service
from networks import Net
from real_resolvers import ADDRESSES, BROKEN, Listening, Resolver, Zone, bind, dnsmasq, unbound
from scraped import samples_of
from wire import AT_ONCE, FAR, NOBODY, Packet, Wire, perfect

SLOW, ELSEWHERE = "slow.resolvers.test", "elsewhere.test"
ZONE = Zone(
    "resolvers.test",
    {"www": "192.0.2.1", "slow": "192.0.2.2"},
    {"chain": "chain1", "chain1": "chain2", "chain2": "www"},
    {"big": ["x" * 200] * 10},
)
#: What each resolver is asked: see asking.one_by_one(). The name is without its zone if it ends with a dot.
ASKED = [
    *("www./A/", "www./A/edns", "chain./A/", "chain./AAAA/edns", "chain./CNAME/", "www./AAAA/", "www./HTTPS/edns"),
    *("none./A/", "none./AAAA/edns", f"{ELSEWHERE}/A/", f"{ELSEWHERE}/AAAA/edns", "big./TXT/", "big./TXT/edns"),
]
ASKED_MORE = [*ASKED, f"{BROKEN}/A/", f"{BROKEN}/AAAA/edns", "www./A/version", "none./AAAA/version"]
#: What the resolvers must be able to say. Otherwise the test would not show that this is counted.
COMMON = {"NOERROR", "NODATA", "NXDOMAIN", "REFUSED"}
RESOLVERS: dict[str, tuple[Callable[[Path], Resolver], list[str], set[str]]] = {
    "unbound": (
        lambda folder: unbound(folder, ZONE, more=f'    local-zone: "{ELSEWHERE}." refuse'),
        ASKED_MORE,
        COMMON | {"SERVFAIL", "BADVERS"},
    ),
    "dnsmasq": (lambda folder: dnsmasq(folder, ZONE), ASKED, COMMON),
    "bind": (
        lambda folder: bind(folder, ZONE),
        [*ASKED_MORE, "www./A/cookie", "none./A/cookie"],
        COMMON | {"SERVFAIL", "BADVERS", "BADCOOKIE"},
    ),
}
CONFIGURATION = f"""\
domains: [{ZONE.name}, {SLOW}, {BROKEN}, {ELSEWHERE}]
journal: {{repeat: 1h}}
answers: {{timeout: 2s}}
"""
COUNTED = {"rcode": "dnsprobe_responses_total", "reason": "dnsprobe_unanswered_total"}


class Client:
    """asking.py, in a network namespace. It keeps its sockets open until it is closed."""

    def __init__(self, net: Net, comm: str, scene: str, *arguments: object) -> None:
        command = [sys.executable, str(HERE.parent / "vm/guest/asking.py"), comm, scene, *map(str, arguments)]
        with net.entered():
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def told(self) -> Any:
        """Return the next thing that it prints."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def tell(self, what: object) -> None:
        """Give it a line of input."""
        assert self._process.stdin is not None
        print(what, file=self._process.stdin, flush=True)

    def kill(self) -> None:
        """End it without a chance to do something."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


@dataclass
class Host:
    """A service, and a wire with a BIND at its other end."""

    service: Service
    wire: Wire
    server: Resolver

    def counted(self, process: str) -> Counter[tuple[str, str, str]]:
        """Return what became of the queries of a process that has no waiting ones: by ``to``, transport and result."""
        self.until_none_waits()
        text = self.service.get("/metrics")
        found: Counter[tuple[str, str, str]] = Counter()
        for label, metric in COUNTED.items():
            for labels, value in _of_process(text, metric, process):
                found[labels["to"], labels["transport"], labels[label]] += int(value)
        queries = sum(value for _, value in _of_process(text, "dnsprobe_queries_total", process))
        assert found.total() == queries
        return found

    def until_none_waits(self) -> None:
        until = time.monotonic() + PATIENCE
        while sum(value for _, value in self.service.samples("dnsprobe_queries_waiting")):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert not sum(value for _, value in self.service.samples("dnsprobe_queries_untracked_total"))

    def unmatched(self) -> dict[str, int]:
        return self.service.by("dnsprobe_responses_unmatched_total", "reason")


def _of_process(text: str, metric: str, process: str) -> list[tuple[dict[str, str], float]]:
    return [(labels, value) for labels, value in samples_of(metric, text) if labels["process"] == process]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with ExitStack() as stack:
        wire = Wire()
        stack.callback(wire.close)
        server = bind(tmp_path_factory.mktemp("far"), ZONE, Listening([FAR], wire.far))
        stack.callback(server.close)
        service = Service(CONFIGURATION, tmp_path_factory.mktemp("service"))
        stack.callback(service.kill)
        yield Host(service, wire, server)


@pytest.fixture
def ask(host: Host) -> Iterator[Callable[..., Client]]:
    """Return a function that starts a client at the near end of the wire."""
    clients: list[Client] = []

    def start(comm: str, scene: str, *arguments: object) -> Client:
        clients.append(Client(host.wire.near, comm, scene, *arguments))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    host.wire.play(perfect)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", RESOLVERS)
def test_each_answer_is_counted_as_its_client_saw_it(host: Host, name: str, address: str, tmp_path: Path) -> None:
    start, asked, says = RESOLVERS[name]
    comm = f"{name}-{6 if ':' in address else 4}"
    resolver = start(tmp_path)
    try:
        client = Client(
            resolver.net, comm, "one_by_one", address, *(one.replace("./", f".{ZONE.name}/") for one in asked)
        )
        saw = client.told()
        client.close()
    finally:
        resolver.close()
    assert {result for _, result in saw} == says
    # The long text was truncated, and asked for again over TCP.
    assert len(saw) == 2 * len(asked) + 2
    assert host.counted(comm) == Counter(("local", transport, result) for transport, result in saw)


def test_answers_that_take_long_are_in_their_buckets(host: Host, ask: Callable[..., Client]) -> None:
    delay, count = 0.15, 20
    host.wire.play(lambda packet: [delay] if packet.is_answer else AT_ONCE)
    client = ask("slow", "burst", FAR, SLOW, count)
    assert client.told() == "sent"
    client.tell(count)
    took = [seconds for _, _, seconds in client.told()["received"]]
    assert host.counted("slow") == {("remote", "udp", "NOERROR"): count}
    metric, labels = "dnsprobe_response_latency_seconds", {"domain": SLOW, "transport": "udp"}
    (total,) = _values(host, f"{metric}_sum", labels)
    assert count * delay <= total <= sum(took)
    below = {
        float(found["le"]): value
        for found, value in host.service.samples(f"{metric}_bucket")
        if labels.items() <= found.items()
    }
    assert below[0.1] == 0
    assert below[math.inf] == count
    assert all(sum(seconds <= bound for seconds in took) <= value for bound, value in below.items())


def _values(host: Host, metric: str, labels: dict[str, str]) -> list[float]:
    return [value for found, value in host.service.samples(metric) if labels.items() <= found.items()]


def lossy(packet: Packet) -> tuple[float, ...]:
    """Lose every fifth query and every seventh answer, and let the others overtake each other."""
    if packet.number % (7 if packet.is_answer else 5) == 0:
        return ()
    return (packet.number * 7 % 10 / 200,)


def test_loss_and_reordering_are_told_apart(host: Host, ask: Callable[..., Client]) -> None:
    wire, count = host.wire, 100
    wire.play(lossy)
    client = ask("lossy", "burst", FAR, "www.resolvers.test", count)
    assert client.told() == "sent"
    wire.wait(lambda: wire.came[0] == count and wire.came[1] == wire.arrived[0] == count * 4 // 5)
    answers = wire.came[1] - (wire.came[1] + 6) // 7
    client.tell(answers)
    ids = [id_ for _, id_, _ in client.told()["received"]]
    assert len(set(ids)) == answers
    assert ids != sorted(ids)
    assert host.counted("lossy") == {
        ("remote", "udp", "NOERROR"): answers,
        ("remote", "udp", "timeout"): count - answers,
    }


def test_a_stream_that_loses_and_reorders_segments_is_followed(host: Host, ask: Callable[..., Client]) -> None:
    # The delays are shorter than the time after which TCP repeats a segment.
    host.wire.play(lambda packet: [] if packet.number % 9 == 8 else [packet.number * 7 % 10 / 500])
    client = ask("lossy-stream", "stream", FAR, "none.resolvers.test", 25)
    assert client.told() == [["tcp", "NXDOMAIN"]] * 25
    assert host.counted("lossy-stream") == {("remote", "tcp", "NXDOMAIN"): 25}


def test_an_answer_that_comes_twice_is_a_duplicate(host: Host, ask: Callable[..., Client]) -> None:
    before = host.unmatched()
    host.wire.play(lambda packet: [0, 0.01] if packet.is_answer else AT_ONCE)
    client = ask("twice", "burst", FAR, "www.resolvers.test", 10)
    assert client.told() == "sent"
    client.tell(20)
    assert len(client.told()["received"]) == 20
    assert host.counted("twice") == {("remote", "udp", "NOERROR"): 10}
    assert host.unmatched() == {**before, "duplicate": before["duplicate"] + 10}


def test_answers_after_the_timeout_are_late(host: Host, ask: Callable[..., Client]) -> None:
    before = host.unmatched()
    host.wire.play(lambda packet: [4] if packet.is_answer else AT_ONCE)
    client = ask("late", "burst", FAR, "www.resolvers.test", 10)
    assert client.told() == "sent"
    assert host.counted("late") == {("remote", "udp", "timeout"): 10}
    client.tell(10)
    assert len(client.told()["received"]) == 10
    assert host.counted("late") == {("remote", "udp", "timeout"): 10}
    assert host.unmatched() == {**before, "late": before["late"] + 10}


def test_a_silent_server_is_a_timeout_and_a_closed_port_is_unreachable(host: Host, ask: Callable[..., Client]) -> None:
    with host.wire.far.entered():
        rules = "table inet t {\nchain in {\ntype filter hook input priority 0; udp dport 53 ip daddr %s drop;\n}\n}"
        subprocess.run(["nft", "-f", "-"], input=rules % FAR, text=True, check=True)
    try:
        silent = ask("silent", "burst", FAR, "www.resolvers.test", 12)
        assert silent.told() == "sent"
        closed = ask("closed-port", "refused", NOBODY, "www.resolvers.test", 12)
        assert closed.told() == 12
        assert host.counted("silent") == {("remote", "udp", "timeout"): 12}
        assert host.counted("closed-port") == {("remote", "udp", "unreachable"): 12}
    finally:
        with host.wire.far.entered():
            subprocess.run(["nft", "delete", "table", "inet", "t"], check=True)


def test_an_answer_in_fragments_is_counted(host: Host, ask: Callable[..., Client], tmp_path: Path) -> None:
    server = dnsmasq(tmp_path, ZONE, Listening([NOBODY], host.wire.far))
    try:
        client = ask("fragments", "one_by_one", NOBODY, f"big.{ZONE.name}/TXT/large")
        # It is longer than what fits into a packet, and was not truncated.
        assert client.told() == [["udp", "NOERROR"], ["tcp", "NOERROR"]]
    finally:
        server.close()
    assert host.counted("fragments") == {("remote", "udp", "NOERROR"): 1, ("remote", "tcp", "NOERROR"): 1}


def test_a_client_that_ends_first_has_closed_its_queries(host: Host, ask: Callable[..., Client]) -> None:
    before = host.unmatched()
    host.wire.play(lambda packet: [0.5] if packet.is_answer else AT_ONCE)
    client = ask("ended", "burst", FAR, "www.resolvers.test", 6)
    assert client.told() == "sent"
    client.kill()
    host.wire.wait(lambda: host.wire.arrived[1] == 6)
    assert host.counted("ended") == {("remote", "udp", "closed"): 6}
    assert host.unmatched() == before


def test_an_answer_counts_whether_it_is_read_or_not(host: Host, ask: Callable[..., Client]) -> None:
    client = ask("unread", "burst", FAR, "none.resolvers.test", 9)
    assert client.told() == "sent"
    host.wire.wait(lambda: host.wire.arrived[1] == 9)
    assert host.counted("unread") == {("remote", "udp", "NXDOMAIN"): 9}


def test_an_answer_belongs_to_the_process_that_asked(host: Host, ask: Callable[..., Client]) -> None:
    client = ask("other-asks", "other_reads", FAR, "www.resolvers.test", 9)
    assert client.told() == ["NOERROR"] * 9
    assert host.counted("other-asks") == {("remote", "udp", "NOERROR"): 9}
    assert host.counted("other-reader") == {}


def test_queries_of_a_local_resolver_are_told_apart(host: Host, ask: Callable[..., Client], tmp_path: Path) -> None:
    forward = "".join(
        f'forward-zone:\n    name: "{name}"\n    forward-addr: {FAR}\n' for name in (ZONE.name, ELSEWHERE)
    )
    before = host.server.received()
    resolver = unbound(tmp_path, Zone("own.invalid"), Listening(ADDRESSES, host.wire.near), more=forward)
    try:
        asked = [f"www.{ZONE.name}/A/", f"none.{ZONE.name}/A/", f"www.{ZONE.name}/AAAA/", f"{ELSEWHERE}/A/"]
        client = ask("stub", "one_by_one", "127.0.0.1", *asked)
        saw = client.told()
        counted = host.counted("stub")
        upstream = host.counted("unbound")
    finally:
        resolver.close()
    assert counted == Counter(("local", transport, result) for transport, result in saw)
    assert {result for _, result in saw} == {"NOERROR", "NODATA", "NXDOMAIN", "SERVFAIL"}
    assert {key[0] for key in upstream} == {"remote"}
    sent_on = host.server.received() - before
    assert upstream.total() == sent_on.total()
    assert {key[2] for key in upstream} == {"NOERROR", "NODATA", "NXDOMAIN", "REFUSED"}
    assert sum(times for key, times in upstream.items() if key[2] == "REFUSED") == sent_on[ELSEWHERE]
