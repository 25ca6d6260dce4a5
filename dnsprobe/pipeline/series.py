"""Counts of processes added up into a bounded number of series that never go backwards."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from dnsprobe.model import OPTIONAL_LABELS, OTHER, Count, Series

#: One in so many series is set aside for what is above the limit, so that it can still be told apart by qtype.
_OTHERS_SHARE = 8
#: Bits to remember refused series by: 128 KiB.
_REFUSED_BITS = 1 << 20


def total_queries(counts: Mapping[Series, int]) -> int:
    """Return how many queries there are in all."""
    return sum(number for series, number in counts.items() if not series.encrypted)


class Totals:
    """The queries of all processes, gone and alive, as series.

    Of the optional labels only ``labels`` tell series apart. At most ``max_series`` different series are ever admitted,
    an eighth of them for what has no series of its own; beyond them there is one more per domain and transport. A
    series is admitted or refused when it is first seen, for good: room never comes back, so what was refused once is
    refused for ever, and no series loses what it has shown.

    - What is refused counts under the same domain, qtype and transport, with ``(other)`` as process and tree, no unit
      and no container.
    - If there is no room for that either, ``(other)`` stands for the qtype, too; these are always admitted.

    The sum over a domain is exact all the time. This asks two things of the caller: a live count's labels stay the same
    while it lives, and it is folded as it goes, between two calls of :meth:`collect`.
    """

    def __init__(self, max_series: int, labels: Collection[str] = OPTIONAL_LABELS) -> None:
        self._without = dict.fromkeys(set(OPTIONAL_LABELS) - set(labels), "")
        self._others_limit = max_series // _OTHERS_SHARE
        self._named_limit = max_series - self._others_limit
        self._named: set[Series] = set()
        self._others: set[Series] = set()
        self._folded: dict[Series, int] = {}
        self._refused = bytearray(_REFUSED_BITS // 8)
        #: How many different series were refused. Each is counted once, by its hash, so the number is a little low
        #: where hashes meet: by about 1 in 100 at 20,000, and it ends at 1,048,576.
        self.series_folded = 0

    def fold(self, count: Count) -> None:
        """Add the final count of a process that is gone."""
        self._add(self._folded, count)

    def collect(self, live: Iterable[Count]) -> dict[Series, int]:
        """Return the queries of each series: what was folded, and ``live``, the counts up to now of the processes."""
        totals = self._folded.copy()
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
        # What the kernel side could not count by process comes as "(other)" already.
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
