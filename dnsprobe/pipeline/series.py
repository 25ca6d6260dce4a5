"""Totals of queries in a bounded number of series, which idle ones leave when there is no room for a new one."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from dnsprobe.model import DEFAULT_LABELS, OPTIONAL_LABELS, OTHER, Count, Series
from dnsprobe.pipeline.steps import Steps, run

#: One in this number of series is reserved for queries above the limit, so that these still have their qtype.
_OTHERS_SHARE = 8
#: Series that are handled in one step.
_AT_ONCE = 1024
#: Bits that mark refused series: 128 KiB.
_REFUSED_BITS = 1 << 20


def total_queries(counts: Mapping[Series, int]) -> int:
    """Return the sum of all series of queries, without encrypted connections and messages that are not read."""
    return sum(number for series, number in counts.items() if series.of_queries)


class _Room:
    """The series that are admitted, at most ``limit`` of them, by share; each with the time of its last query."""

    def __init__(self, limit: int, ttl: float) -> None:
        self._limit, self._ttl = limit, ttl
        self._share: dict[Series, int] = {}
        #: The series of each share, those that are idle longest first.
        self._by_share: dict[int, dict[Series, float]] = {}
        #: No series is idle for ``ttl`` before this time.
        self._none_idle_before = 0.0

    def __contains__(self, series: object) -> bool:
        return series in self._share

    def __len__(self) -> int:
        return len(self._share)

    def add(self, series: Series, share: int, now: float) -> None:
        """Admit a series."""
        self._share[series] = share
        self._by_share.setdefault(share, {})[series] = now

    def remove(self, series: Series) -> None:
        """Make room."""
        share = self._share.pop(series)
        del self._by_share[share][series]
        if not self._by_share[share]:
            del self._by_share[share]

    def touch(self, series: Series, now: float) -> None:
        """Note that there was a query of a series."""
        if (share := self._share.get(series)) is not None:
            of_share = self._by_share[share]
            del of_share[series]
            of_share[series] = now

    def has_room(self) -> bool:
        """Return whether a series can be admitted without another one leaving."""
        return len(self._share) < self._limit

    def next_to_leave(self, share: int, now: float) -> Series | None:
        """Return the series that has to make room for a new one of ``share``, None if there is none.

        It is the one that is idle longest, if that is idle for ``ttl``. Otherwise it is the one that is idle longest of
        the share with the most series, if the new series does not make ``share`` the largest.
        """
        idle = self._longest_idle(now)
        if idle is not None or not self._by_share:
            return idle
        largest = max(self._by_share.values(), key=len)
        if len(largest) < len(self._by_share.get(share, ())) + 2:
            return None
        return next(iter(largest))

    def is_idle(self, series: Series, now: float) -> bool:
        """Return whether a series had no query for ``ttl``."""
        return now - self._by_share[self._share[series]][series] >= self._ttl

    def share_of(self, series: Series) -> int:
        """Return whose room a series takes."""
        return self._share[series]

    def _longest_idle(self, now: float) -> Series | None:
        if not self._by_share or now < self._none_idle_before:
            return None
        series, last = min(
            (next(iter(of_share.items())) for of_share in self._by_share.values()), key=lambda item: item[1]
        )
        self._none_idle_before = last + self._ttl
        return series if now >= self._none_idle_before else None


class Totals:
    """The queries of all processes, running and ended, as series.

    ``labels`` are the optional labels that series have. At most ``max_series`` different series are admitted at a time;
    an eighth of them is reserved for ``(other)``. ``clock`` returns seconds.

    If there is no room for a new series, another one leaves: that which had no query for longest, if that is for at
    least ``ttl`` seconds, else one of the user or control group with the most series (``Count.share``), if the new
    series is of another. If none has to leave, the new one is refused:

    - Queries of a refused series count under its domain, qtype, transport and ``to``, with ``(other)`` as process and
      tree, and without unit, container and user.
    - If there is no room for that series either, the qtype is ``(other)`` too. One such series per domain, transport
      and ``to`` is always admitted, and never leaves.

    No series decreases. One that left begins again at zero when it comes back. The queries that it had shown are in
    ``expired``. So for each domain, the sum over all series and ``expired`` is always exact, if the caller keeps two
    rules:

    - The labels of a live count never change.
    - When a live count ends, the caller passes it to :meth:`add_final` before it calls :meth:`collect` again, and no
      longer to :meth:`collect`.
    """

    def __init__(
        self,
        max_series: int,
        labels: Collection[str] = DEFAULT_LABELS,
        ttl: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._without = dict.fromkeys(set(OPTIONAL_LABELS) - set(labels), "")
        self._clock = clock
        others = max_series // _OTHERS_SHARE
        self._named, self._others = _Room(max_series - others, ttl), _Room(others, ttl)
        # An admitted series shows what is final, plus what is live, less what of that was accounted elsewhere before it
        # was admitted (here or in `expired`). The live part of a series that is not admitted is folded into another.
        self._final: dict[Series, int] = {}
        self._live: dict[Series, int] = {}
        self._elsewhere: dict[Series, int] = {}
        self._folded: dict[Series, tuple[Series, int]] = {}
        self._shown: dict[Series, int] = {}
        self._refused = bytearray(_REFUSED_BITS // 8)
        self._refused_marks = 0
        #: How many different series were refused. Series are told apart by a hash. Collisions make the number a little
        #: low, by about 1 in 100 at 20,000. A series that is still refused may count again after half a million others.
        self.series_folded = 0
        #: How many series have left, their queries by domain, and their connections whose queries cannot be read.
        self.series_expired = 0
        self.expired: Counter[str] = Counter()
        self.expired_connections = 0
        self.expired_unread = 0
        self._over_share: Counter[int] = Counter()

    def take_over_share(self) -> Counter[int]:
        """Return how many series were refused or had to leave since the last call, because their share is the largest.

        The result is by share.
        """
        taken, self._over_share = self._over_share, Counter()
        return taken

    def add_final(self, count: Count) -> None:
        """Add a count that does not change any more."""
        if not count.queries:
            return
        series, queries = self._series(count), count.queries
        if series in self._live:
            self._live[series] = max(0, self._live[series] - queries)
        # What was accounted elsewhere or folded while the count was live is not counted again.
        if elsewhere := min(queries, self._elsewhere.get(series, 0)):
            self._elsewhere[series] -= elsewhere
            queries -= elsewhere
        if series in self._folded:
            target, folded = self._folded[series]
            moved = min(queries, folded)
            self._folded[series] = target, folded - moved
            self._final[target] = self._final.get(target, 0) + moved
            queries -= moved
        if queries:
            target = self._target(series, count.share)
            self._final[target] = self._final.get(target, 0) + queries

    def collect(self, live: Iterable[Count]) -> dict[Series, int]:
        """Return the queries of each series: the final counts and ``live``, the counts of processes up to now."""
        return run(self.collecting([live]))

    def collecting(self, live: Iterable[Iterable[Count]]) -> Steps[dict[Series, int]]:
        """Do what :meth:`collect` does in steps. ``live`` has the live counts in parts."""
        shares: dict[Series, int] = {}
        counted: dict[Series, int] = {}
        for counts in live:
            for count in counts:
                if count.queries:
                    series = self._series(count)
                    counted[series] = counted.get(series, 0) + count.queries
                    shares.setdefault(series, count.share)
            yield None
        self._live = counted
        for at, (series, queries) in enumerate(counted.items()):
            self._place(series, queries, shares[series])
            if at % _AT_ONCE == 0:
                yield None
        for gone in self._folded.keys() - self._live.keys():
            del self._folded[gone]
        for gone in self._elsewhere.keys() - self._live.keys():
            del self._elsewhere[gone]
        self._shown = yield from self._summing()
        return self._shown.copy()

    def _place(self, series: Series, queries: int, share: int) -> None:
        """Decide where the live queries of a series are shown."""
        if series in self._room(series):
            return
        queries -= self._elsewhere.get(series, 0)
        folded_into, folded = self._folded.get(series, (series, 0))
        if queries == folded:
            return  # nothing new: a series that shows nothing needs no room
        target = self._target(series, share)
        if target == series:
            return
        if folded and folded_into != target:
            self._settle(series, folded_into, folded)
            queries -= folded
        self._folded[series] = target, queries

    def _settle(self, series: Series, folded_into: Series, folded: int) -> None:
        """Leave live queries for good where they were folded into."""
        self._final[folded_into] = self._final.get(folded_into, 0) + folded
        self._elsewhere[series] = self._elsewhere.get(series, 0) + folded

    def _summing(self) -> Steps[dict[Series, int]]:
        totals = self._final.copy()
        for series, queries in self._live.items():
            if series not in self._folded:
                totals[series] = totals.get(series, 0) + queries - self._elsewhere.get(series, 0)
        for target, queries in self._folded.values():
            totals[target] = totals.get(target, 0) + queries
        now = self._clock()
        yield None
        for at, (series, queries) in enumerate(totals.items()):
            if self._shown.get(series) != queries:
                self._room(series).touch(series, now)
            if at % _AT_ONCE == 0:
                yield None
        return {series: queries for series, queries in totals.items() if queries}

    def _series(self, count: Count) -> Series:
        series = Series(
            count.rule.name,
            count.qtype,
            count.transport,
            count.to,
            count.process,
            count.tree,
            count.unit,
            count.container,
            count.user,
        )
        if series.process == series.tree == OTHER:
            return series._replace(unit="", container="", user="")
        return series._replace(**self._without) if self._without else series

    def _target(self, series: Series, share: int) -> Series:
        """Return where queries of a series are shown: itself, or a coarser one."""
        # Queries that the kernel counted without their process are "(other)" already.
        is_named = not series.process == series.tree == OTHER
        if self._is_admitted(series, share):
            return series
        if not is_named:
            return series if series.qtype == OTHER else series._replace(qtype=OTHER)
        self._refuse(series, share)
        other = series._replace(process=OTHER, tree=OTHER, unit="", container="", user="")
        # Nobody owns it: it has queries of many.
        return other if self._is_admitted(other, 0) else other._replace(qtype=OTHER)

    def _room(self, series: Series) -> _Room:
        return self._others if series.process == series.tree == OTHER else self._named

    def _is_admitted(self, series: Series, share: int) -> bool:
        room = self._room(series)
        if series in room:
            return True
        if room is self._others and series.qtype == OTHER:
            return False
        now = self._clock()
        if not room.has_room():
            leaving = room.next_to_leave(share, now)
            if leaving is None:
                return False
            if not room.is_idle(leaving, now):
                self._over_share[room.share_of(leaving)] += 1
            self._expire(leaving, room)
        room.add(series, share, now)
        if (folded := self._folded.pop(series, None)) is not None:
            self._settle(series, *folded)
        return True

    def _expire(self, series: Series, room: _Room) -> None:
        room.remove(series)
        queries = self._final.pop(series, 0) + self._live.get(series, 0) - self._elsewhere.get(series, 0)
        if series in self._live:
            self._elsewhere[series] = self._live[series]
        for folded, (target, amount) in list(self._folded.items()):
            if target == series:
                queries += amount
                self._elsewhere[folded] = self._elsewhere.get(folded, 0) + amount
                del self._folded[folded]
        self._shown.pop(series, None)
        self.series_expired += 1
        if series.encrypted:
            self.expired_connections += queries
        elif series.unread:
            self.expired_unread += queries
        else:
            self.expired[series.domain] += queries

    def _refuse(self, series: Series, share: int) -> None:
        byte, bit = divmod(hash(series) % _REFUSED_BITS, 8)
        if self._refused[byte] & 1 << bit:
            return
        self.series_folded += 1
        self._over_share[share] += 1
        self._refused[byte] |= 1 << bit
        self._refused_marks += 1
        if self._refused_marks > _REFUSED_BITS // 2:
            self._refused, self._refused_marks = bytearray(_REFUSED_BITS // 8), 0
