"""Process trees above the rate of an alert: what is in a window, and how much room it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsprobe.model import OTHER, Alert, Rate, Rule, Series
from dnsprobe.pipeline.rates import Rates

SECOND = 10**9
#: From the begin of a collection to its end.
TAKES = SECOND // 100


def rule(name: str = "a.test", queries: int = 10, seconds: int = 60) -> Rule:
    return Rule(1, name, name, 6, Alert(3, rate=Rate(queries, seconds * SECOND)))


def series(tree: str = "sh;dig", domain: str = "a.test", qtype: str = "A", unit: str = "") -> Series:
    return Series(domain, qtype, "udp", "remote", tree.rpartition(";")[2], tree, unit, "")


class Stage:
    """Rates with a made-up clock, which have seen a first collection. Alerts are shown as tree and queries."""

    def __init__(self, *rules: Rule, trees: int = 100) -> None:
        self.rates, self.rules = Rates(trees), list(rules) or [rule()]
        self.now = 1_000_000 * SECOND
        self.totals: dict[Series, int] = {}
        assert self.look() == []

    def look(self, **sent: int) -> list[tuple[str, int]]:
        """Collect one second later. ``sent`` are the queries of trees of the first rule since the last time."""
        for tree, queries in sent.items():
            key = series(tree)
            self.totals[key] = self.totals.get(key, 0) + queries
        self.now += SECOND
        found = self.rates.look(self.rules, self.totals, self.now, self.now + TAKES)
        assert all(alert.time_ns == self.now + TAKES for alert in found)
        return [(alert.tree, alert.queries) for alert in found]


def test_a_tree_above_the_rate_has_an_alert() -> None:
    stage = Stage()
    assert stage.look(dig=10, curl=9) == []
    assert stage.look(curl=1) == []
    assert stage.look(dig=1) == [("dig", 11)]
    assert stage.look(curl=5) == [("curl", 15)]


def test_an_alert_names_its_rule_and_has_its_priority() -> None:
    stage = Stage()
    stage.totals[series()] = 11
    (found,) = stage.rates.look(stage.rules, stage.totals, stage.now + SECOND, stage.now + SECOND)
    assert (found.rule, found.rate, found.priority, found.share) == (stage.rules[0], Rate(10, 60 * SECOND), 3, 0)


def test_all_series_of_a_tree_add_up() -> None:
    stage = Stage(rule(), rule("b.test"))
    for qtype in ("A", "AAAA", "HTTPS"):
        stage.totals[series(qtype=qtype)] = 3
        stage.totals[series(qtype=qtype, unit="a.service")] = 1
    stage.totals[series(domain="b.test")] = 10
    stage.totals[series(domain="c.test")] = 1000
    assert stage.look() == [("sh;dig", 12)]


def test_a_tree_has_one_alert_in_a_window() -> None:
    stage = Stage()
    found = [stage.look(dig=5) for _ in range(200)]
    assert [at for at, alerts in enumerate(found) if alerts] == [2, 62, 122, 182]


def test_queries_leave_the_window() -> None:
    stage = Stage()
    assert stage.look(dig=10) == []
    for _ in range(61):
        assert stage.look() == []
    assert stage.look(dig=10) == []
    assert stage.rates._windows.keys() == {("a.test", "dig")}


@given(st.lists(st.integers(0, 9), min_size=80, max_size=200))
def test_an_alert_is_true_and_none_is_missing(sent: list[int]) -> None:
    """An alert has no query from before the window. One is missing only for what was sent in its first seconds."""
    stage = Stage(rule(queries=30, seconds=10))
    last = -10
    for at, queries in enumerate(sent):
        found = stage.look(dig=queries)
        # Collections are a second apart: what ten of them show may have been sent in more than ten seconds.
        surely = sum(sent[max(at - 8, 0) : at + 1])
        assert found in ([("dig", surely)], [])
        assert bool(found) == (surely > 30 and at - last >= 10)
        last = at if found else last


def test_counts_from_before_the_first_look_are_of_no_known_time() -> None:
    rates = Rates()
    assert rates.look([rule()], {series(): 1000}, SECOND, SECOND) == []
    assert rates.look([rule()], {series(): 1010}, 2 * SECOND, 2 * SECOND) == []
    (found,) = rates.look([rule()], {series(): 1011}, 3 * SECOND, 3 * SECOND)
    assert found.queries == 11


@pytest.mark.parametrize(("queries", "found"), [(30, []), (31, [("dig", 11)])])
def test_a_tree_above_the_rate_is_found_though_collections_are_rare(queries: int, found: list[tuple[str, int]]) -> None:
    """If more than three times the limit were sent in three windows, one of them had more than the limit."""
    stage = Stage(rule(seconds=10))
    assert stage.look(dig=9) == []
    stage.now += 28 * SECOND
    assert stage.look(dig=queries) == found


def test_a_reload_changes_the_limit_and_keeps_the_counts() -> None:
    stage = Stage(rule(queries=1000))
    assert stage.look(dig=20) == []
    stage.totals[series("dig", "b.test")] = 500
    stage.rules = [rule(queries=20), rule("b.test", 20)]
    assert stage.look() == []  # b.test was not compared before
    assert stage.look(dig=1) == [("dig", 21)]
    stage.totals[series("dig", "b.test")] += 21
    assert stage.look() == [("dig", 21)]
    stage.rules = []
    assert stage.look(dig=100) == []
    assert stage.rates._windows == {}


def test_a_series_that_left_begins_at_zero() -> None:
    stage = Stage()
    assert stage.look(dig=8) == []
    stage.totals[series("dig")] = 3
    assert stage.look() == [("dig", 11)]


def test_a_bounded_number_of_trees_is_told_apart() -> None:
    stage = Stage(rule(queries=5), trees=3)
    assert stage.look(**{f"t{number}": 2 for number in range(6)}) == [(OTHER, 6)]
    assert len(stage.rates._windows) == 4
    for _ in range(62):
        assert stage.look() == []
    assert stage.rates._windows == {}
    assert stage.look(t5=6) == [("t5", 6)]


@pytest.mark.parametrize("seconds", [10, 3600, 86400])
def test_a_window_takes_a_bounded_room(seconds: int) -> None:
    stage = Stage(rule(seconds=seconds, queries=10**9))
    for _ in range(2000):
        assert stage.look(dig=1) == []
    (window,) = stage.rates._windows.values()
    assert len(window.parts) <= 17
    assert 2000 >= window.queries >= min(2000, seconds * 15 // 16 - 1)
