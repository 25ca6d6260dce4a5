"""Whatever a real resolver answers is counted, as a query or as unread, for the process that sent it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass

import pytest
import stream_sender
from conftest import HERE, PATIENCE, Service
from real_resolvers import RESOLVERS, Resolver, Zone
from test_tcp_at_egress import GUEST, SCENES, TOOLS
from ways_out.place import Place
from ways_to_hide import ANSWERED, WAYS, Told

ZONE = Zone("hidden.test", {"www": "192.0.2.1"}, {"alias": "www"})
#: The scenes that do not need a server that reads slowly, or packets that get lost.
ENDED_BY_CLIENT = [
    *("urgent octet", "urgent octet in a query", "buffer of a send without a copy", "write that fails"),
    *("file and pipe", "file that changes", "Nagle", "Multipath TCP"),
]
#: The same for the forms of TCP.
FORMS = sorted(stream_sender.FORMS.keys() - {"again", "givenup"})


@dataclass
class Host:
    """A service, and real resolvers by their name."""

    service: Service
    resolvers: dict[str, Resolver]

    def counted(self, process: str) -> tuple[int, int]:
        """Return how many queries of a process count, and how many messages of it are unread."""
        queries, unread = (
            sum(int(value) for labels, value in self.service.samples(metric) if labels["process"] == process)
            for metric in ("dnsprobe_queries_total", "dnsprobe_messages_unread_total")
        )
        return queries, unread


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with ExitStack() as stack:
        resolvers = {}
        for name, start in RESOLVERS.items():
            resolvers[name] = start(tmp_path_factory.mktemp(name), ZONE)
            stack.callback(resolvers[name].close)
        service = Service("domains: [hidden.test]\njournal: {repeat: 1h}", tmp_path_factory.mktemp("service"))
        stack.callback(service.kill)
        yield Host(service, resolvers)


def in_process(resolver: Resolver, comm: str, way: Callable[[], Told]) -> Told:
    """Run a way in a process of its own, where the resolver is."""
    reader, writer = os.pipe()
    place = Place("resolvers", HERE, None)
    try:
        place.ask(lambda: os.write(writer, json.dumps(astuple(way())).encode()), comm, resolver.net)
        return Told(*json.loads(os.read(reader, 100)))
    finally:
        place.close()
        os.close(reader)
        os.close(writer)


def queries_for_zone(resolver: Resolver) -> int:
    return sum(count for name, count in resolver.received().items() if name.endswith("hidden.test"))


@pytest.mark.parametrize("name", RESOLVERS)
@pytest.mark.parametrize("way", WAYS)
def test_what_a_resolver_answers_is_counted_for_its_sender(host: Host, name: str, way: str) -> None:
    resolver, process = host.resolvers[name], f"{name}-{list(WAYS).index(way)}"
    before = queries_for_zone(resolver)
    told = in_process(resolver, process, WAYS[way])
    answered = max(told.answered, queries_for_zone(resolver) - before)
    queries, unread = host.counted(process)
    assert answered <= queries + unread <= told.sent
    if way in ANSWERED:
        assert (answered, unread) == (told.sent, 0)


@pytest.mark.parametrize("name", RESOLVERS)
@pytest.mark.parametrize("scene", ENDED_BY_CLIENT)
def test_what_a_resolver_reads_of_a_stream_is_counted_for_its_sender(host: Host, name: str, scene: str) -> None:
    resolver, process = host.resolvers[name], f"{name}-tcp-{ENDED_BY_CLIENT.index(scene)}"
    before = queries_for_zone(resolver)
    program = f"{TOOLS}\nname_process({process!r})\n{SCENES[scene]}"
    with resolver.net.entered():
        subprocess.run([sys.executable, "-c", program, str(GUEST)], check=True, timeout=PATIENCE)
    received = queries_for_zone(resolver) - before
    assert received > 0
    assert host.counted(process) == (received, 0)


@pytest.mark.parametrize("name", RESOLVERS)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_tcp_that_a_resolver_reads_is_counted(host: Host, name: str, form: str) -> None:
    resolver, process = host.resolvers[name], f"{name}-{form}"
    before = queries_for_zone(resolver)

    def send() -> Told:
        for family in stream_sender.FAMILIES:
            stream_sender.FORMS[form](family, "www.hidden.test")
        return Told(0, 0)

    in_process(resolver, process[:15], send)
    received = queries_for_zone(resolver) - before
    assert received > 0
    assert host.counted(process[:15]) == (received, 0)
