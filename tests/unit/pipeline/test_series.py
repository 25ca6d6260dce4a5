"""Series: their number is bounded, their sum exact, and none decreases."""

from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsprobe.model import OTHER, Count, Rule, Series
from dnsprobe.pipeline.series import Totals

RULES = [Rule(1, ".", "."), Rule(2, "example.test", "example.test")]


def count(
    tree: str = "bash;dig",
    queries: int = 1,
    rule: Rule = RULES[1],
    qtype: str = "A",
    unit: str = "a.service",
    container: str = "",
) -> Count:
    return Count(rule, qtype, "udp", tree.rpartition(";")[2], tree, unit, container, queries)


def series(tree: str = "bash;dig", qtype: str = "A", unit: str = "a.service", container: str = "") -> Series:
    return Series("example.test", qtype, "udp", tree.rpartition(";")[2], tree, unit, container)


@pytest.mark.parametrize("labels", [(), ("unit",), ("container",), ("unit", "container")])
def test_left_out_labels_are_empty_in_all_series(labels: tuple[str, ...]) -> None:
    counts = [count(unit=unit, container=container) for unit in ("a.service", "b.service") for container in ("", "c")]
    seen = Totals(100, labels).collect(counts)
    assert len(seen) == 2 ** len(labels)
    assert sum(seen.values()) == 4
    assert all(key.unit == "" for key in seen) is ("unit" not in labels)
    assert all(key.container == "" for key in seen) is ("container" not in labels)


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


def test_a_refused_series_stays_refused() -> None:
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
    refused = 3000 - totals._named_limit
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
    process=st.sampled_from(["a", "b", OTHER]),
    tree=st.sampled_from(["a", "x;a", "x;b", OTHER]),
    unit=st.sampled_from(["", "a.service"]),
    queries=st.integers(0, 3),
)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), COUNTS),
        st.tuples(st.just("ask"), st.integers(0, 50), st.integers(0, 5)),
        st.tuples(st.just("end"), st.integers(0, 50)),
        st.tuples(st.just("collect")),
        st.tuples(st.just("shuffle"), st.randoms()),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(limit=st.integers(0, 12), steps=STEPS)
def test_no_series_decreases_and_sums_are_exact(limit: int, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    totals = Totals(limit)
    live: list[Count] = []
    truth: Counter[str] = Counter()
    before: dict[Series, int] = {}
    ever: set[Series] = set()
    refused = 0
    for step in [*steps, ("collect",)]:
        match step:
            case ("start", Count() as new):
                live.append(new)
                truth[new.rule.name] += new.queries
            case ("ask", int(index), int(more)) if live:
                index %= len(live)
                live[index] = replace(live[index], queries=live[index].queries + more)
                truth[live[index].rule.name] += more
            case ("end", int(index)) if live:
                totals.add_final(live.pop(index % len(live)))
            case ("shuffle", random):
                random.shuffle(live)
            case ("collect",):
                now = totals.collect(live)
                for key, number in before.items():
                    assert now.get(key, 0) >= number
                sums: defaultdict[str, int] = defaultdict(int)
                for key, number in now.items():
                    assert number > 0
                    sums[key.domain] += number
                assert sums == +truth
                ever |= now.keys()
                assert len([key for key in ever if key.qtype != OTHER]) <= limit
                assert all(key[3:] == (OTHER, OTHER, "", "") for key in ever if key.qtype == OTHER)
                assert totals.series_folded >= refused
                refused = totals.series_folded
                before = now
