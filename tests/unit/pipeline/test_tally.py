"""Tallies: several numbers in one, each with its own sum."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dnsprobe.pipeline.tally import common, queries_of, results_of, some_results, tally, waiting_of

NUMBERS = st.integers(0, 1 << 50)
RESULTS = st.lists(NUMBERS, max_size=16)


def stripped(results: list[int]) -> list[int]:
    """Return results without zeros at the end."""
    while results and not results[-1]:
        results = results[:-1]
    return results


def padded(numbers: list[int]) -> list[int]:
    return numbers + [0] * (20 - len(numbers))


@given(NUMBERS, RESULTS, NUMBERS, RESULTS)
def test_sums_and_differences_are_those_of_each_number(
    queries: int, results: list[int], more: int, more_results: list[int]
) -> None:
    one, other = tally(queries, results), tally(more, more_results)
    assert queries_of(one + other) == queries + more
    sums = [before + after for before, after in zip(padded(results), padded(more_results), strict=True)]
    assert results_of(one + other) == stripped(sums)
    assert (one + other) - other == one
    assert waiting_of(one) == queries - sum(results)
    pairs = zip(padded(results), padded(more_results), strict=True)
    assert common(one, other) == tally(min(queries, more), [min(pair) for pair in pairs])


def test_a_tally_without_results_is_the_number_of_queries() -> None:
    assert tally(7) == tally(7, [0, 0]) == 7
    assert results_of(7) == []


@given(NUMBERS, RESULTS, NUMBERS)
def test_some_results_are_the_first_ones(queries: int, results: list[int], limit: int) -> None:
    some = some_results(tally(queries, results), limit)
    assert queries_of(some) == 0
    assert sum(results_of(some)) == min(limit, sum(results))
    assert all(taken <= there for taken, there in zip(padded(results_of(some)), padded(results), strict=True))
