"""One user's flood of process names leaves series for other users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conftest import Service

Scene = Callable[..., Any]
Start = Callable[..., Service]

#: User ids that no account of the host has.
ATTACKER, VICTIM = 3_000_001, 3_000_002


def test_invented_process_names_do_not_use_up_the_series(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]\nmetrics: {max_series: 80}")
    scene("invented", ATTACKER, 300, "made-up", "watched.test")
    assert len(service.by("dnsprobe_queries_total", "tree")) == 71  # all that may have names, and (other)
    scene("invented", VICTIM, 10, "victim", "watched.test")
    named = service.by("dnsprobe_queries_total", "process")
    assert {name: named.get(name) for name in map("victim{}".format, range(10))} == {f"victim{n}": 1 for n in range(10)}
    left = service.value("dnsprobe_series_expired_total")
    assert left == 10
    assert sum(named.values()) + service.value("dnsprobe_queries_expired_total") == 310
