"""Series: their number is bounded, their sum exact, and none decreases."""

import sys
from collections import Counter, deque
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsprobe.model import OTHER, Count, Rule, Series
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.tally import queries_of, results_of, waiting_of

RULES = [Rule(1, ".", "."), Rule(2, "example.test", "example.test")]


def count(
    tree: str = "bash;dig",
    queries: int = 1,
    rule: Rule = RULES[1],
    qtype: str = "A",
    unit: str = "a.service",
    container: str = "",
    share: int = 0,
) -> Count:
    return Count(rule, qtype, "udp", "remote", tree.rpartition(";")[2], tree, unit, container, queries, share)


def series(tree: str = "bash;dig", qtype: str = "A", unit: str = "a.service", container: str = "") -> Series:
    return Series("example.test", qtype, "udp", "remote", tree.rpartition(";")[2], tree, unit, container)


@pytest.mark.parametrize("labels", [(), ("unit",), ("container",), ("unit", "container")])
def test_left_out_labels_are_empty_in_all_series(labels: tuple[str, ...]) -> None:
    counts = [count(unit=unit, container=container) for unit in ("a.service", "b.service") for container in ("", "c")]
    seen = Totals(100, labels).collect(counts)
    assert len(seen) == 2 ** len(labels)
    assert sum(seen.values()) == 4
    assert all(key.unit == "" for key in seen) is ("unit" not in labels)
    assert all(key.container == "" for key in seen) is ("container" not in labels)


def test_the_user_is_a_label_if_it_is_wanted() -> None:
    counts = [replace(count(), user=user) for user in ("ada", "root")]
    assert Totals(100).collect(counts) == {series(): 2}
    assert Totals(100, ["unit", "user"]).collect(counts) == {
        series()._replace(user=user): 1 for user in ("ada", "root")
    }
    # Above the limit, it is left out.
    assert Totals(1, ["user"]).collect(counts) == {
        series(unit="")._replace(user="ada"): 1,
        series(OTHER, OTHER, ""): 1,
    }


def test_final_and_live_counts_add_up() -> None:
    totals = Totals(100)
    totals.add_final(count(queries=3))
    assert totals.collect([count(queries=4), count(queries=5), count("cron;curl", 7)]) == {
        series(): 12,
        series("cron;curl"): 7,
    }
    assert totals.collect([]) == {series(): 3}


def test_a_count_of_zero_makes_no_series() -> None:
    totals = Totals(8)
    totals.add_final(count("never", queries=0))
    assert totals.collect([count("never", queries=0)]) == {}
    assert totals.collect([count(f"p{i}") for i in range(7)]) == {series(f"p{i}"): 1 for i in range(7)}


def test_series_above_the_limit_are_folded() -> None:
    totals = Totals(8)  # seven by name, one by qtype
    live = [count(f"p{i}", 10) for i in range(9)]
    named = {series(f"p{i}"): 10 for i in range(7)}
    assert totals.collect(live) == {**named, series(OTHER, unit=""): 20}
    assert totals.series_folded == 2
    live.append(count("q", 1, qtype="AAAA"))
    assert totals.collect(live) == {**named, series(OTHER, unit=""): 20, series(OTHER, OTHER, "", ""): 1}
    assert totals.series_folded == 3


def test_what_is_folded_keeps_the_place_of_its_server() -> None:
    totals = Totals(8)
    live = [replace(count(f"p{i}", 10), to=to) for i in range(7) for to in ("local", "remote")]
    seen = totals.collect(live)
    assert len({key for key in seen if key.process != OTHER}) == 7
    by_place = Counter({to: sum(number for key, number in seen.items() if key.to == to) for to in ("local", "remote")})
    assert by_place == {"local": 70, "remote": 70}
    # One of the two has no room either.
    assert {(key.to, key.qtype) for key in seen if key.process == OTHER} == {("local", OTHER), ("remote", "A")}


def test_a_refused_series_stays_refused_while_the_others_are_not_idle() -> None:
    totals = Totals(8)
    first = [count(f"p{i}", 10) for i in range(8)]
    totals.collect(first)
    for gone in first[:7]:
        totals.add_final(gone)
    named = {series(f"p{i}"): 10 for i in range(7)}
    assert totals.collect([count("p7", 11)]) == {**named, series(OTHER, unit=""): 11}
    totals.add_final(count("p7", 12))
    assert totals.collect([count("p7", 1)]) == {**named, series(OTHER, unit=""): 13}
    assert totals.series_folded == 1


@dataclass
class Clock:
    """A clock that a test sets, in seconds."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_idle_series_make_room_for_new_ones_longest_idle_first() -> None:
    clock = Clock()
    totals = Totals(8, ttl=60, clock=clock)
    live = [count(f"p{i}", 10) for i in range(7)]
    for number in range(7):
        totals.collect(live[: number + 1])
        clock.now += 1
    assert clock.now == 1007
    live[0] = count("p0", 11)  # p0 is not idle
    totals.collect(live)
    clock.now = 1061.5  # p1, which last asked at 1001, is idle for 60 s
    named = {series(f"p{i}"): 10 for i in range(2, 7)} | {series("p0"): 11}
    assert totals.collect([*live, count("new"), count("late")]) == named | {
        series("new"): 1,
        series(OTHER, unit=""): 1,
    }
    assert totals.expired == {"example.test": 10}
    assert (totals.series_expired, totals.series_folded) == (1, 1)


def test_nothing_leaves_without_need() -> None:
    clock = Clock()
    totals = Totals(8, ttl=60, clock=clock)
    totals.add_final(count("old", 3))
    for _ in range(5):
        clock.now += 1000
        assert totals.collect([]) == {series("old"): 3}
    assert totals.series_expired == 0


def test_a_series_that_left_begins_again_at_zero() -> None:
    clock = Clock()
    totals = Totals(8, ttl=60, clock=clock)
    live = [count("sleeper", 10), *(count(f"p{i}") for i in range(6))]
    totals.collect(live)
    clock.now += 100
    live += [count("new")]
    assert series("sleeper") not in totals.collect(live)
    live[0] = count("sleeper", 12)  # the same process asks again
    assert totals.collect(live)[series("sleeper")] == 2
    totals.add_final(live.pop(0))
    assert totals.collect(live)[series("sleeper")] == 2


def test_a_refused_series_is_named_once_there_is_room() -> None:
    clock = Clock()
    totals = Totals(8, ttl=60, clock=clock)
    for number in range(7):
        totals.add_final(count(f"p{number}"))
    late = count("late", 5)
    assert totals.collect([late])[series(OTHER, unit="")] == 5
    clock.now += 100
    # Without a new query it needs no room. With one, it gets a name; what was counted as (other) stays there.
    assert series("late") not in totals.collect([late])
    found = totals.collect([replace(late, queries=7)])
    assert (found[series(OTHER, unit="")], found[series("late")]) == (5, 2)
    totals.add_final(replace(late, queries=8))
    found = totals.collect([])
    assert (found[series(OTHER, unit="")], found[series("late")]) == (5, 3)


def test_the_share_with_the_most_series_makes_room_for_others() -> None:
    totals = Totals(80)
    flood = [count(f"flood{i}", share=1) for i in range(70)]
    assert len(totals.collect(flood)) == 70
    victims = [count(f"victim{i}", share=2 + i) for i in range(10)]
    found = totals.collect([*flood, *victims])
    assert all(found[series(f"victim{i}")] == 1 for i in range(10))
    assert totals.expired == {"example.test": 10}
    assert sum(found.values()) + 10 == 80
    # The attacker's own series do not come back at the cost of others.
    found = totals.collect([*(replace(one, queries=2) for one in flood), *victims])
    assert all(found[series(f"victim{i}")] == 1 for i in range(10))
    assert set(totals.take_over_share()) == {1}


def test_shares_of_the_same_size_do_not_push_each_other_out() -> None:
    totals = Totals(16)
    live = [count(f"{share}{i}", share=share) for i in range(7) for share in (1, 2)]
    before = totals.collect(live)
    after = totals.collect([*live, count("a7", share=1), count("b7", share=2)])
    assert after == before | {series(OTHER, unit=""): 2}
    assert totals.series_expired == 0


def test_a_year_of_new_trees() -> None:
    """A million different trees in a year, one in half a minute; half of them run for a day."""
    clock = Clock()
    totals = Totals(400, ttl=24 * 3600, clock=clock)
    live: deque[Count] = deque()
    size = 0
    for number in range(1_000_000):
        clock.now += 365 * 86400 / 1_000_000
        new = count(f"tree{number}")
        if number % 2:
            live.append(new)
            if len(live) > 1370:
                totals.add_final(live.popleft())
        else:
            totals.add_final(new)
        if number % 5000 == 0:
            found = totals.collect(live)
            assert sum(found.values()) + totals.expired["example.test"] == number + 1
            assert len(found) <= 400 + 1
        if number == 200_000:
            size = total_size(totals)
    # Counts that have ended wait for the collection: no more than those that were live at the last one.
    totals.collect(live)
    assert total_size(totals) < size * 1.05
    # A new tree gets a name after the room was full of idle ones.
    clock.now += 86400
    assert totals.collect([*live, count("new")])[series("new")] == 1


def total_size(totals: Totals) -> int:
    """Return how many octets the containers of an object take."""
    parts = (totals, totals._named, totals._others, totals._refused)
    return sum(sys.getsizeof(value) for part in parts for value in vars(part).values())


def test_queries_counted_without_their_process_need_no_place() -> None:
    totals = Totals(8)
    unattributed = count(OTHER, 5, unit="")
    live = [count(f"p{i}", 1) for i in range(7)]
    assert totals.collect([unattributed, *live]) == {
        series(OTHER, unit=""): 5,
        **{series(f"p{i}"): 1 for i in range(7)},
    }
    assert totals.series_folded == 0


def test_a_process_named_other_is_not_folded() -> None:
    totals = Totals(8)
    assert totals.collect([count("bash;(other)", 2), count(OTHER, 3)]) == {
        series("bash;(other)"): 2,
        series(OTHER, unit=""): 3,
    }


@pytest.mark.parametrize("limit", [0, 1, 7, 8, 9, 100])
def test_the_number_of_series_is_bounded(limit: int) -> None:
    totals = Totals(limit)
    for number in range(3000):
        one = count(f"p{number}", 1, RULES[number % 2], qtype=f"TYPE{number % 500}")
        totals.collect([one, one])
        totals.add_final(one)
    collected = totals.collect([])
    assert sum(collected.values()) == 3000
    assert len(collected) <= limit + len(RULES)
    assert len(totals._named) + len(totals._others) <= limit
    refused = 3000 - (limit - limit // 8)
    assert refused >= totals.series_folded > refused * 0.98


def test_refusals_are_counted_once_each() -> None:
    totals = Totals(0)
    live = [count(f"p{number}") for number in range(50)]
    for _ in range(20):
        totals.collect(live)
    assert 45 <= totals.series_folded <= 50


COUNTS = st.builds(
    Count,
    rule=st.sampled_from(RULES),
    qtype=st.sampled_from(["A", "AAAA", "MX"]),
    transport=st.sampled_from(["udp", "tcp"]),
    to=st.sampled_from(["local", "remote"]),
    process=st.sampled_from(["a", "b", OTHER]),
    tree=st.sampled_from(["a", "x;a", "x;b", OTHER]),
    unit=st.sampled_from(["", "a.service"]),
    user=st.sampled_from(["", "ada"]),
    queries=st.integers(0, 3),
    share=st.sampled_from([1, 2]),
)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), COUNTS),
        st.tuples(st.just("ask"), st.integers(0, 50), st.integers(0, 5)),
        st.tuples(st.just("answer"), st.integers(0, 50), st.integers(0, 2), st.integers(0, 5)),
        st.tuples(st.just("end"), st.integers(0, 50)),
        st.tuples(st.just("collect")),
        st.tuples(st.just("wait"), st.integers(1, 100)),
        st.tuples(st.just("shuffle"), st.randoms()),
    ),
    max_size=60,
)

#: The kinds of results in the test.
KINDS = 3


def answered(count: Count, kind: int, times: int) -> Count:
    """Return a count of which some queries that wait have got a result."""
    results = [*(count.results or (0,) * KINDS)]
    results[kind] += min(times, count.queries - sum(results))
    return replace(count, results=tuple(results))


class Sums:
    """What was sent and answered up to now, compared with what is shown. No series may decrease or be ahead."""

    def __init__(self, totals: Totals) -> None:
        self.totals = totals
        self.ended: list[Count] = []
        self.before: dict[Series, int] = {}
        self.left = self.refused = 0

    def check(self, live: list[Count], limit: int) -> None:
        totals = self.totals
        queries = totals.collect(live)
        now = dict(totals.tallies)
        assert queries == {key: queries_of(number) for key, number in now.items()}
        assert all(queries.values())
        decreased = [key for key, number in self.before.items() if has_decreased(number, now.get(key, 0))]
        assert len(decreased) <= totals.series_expired - self.left
        sums: dict[str, int] = dict(totals.expired_tallies)
        for key, number in now.items():
            sums[key.domain] = sums.get(key.domain, 0) + number
        for one in [*now.values(), *totals.expired_tallies.values()]:
            assert waiting_of(one) >= 0
        for rule in RULES:
            counts = [one for one in [*live, *self.ended] if one.rule == rule]
            found = sums.get(rule.name, 0)
            assert queries_of(found) == sum(one.queries for one in counts)
            results = [sum(kind) for kind in zip(*(one.results for one in counts if one.results), strict=True)]
            assert padded(results_of(found)) == padded(results)
        assert len([key for key in now if key.qtype != OTHER]) <= limit
        assert all(key[4:] == (OTHER, OTHER, "", "", "", "") for key in now if key.qtype == OTHER)
        assert totals.series_folded >= self.refused
        self.before, self.left, self.refused = now, totals.series_expired, totals.series_folded


def padded(results: list[int]) -> list[int]:
    return (results + [0] * KINDS)[:KINDS]


def has_decreased(before: int, now: int) -> bool:
    """Return whether any number of a tally is less than before."""
    numbers = zip(padded(results_of(before)), padded(results_of(now)), strict=True)
    return queries_of(now) < queries_of(before) or any(after < one for one, after in numbers)


@pytest.mark.parametrize("tracks_answers", [False, True])
@settings(max_examples=600, deadline=None)
@given(limit=st.integers(0, 12), ttl=st.sampled_from([50, float("inf")]), steps=STEPS)
def test_no_series_decreases_and_sums_are_exact(
    tracks_answers: bool,
    limit: int,
    ttl: float,
    steps: list[tuple],  # type: ignore[type-arg]
) -> None:
    clock = Clock()
    totals = Totals(limit, ttl=ttl, clock=clock, tracks_answers=tracks_answers)
    live: list[Count] = []
    sums = Sums(totals)
    for step in [*steps, ("collect",)]:
        match step:
            case ("start", Count() as new):
                live.append(new)
            case ("ask", int(index), int(more)) if live:
                index %= len(live)
                live[index] = replace(live[index], queries=live[index].queries + more)
            case ("answer", int(index), int(kind), int(times)) if live and tracks_answers:
                index %= len(live)
                live[index] = answered(live[index], kind, times)
            case ("end", int(index)) if live:
                gone = live.pop(index % len(live))
                gone = answered(gone, 0, gone.queries) if tracks_answers else gone
                totals.add_final(gone)
                sums.ended.append(gone)
            case ("shuffle", random):
                random.shuffle(live)
            case ("wait", int(seconds)):
                clock.now += seconds
            case ("collect",):
                sums.check(live, limit)


def test_results_go_where_the_queries_went() -> None:
    clock = Clock()
    totals = Totals(8, ttl=60, clock=clock, tracks_answers=True)
    sleeper = replace(count("sleeper", 5), results=(3,))
    totals.collect([sleeper, *(count(f"p{i}") for i in range(6))])
    clock.now += 100
    others = [count(f"p{i}") for i in range(6)]
    totals.collect([sleeper, *others, count("new")])
    assert totals.expired == {"example.test": 5}
    assert results_of(totals.expired_tallies["example.test"]) == [3]
    # The same process asks again, and gets an answer: it is that of a query from before.
    clock.now += 100
    sleeper = replace(sleeper, queries=7, results=(3, 1))
    totals.collect([sleeper, *others, count("new")])
    assert totals.expired_tallies["example.test"] >> 64 == 3 + (1 << 64)
    assert totals.tallies[series("sleeper")] == 2
    sleeper = replace(sleeper, results=(4, 3))
    totals.collect([sleeper, *others, count("new")])
    assert totals.tallies[series("sleeper")] == 2 + (2 << 128)
    # The series that made room for the sleeper has a query that waits.
    assert waiting_of(totals.expired_tallies["example.test"]) == 1


def test_results_of_folded_queries_stay_with_them() -> None:
    clock = Clock()
    totals = Totals(8, ttl=60, clock=clock, tracks_answers=True)
    for number in range(7):
        totals.add_final(count(f"p{number}"))
    late = count("late", 5)
    totals.collect([late])
    assert waiting_of(totals.tallies[series(OTHER, unit="")]) == 5
    clock.now += 100
    totals.collect([replace(late, queries=6, results=(4,))])
    assert results_of(totals.tallies[series(OTHER, unit="")]) == [4]
    assert totals.tallies[series("late")] == 1
    totals.add_final(replace(late, queries=6, results=(4, 2)))
    totals.collect([])
    assert totals.tallies[series(OTHER, unit="")] == 5 + (4 << 64) + (1 << 128)
    assert totals.tallies[series("late")] == 1 + (1 << 128)


def test_a_counter_with_a_result_too_many_ends_nothing() -> None:
    # Two processes that share a socket and send the same query at once may get results of each other.
    totals = Totals(16, tracks_answers=True)
    racer = replace(count("racer", 10, share=1), results=(0, 11))
    others = [replace(count(f"filler{number}", share=1), results=(1, 0)) for number in range(13)]
    totals.collect([racer, *others])
    others.append(replace(count("other", share=2), results=(1, 0)))
    totals.collect([racer, *others])
    racer = replace(racer, queries=12, results=(0, 13))
    queries = totals.collect([racer, *others])
    gone = sum(map(queries_of, totals.expired_tallies.values()))
    assert sum(queries.values()) + gone == 12 + len(others)
