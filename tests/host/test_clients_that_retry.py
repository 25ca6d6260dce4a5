"""Real clients with their own retries: the metrics show what became of each query, as the packets on loopback do."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from capture import Outcomes
from clients import CONFIGURATION, QUICK, SCENES, play_all
from conftest import Service

Played = dict[str, tuple[Outcomes, Outcomes]]
#: What must happen in a scene, whatever the client does: otherwise, it would not show what it is for.
MUST_HAVE = {
    "answer": {"NOERROR"},
    "truncated": {"NOERROR"},
    "no such name": {"NXDOMAIN"},
    "first is silent": {"closed", "NOERROR"},
    "all are silent": {"closed"},
    "first is closed": {"NOERROR"},
    "server failure": {"SERVFAIL"},
}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Played]]]:
    """Play all scenes of all clients at once: most of the time, they wait."""
    folder = tmp_path_factory.mktemp("clients")
    service = Service(CONFIGURATION, folder)
    try:
        with ThreadPoolExecutor() as pool:
            yield {client: pool.submit(play_all, service, client, folder) for client in QUICK}
    finally:
        service.kill()


@pytest.mark.parametrize("client", QUICK)
def test_each_query_of_a_client_is_reported_as_its_packets_show(played: dict[str, Future[Played]], client: str) -> None:
    found = played[client].result()
    assert {scene: counted for scene, (_, counted) in found.items()} == {
        scene: captured for scene, (captured, _) in found.items()
    }
    for scene in found:
        results = {result for _, _, result in found[scene][0]}
        assert MUST_HAVE.get(scene, set()) <= results, scene
    assert set(found) == set(QUICK[client].scenes) <= set(SCENES)


def test_retransmissions_and_errors_of_closed_ports_were_among_them(played: dict[str, Future[Played]]) -> None:
    results = {
        client: {result for captured, _ in future.result().values() for _, _, result in captured}
        for client, future in played.items()
    }
    assert all("superseded" in results[client] for client in ("getent", "glibc", "musl", "c-ares"))
    assert all("unreachable" in results[client] for client in ("getent", "glibc", "c-ares", "dig"))
    truncated = [set(future.result()["truncated"][0]) for future in played.values() if "truncated" in future.result()]
    assert all({("TXT", "udp", "NOERROR"), ("TXT", "tcp", "NOERROR")} <= found for found in truncated)
    assert len(truncated) == 2
