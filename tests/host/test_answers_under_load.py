"""While dnsperf asks a real resolver at full speed, the sums close at each scrape, and its figures are ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Service
from load import CONFIGURATION, ZONE, differences, measure
from real_resolvers import RESOLVERS

#: benchmarks/answers_under_load.py takes longer.
SECONDS = 4


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_the_figures_of_dnsperf_are_ours(start: Callable[..., Service], transport: str, tmp_path: Path) -> None:
    service = start(CONFIGURATION)
    resolver = RESOLVERS["unbound"](tmp_path, ZONE)
    try:
        load = measure(service, resolver, transport, SECONDS, tmp_path)
    finally:
        resolver.close()
    assert differences(load) == []
    assert load.rcodes.keys() == {"NOERROR", "NXDOMAIN"}
    # Some were made during the run.
    assert sum(0 < sums.queries < load.told.sent for sums in load.scrapes) > 0
