"""When to look for process trees that ask too often."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

from made_up import RATE, TOO_MANY

from dnsprobe.commands.rate_alerts import RateAlerts
from dnsprobe.model import Rule, Series
from dnsprobe.names.ruleset import RuleTable
from dnsprobe.pipeline.session import Session

MS = 10**6


@dataclass
class FakeSession:
    """A session whose collection takes some time of a made-up clock, and finds more queries than before."""

    rules: RuleTable
    takes: int = 20 * MS
    now: int = 0
    collections: int = 0
    counts: dict[Series, int] = field(default_factory=dict)

    def collect(self) -> dict[Series, int]:
        self.now += self.takes
        self.collections += 1
        series = Series("example.test", "A", "udp", "remote", "dig", "bash;dig", "", "")
        self.counts = {series: self.counts.get(series, 0) + RATE.queries}
        return self.counts

    async def collect_in_turns(self) -> dict[Series, int]:
        return self.collect()

    def alerts(self) -> RateAlerts:
        return RateAlerts(cast("Session", self), lambda: self.now)


LIMITED = RuleTable((TOO_MANY.rule,), ())


def test_nothing_is_collected_without_a_limit() -> None:
    session = FakeSession(RuleTable((Rule(1, "example.test", "example.test"),), ()))
    alerts = session.alerts()
    assert alerts.look_now() == []
    assert asyncio.run(alerts.look_in_turns()) == []
    assert session.collections == 0
    # A reload may add one, and take it away.
    session.rules = LIMITED
    assert alerts.look_now() == []
    assert session.collections == 1
    session.rules = RuleTable((), ())
    session.now += 1000 * MS
    assert alerts.look_now() == []
    assert session.collections == 1


def test_both_ways_find_a_tree_above_the_rate() -> None:
    for in_turns in (False, True):
        session = FakeSession(LIMITED)
        alerts = session.alerts()
        found = []
        for _ in range(3):
            session.now += 1000 * MS
            found += asyncio.run(alerts.look_in_turns()) if in_turns else alerts.look_now()
        ((tree, queries, at),) = [(alert.tree, alert.queries, alert.time_ns) for alert in found]
        assert (tree, queries, at) == ("bash;dig", 2 * RATE.queries, session.now)


def test_collections_that_take_long_are_made_less_often() -> None:
    for takes, pause in ((20 * MS, 200 * MS), (300 * MS, 3000 * MS), (10_000 * MS, 5000 * MS)):
        session = FakeSession(LIMITED, takes)
        alerts = session.alerts()
        alerts.look_now()
        session.now += pause - 1
        alerts.look_now()
        assert session.collections == 1
        session.now += 1
        alerts.look_now()
        assert session.collections == 2
