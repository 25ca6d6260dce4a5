"""Queries and what became of them, in one number.

A tally is an integer that has the queries in its lowest 64 bits, and each result in the next 64 bits. So the sum of two
tallies has the sums of all numbers, and so has the difference if no number of it is negative. A tally without results
is the number of queries itself. One addition costs 50 ns, that of tuples a microsecond; a scrape may add up 65,536
counters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_BITS = 64
_MASK = (1 << _BITS) - 1
#: The most results that a tally has.
_RESULTS = 32
#: The octets of a tally, by the number of its results.
_LAYOUTS = [struct.Struct(f"<Q{number}Q") for number in range(_RESULTS + 1)]


def tally(queries: int, results: Sequence[int] = ()) -> int:
    """Return the tally of queries and their results."""
    if not results:
        return queries
    return int.from_bytes(_LAYOUTS[len(results)].pack(queries, *results), "little")


def queries_of(counted: int) -> int:
    """Return the queries of a tally."""
    return counted & _MASK


def results_of(counted: int) -> list[int]:
    """Return the results of a tally, up to the last one that is not 0."""
    results = []
    while counted := counted >> _BITS:
        results.append(counted & _MASK)
    return results


def waiting_of(counted: int) -> int:
    """Return how many queries of a tally have no result."""
    return queries_of(counted) - sum(results_of(counted))


def common(one: int, other: int) -> int:
    """Return the tally of which each number is the smaller one of two tallies."""
    if one <= _MASK and other <= _MASK:
        return min(one, other)
    return _joined(min(pair) for pair in zip(_numbers(one), _numbers(other), strict=False))


def some_results(counted: int, limit: int) -> int:
    """Return a tally without queries, which has ``limit`` of the results of another one, or all if there are fewer."""
    taken = [0]
    for times in results_of(counted):
        taken.append(min(times, limit))
        limit -= taken[-1]
    return _joined(taken)


def _numbers(counted: int) -> list[int]:
    return [queries_of(counted), *results_of(counted)]


def _joined(numbers: Iterable[int]) -> int:
    queries, *results = numbers
    return tally(queries, results)
