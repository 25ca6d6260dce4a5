"""Totals of queries in a bounded number of series. No series ever decreases."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from dnsprobe.model import OPTIONAL_LABELS, OTHER, Count, Series

#: One in this number of series is reserved for queries above the limit, so that these still have their qtype.
_OTHERS_SHARE = 8
#: Bits that mark refused series: 128 KiB.
_REFUSED_BITS = 1 << 20


def total_queries(counts: Mapping[Series, int]) -> int:
    """Return the sum of all series of queries, without encrypted connections."""
    return sum(number for series, number in counts.items() if not series.encrypted)


class Totals:
    """The queries of all processes, running and ended, as series.

    ``labels`` are the optional labels that series have. At most ``max_series`` different series are ever admitted; an
    eighth of them is reserved for ``(other)``. A series is admitted or refused for good when it is first seen. None is
    ever removed, so none loses what it has shown.

    - Queries of a refused series count under its domain, qtype and transport, with ``(other)`` as process and tree, and
      without unit and container.
    - If there is no room for that series either, the qtype is ``(other)`` too. One such series per domain and transport
      is always admitted.

    The sum over a domain is always exact, if the caller keeps two rules:

    - The labels of a live count never change.
    - When a live count ends, the caller passes it to :meth:`add_final` before it calls :meth:`collect` again, and no
      longer to :meth:`collect`.
    """

    def __init__(self, max_series: int, labels: Collection[str] = OPTIONAL_LABELS) -> None:
        self._without = dict.fromkeys(set(OPTIONAL_LABELS) - set(labels), "")
        self._others_limit = max_series // _OTHERS_SHARE
        self._named_limit = max_series - self._others_limit
        self._named: set[Series] = set()
        self._others: set[Series] = set()
        self._final: dict[Series, int] = {}
        self._refused = bytearray(_REFUSED_BITS // 8)
        #: How many different series were refused. Series are told apart by a hash. Collisions make the number a little
        #: low, by about 1 in 100 at 20,000; its maximum is 1,048,576.
        self.series_folded = 0

    def add_final(self, count: Count) -> None:
        """Add a count that does not change any more."""
        self._add(self._final, count)

    def collect(self, live: Iterable[Count]) -> dict[Series, int]:
        """Return the queries of each series: the final counts and ``live``, the counts of processes up to now."""
        totals = self._final.copy()
        for count in live:
            self._add(totals, count)
        return totals

    def _add(self, totals: dict[Series, int], count: Count) -> None:
        if count.queries:
            series = self._place(count)
            totals[series] = totals.get(series, 0) + count.queries

    def _place(self, count: Count) -> Series:
        series = Series(
            count.rule.name, count.qtype, count.transport, count.process, count.tree, count.unit, count.container
        )
        if self._without:
            series = series._replace(**self._without)
        # Queries that the kernel counted without their process are "(other)" already.
        if not series.process == series.tree == OTHER:
            if series in self._named:
                return series
            if len(self._named) < self._named_limit:
                self._named.add(series)
                return series
            self._refuse(series)
        series = series._replace(process=OTHER, tree=OTHER, unit="", container="")
        if series in self._others:
            return series
        if len(self._others) < self._others_limit:
            self._others.add(series)
            return series
        return series._replace(qtype=OTHER)

    def _refuse(self, series: Series) -> None:
        byte, bit = divmod(hash(series) % _REFUSED_BITS, 8)
        if not self._refused[byte] & 1 << bit:
            self._refused[byte] |= 1 << bit
            self.series_folded += 1
