"""Process trees that send more queries of a rule than its alert allows, from the totals of one collection to the next.

Totals are exact, and have repeated queries, which cause no event. What was counted between two collections was sent in
between, or, over TCP, written before. So a query is in a window if the window begins before the first of the two.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dnsprobe.model import OTHER, Rate, Rule, Series, TreeAlert
from dnsprobe.pipeline.steps import Steps, run

#: The most parts in which the queries of a window are added up. A part leaves the window as a whole.
_PARTS = 16
#: The most process trees whose queries are added up one by one.
_TREES = 4096
#: Series or trees that are handled in one step.
_AT_ONCE = 1024

#: The name of a rule, and a process tree.
_Key = tuple[str, str]


@dataclass(slots=True)
class _Window:
    """The queries of a tree in its window: the begin and the number of each part; and when the last alert was."""

    parts: deque[tuple[int, int]] = field(default_factory=deque)
    alert_ns: int | None = None

    def add(self, begin_ns: int, queries: int, window_ns: int) -> None:
        """Add queries that were sent since a moment."""
        if self.parts and begin_ns - self.parts[-1][0] < window_ns // _PARTS:
            begin_ns, before = self.parts.pop()
            queries += before
        self.parts.append((begin_ns, queries))

    def leave(self, now_ns: int, window_ns: int) -> None:
        """Forget what is not in the window any more."""
        while self.parts and self.parts[0][0] < now_ns - window_ns:
            self.parts.popleft()
        if self.alert_ns is not None and self.alert_ns <= now_ns - window_ns:
            self.alert_ns = None

    @property
    def queries(self) -> int:
        """How many queries are in the window."""
        return sum(queries for _, queries in self.parts)


class Rates:
    """Compares collections. At most ``trees`` trees are told apart; the queries of others count for ``(other)``."""

    def __init__(self, trees: int = _TREES) -> None:
        self._trees = trees
        self._windows: dict[_Key, _Window] = {}
        self._before: dict[Series, int] = {}
        self._known: frozenset[str] = frozenset()
        self._began_ns = 0

    def look(self, rules: Iterable[Rule], counts: Mapping[Series, int], began_ns: int, now_ns: int) -> list[TreeAlert]:
        """Return an alert for each tree above a limit that had none for its window.

        ``rules`` are those with a limit. ``counts`` have the totals of all series. The collection began at ``began_ns``
        and ended at ``now_ns`` (CLOCK_MONOTONIC). A rule that had no limit before begins with this collection.
        """
        return run(self.looking(rules, counts, began_ns, now_ns))

    def looking(
        self, rules: Iterable[Rule], counts: Mapping[Series, int], began_ns: int, now_ns: int
    ) -> Steps[list[TreeAlert]]:
        """Do what :meth:`look` does in steps."""
        limits = {rule.name: rule for rule in rules}
        growth = yield from self._growing(limits, counts)
        for at, (key, queries) in enumerate(growth.items()):
            self._add(key, queries, _rate(limits[key[0]]).window_ns, now_ns)
            if at % _AT_ONCE == 0:
                yield None
        self._began_ns = began_ns
        alerts = []
        for at, key in enumerate(list(self._windows)):
            if alert := self._alert(key, limits, now_ns):
                alerts.append(alert)
            if at % _AT_ONCE == 0:
                yield None
        return alerts

    def _alert(self, key: _Key, limits: Mapping[str, Rule], now_ns: int) -> TreeAlert | None:
        """Return the alert of a tree if it has one now; forget the tree if its window is empty."""
        domain, tree = key
        if domain not in limits:
            del self._windows[key]
            return None
        rule, window = limits[domain], self._windows[key]
        rate = _rate(rule)
        window.leave(now_ns, rate.window_ns)
        if window.alert_ns is None and (queries := window.queries) > rate.queries:
            window.alert_ns = now_ns
            return TreeAlert(now_ns, rule, tree, queries, rate)
        if window.alert_ns is None and not window.parts:
            del self._windows[key]
        return None

    def _growing(self, limits: Mapping[str, Rule], counts: Mapping[Series, int]) -> Steps[Counter[_Key]]:
        """Return how many queries each tree has sent since the last collection."""
        growth: Counter[_Key] = Counter()
        now: dict[Series, int] = {}
        for at, (series, queries) in enumerate(counts.items()):
            if at % _AT_ONCE == 0:
                yield None
            if series.domain not in limits:
                continue
            now[series] = queries
            if series.domain in self._known:
                before = self._before.get(series, 0)
                # A series that has left and come back began again at zero.
                if more := queries - before if queries >= before else queries:
                    growth[series.domain, series.tree] += more
        self._before, self._known = now, frozenset(limits)
        return growth

    def _add(self, key: _Key, queries: int, window_ns: int, now_ns: int) -> None:
        """Add queries that a tree has sent since the last collection."""
        domain, _ = key
        if key not in self._windows and len(self._windows) >= self._trees:
            key = (domain, OTHER)
        window = self._windows.setdefault(key, _Window())
        window.leave(now_ns, window_ns)
        # If the last collection was longer ago than a window, one of the windows since then has at least its share.
        windows = max(-(-(now_ns - self._began_ns) // window_ns), 1)
        window.add(max(self._began_ns, now_ns - window_ns), -(-queries // windows), window_ns)


def _rate(rule: Rule) -> Rate:
    assert rule.alert is not None, "only rules with a limit are looked at"
    assert rule.alert.rate is not None, "only rules with a limit are looked at"
    return rule.alert.rate
