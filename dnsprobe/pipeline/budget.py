"""Room that users share, so that none takes it all."""

from __future__ import annotations

from collections import Counter

#: While others take nothing, one share gets three places of four: as many as this, for each place that stays free.
_PER_FREE_PLACE = 3
#: One in this number of places is for entries of this priority (RFC 5424, section 6.2.1) and more urgent ones.
_URGENT_PART, _URGENT = 8, 4


class Budget:
    """``size`` places. A share takes one more only while it has less than three times as many as are free.

    So one share gets three quarters of the places, two get 43 percent each, and a share that comes late still finds
    some (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). An eighth is kept
    for what is urgent.
    """

    def __init__(self, size: int) -> None:
        self._urgent, self._ordinary = size, size - size // _URGENT_PART
        self._used: Counter[int] = Counter()
        self._total = 0
        self._refused: Counter[int] = Counter()

    def take(self, share: int, priority: int) -> bool:
        """Take a place. Return False if there is none for ``share``."""
        free = (self._urgent if priority <= _URGENT else self._ordinary) - self._total
        if self._used[share] >= _PER_FREE_PLACE * free:
            if not self._used[share]:
                del self._used[share]
            self._refused[share] += 1
            return False
        self._used[share] += 1
        self._total += 1
        return True

    def give_back(self, share: int) -> None:
        """Free a place that ``share`` has taken."""
        self._total -= 1
        self._used[share] -= 1
        if not self._used[share]:
            del self._used[share]

    def take_refused(self) -> Counter[int]:
        """Return how often there was no place since the last call, by share."""
        refused, self._refused = self._refused, Counter()
        return refused

    def clear(self) -> None:
        """Free all places."""
        self._used.clear()
        self._total = 0
