"""Totals of queries in a bounded number of series, which idle ones leave when there is no room for a new one.

If there is no room for a new series, another one leaves: that which had no query for longest, if that is for at least
``ttl`` seconds, else one of the user or control group with the most series (``Count.share``), if the new series is of
another. If none has to leave, the new one is refused:

- Queries of a refused series count under its domain, qtype, transport and ``to``, with ``(other)`` as process and
  tree, and without unit, container, user and server.
- If there is no room for that series either, the qtype is ``(other)`` too. One such series per domain, transport and
  ``to`` is always admitted, and never leaves.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from dnsprobe.model import DEFAULT_LABELS, OPTIONAL_LABELS, OTHER, Count, Series
from dnsprobe.pipeline.steps import Steps, run
from dnsprobe.pipeline.tally import common, queries_of, some_results, tally, waiting_of

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


class _Refused:
    """Counts the different series that were refused. They are told apart by a hash.

    Collisions make the number a little low, by about 1 in 100 at 20,000. A series that is still refused may count again
    after half a million others.
    """

    def __init__(self) -> None:
        self._bits, self._marks = bytearray(_REFUSED_BITS // 8), 0
        self.number = 0

    def add(self, series: Series) -> bool:
        """Count a series. Return False if it was counted before."""
        byte, bit = divmod(hash(series) % _REFUSED_BITS, 8)
        if self._bits[byte] & 1 << bit:
            return False
        self.number += 1
        self._bits[byte] |= 1 << bit
        self._marks += 1
        if self._marks > _REFUSED_BITS // 2:
            self._bits, self._marks = bytearray(_REFUSED_BITS // 8), 0
        return True


class _Folded(NamedTuple):
    """The live tally of a series that is not admitted: where it is shown, and how many of its queries wait."""

    target: Series
    counted: int
    waiting: int


class _Debts:
    """Queries of live series that wait, but were accounted elsewhere: by series and place, None is `expired`."""

    def __init__(self) -> None:
        self._waiting: dict[Series, dict[Series | None, int]] = {}

    def series(self) -> list[Series]:
        """Return the series that have such queries."""
        return list(self._waiting)

    def waiting(self, series: Series) -> int:
        """Return how many such queries a series has."""
        return sum(self._waiting.get(series, {}).values())

    def add(self, series: Series, place: Series | None, waiting: int) -> None:
        """Add queries of a series that wait."""
        owed = self._waiting.setdefault(series, {})
        owed[place] = owed.get(place, 0) + waiting

    def expire(self, place: Series) -> None:
        """Move the queries that are accounted in a place to `expired`."""
        for series, owed in self._waiting.items():
            if waiting := owed.pop(place, 0):
                self.add(series, None, waiting)

    def forget(self, series: Series) -> None:
        """Forget a series that is not live any more."""
        self._waiting.pop(series, None)

    def pay(self, series: Series, new: int) -> list[tuple[Series | None, int]]:
        """Take results from a tally for the queries of a series, the oldest first; return them with their places."""
        owed, paid = self._waiting.pop(series, {}), []
        for place, waiting in owed.items():
            results = some_results(new, waiting)
            new -= results
            if results:
                paid.append((place, results))
            if left := waiting + waiting_of(results):  # no queries, so the second part is negative
                self.add(series, place, left)
        return paid


class _Expired:
    """The numbers of series that have left."""

    def __init__(self) -> None:
        #: How many have left, their tallies by domain, their connections whose queries cannot be read, and their
        #: messages that are not read.
        self.series_expired = 0
        self.expired_tallies: dict[str, int] = {}
        self.expired_connections = 0
        self.expired_unread = 0

    @property
    def expired(self) -> Counter[str]:
        """The queries of series that have left, by domain."""
        return Counter({domain: queries_of(counted) for domain, counted in self.expired_tallies.items()})

    def _add_expired(self, series: Series, counted: int) -> None:
        if series.encrypted:
            self.expired_connections += queries_of(counted)
        elif series.unread:
            self.expired_unread += queries_of(counted)
        elif counted:
            self.expired_tallies[series.domain] = self.expired_tallies.get(series.domain, 0) + counted


class Totals(_Expired):
    """The queries of all processes, running and ended, as series, and what became of them.

    ``labels`` are the optional labels that series have. At most ``max_series`` different series are admitted at a time;
    an eighth of them is reserved for ``(other)``. ``clock`` returns seconds. ``tracks_answers`` is whether a query
    without a result waits for one; else results are only added up. The module says what happens above the limit.

    No series decreases. One that left begins again at zero when it comes back. The queries that it had shown are in
    ``expired``. So for each domain, the sum over all series and ``expired`` is always exact, if the caller keeps two
    rules:

    - The labels of a live count never change.
    - When a live count ends, the caller passes it to :meth:`add_final` before it calls :meth:`collect` again, and no
      longer to :meth:`collect`. By then, each of its queries has a result.

    A result is shown where its query is. Of queries that wait when their series moves, the next results are theirs.
    """

    def __init__(
        self,
        max_series: int,
        labels: Collection[str] = DEFAULT_LABELS,
        ttl: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        *,
        tracks_answers: bool = False,
    ) -> None:
        super().__init__()
        self._without = dict.fromkeys(set(OPTIONAL_LABELS) - set(labels), "")
        self._clock, self._tracks_answers = clock, tracks_answers
        others = max_series // _OTHERS_SHARE
        self._named, self._others = _Room(max_series - others, ttl), _Room(others, ttl)
        # All numbers are tallies. An admitted series shows what is final, plus what is live, less what of that was
        # accounted elsewhere before it was admitted (here or in `expired`). The live part of a series that is not
        # admitted is folded into another.
        self._final: dict[Series, int] = {}
        self._live: dict[Series, int] = {}
        self._elsewhere: dict[Series, int] = {}
        self._folded: dict[Series, _Folded] = {}
        # Counts of live series that have ended since the last collection, with the share of the last one.
        self._ended: dict[Series, tuple[int, int]] = {}
        self._debts = _Debts()
        self._shown: dict[Series, int] = {}
        self._refused = _Refused()
        self._over_share: Counter[int] = Counter()

    @property
    def series_folded(self) -> int:
        """How many different series were refused; with many of them, a little low."""
        return self._refused.number

    @property
    def tallies(self) -> Mapping[Series, int]:
        """The series of the last collection, with what became of their queries (:mod:`dnsprobe.pipeline.tally`)."""
        return self._shown

    def take_over_share(self) -> Counter[int]:
        """Return how many series were refused or had to leave since the last call, by the largest share at the time."""
        taken, self._over_share = self._over_share, Counter()
        return taken

    def add_final(self, count: Count) -> None:
        """Add a count that does not change any more."""
        if not count.queries:
            return
        series, counted = self._series(count), tally(count.queries, count.results)
        if series in self._live:
            # The next collection shows which part of it is new.
            self._ended[series] = self._ended.get(series, (0, 0))[0] + counted, count.share
        else:
            self._add(self._target(series, count.share), counted)

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
                    counted[series] = counted.get(series, 0) + tally(count.queries, count.results)
                    shares.setdefault(series, count.share)
            yield None
        self._live = counted.copy() if self._ended else counted
        for series, (ended, share) in self._ended.items():
            self._live[series] = counted.get(series, 0) + ended
            shares.setdefault(series, share)
        for series in self._debts.series():
            self._pay(series)
        for at, (series, number) in enumerate(self._live.items()):
            self._place(series, number, shares[series])
            if at % _AT_ONCE == 0:
                yield None
        for series, (ended, _) in self._ended.items():
            self._finish(series, ended)
        for gone in (self._folded.keys() | self._elsewhere.keys()) - counted.keys():
            self._folded.pop(gone, None)
            self._elsewhere.pop(gone, None)
            self._debts.forget(gone)
        self._live, self._ended = counted, {}
        self._shown = yield from self._summing()
        return {series: queries_of(number) for series, number in self._shown.items()}

    def _place(self, series: Series, counted: int, share: int) -> None:
        """Decide where the live tally of a series is shown."""
        if series in self._room(series):
            return
        counted -= self._elsewhere.get(series, 0)
        before = self._folded.get(series)
        if counted == (before.counted if before else 0):
            return  # nothing new: a series that shows nothing needs no room
        target = self._target(series, share)
        if target == series:
            return
        if before and before.target != target:
            self._leave(series, before)
        counted = self._live[series] - self._elsewhere.get(series, 0)
        self._folded[series] = _Folded(target, counted, self._waiting_here(series))

    def _finish(self, series: Series, ended: int) -> None:
        """Make a part of the live tally of a series final, where it is shown now."""
        # What was accounted elsewhere while the count was live is final there.
        if elsewhere := common(ended, self._elsewhere.get(series, 0)):
            self._elsewhere[series] -= elsewhere
            ended -= elsewhere
        if (folded := self._folded.get(series)) is not None:
            self._folded[series] = folded._replace(counted=folded.counted - ended)
            self._add(folded.target, ended)
        else:
            self._add(series, ended)

    def _leave(self, series: Series, folded: _Folded) -> None:
        """Leave a live tally for good where it was folded into."""
        self._add(folded.target, folded.counted)
        self._account(series, folded.target, folded.counted, folded.waiting)

    def _account(self, series: Series, place: Series | None, counted: int, waiting: int) -> None:
        """Remember that a live tally is accounted elsewhere, None is `expired`; ``waiting`` of its queries wait."""
        self._elsewhere[series] = self._elsewhere.get(series, 0) + counted
        self._folded.pop(series, None)
        if waiting:
            self._debts.add(series, place, waiting)
            self._pay(series)

    def _pay(self, series: Series) -> None:
        """Account new results of a series where its queries wait that were accounted elsewhere, the oldest first."""
        folded = self._folded.get(series)
        new = self._live.get(series, 0) - self._elsewhere.get(series, 0) - (folded.counted if folded else 0)
        for place, paid in self._debts.pay(series, new):
            self._elsewhere[series] = self._elsewhere.get(series, 0) + paid
            if place is None:
                self._add_expired(series, paid)
            else:
                self._add(place, paid)

    def _waiting_here(self, series: Series) -> int:
        """Return how many live queries of a series wait, without those that were accounted elsewhere.

        Never negative: of two counters whose queries took each other's note at the same moment, one has a result too
        many.
        """
        if not self._tracks_answers or not series.of_queries:
            return 0
        return max(waiting_of(self._live.get(series, 0)) - self._debts.waiting(series), 0)

    def _add(self, place: Series, counted: int) -> None:
        if counted:
            self._final[place] = self._final.get(place, 0) + counted

    def _summing(self) -> Steps[dict[Series, int]]:
        totals = self._final.copy()
        for series, counted in self._live.items():
            if series not in self._folded:
                totals[series] = totals.get(series, 0) + counted - self._elsewhere.get(series, 0)
        for folded in self._folded.values():
            totals[folded.target] = totals.get(folded.target, 0) + folded.counted
        now = self._clock()
        yield None
        for at, (series, counted) in enumerate(totals.items()):
            if queries_of(self._shown.get(series, 0) ^ counted):
                self._room(series).touch(series, now)
            if at % _AT_ONCE == 0:
                yield None
        return {series: counted for series, counted in totals.items() if counted}

    def _series(self, count: Count) -> Series:
        series = _labels_of(count)
        if series.process == series.tree == OTHER:
            return series._replace(unit="", container="", user="", server="")
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
        other = series._replace(process=OTHER, tree=OTHER, unit="", container="", user="", server="")
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
            self._leave(series, folded)
        return True

    def _expire(self, series: Series, room: _Room) -> None:
        room.remove(series)
        self._add_expired(series, self._final.pop(series, 0))
        self._debts.expire(series)
        if series in self._live:
            counted = self._live[series] - self._elsewhere.get(series, 0)
            self._add_expired(series, counted)
            self._account(series, None, counted, self._waiting_here(series))
        for folded_series, folded in list(self._folded.items()):
            if folded.target == series:
                self._add_expired(series, folded.counted)
                self._account(folded_series, None, folded.counted, folded.waiting)
        self._shown.pop(series, None)
        self.series_expired += 1

    def _refuse(self, series: Series, share: int) -> None:
        if self._refused.add(series):
            self._over_share[share] += 1


def _labels_of(count: Count) -> Series:
    return Series(
        count.rule.name,
        count.qtype,
        count.transport,
        count.to,
        count.process,
        count.tree,
        count.unit,
        count.container,
        count.user,
        count.server,
    )
