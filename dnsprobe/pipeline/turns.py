"""Questions of many askers, answered so that each asker gets the same processor time.

An asker is a user or a control group, as the kernel side numbers them for their shares of its maps. A user whose names
take long waits for the names of others, and not the other way around.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

#: Askers that are remembered while they ask nothing, so that a pause does not make up for slow names.
_REMEMBERED = 1024

#: Seconds of processor time for one name, and the least that is left of it for a user with many slow names.
LIMIT_SECONDS, _LEAST_SECONDS = 0.05, 0.005
#: Seconds after which half of a user's slow names are forgotten.
_HALF_LIFE = 30.0
#: The first guess how long a name takes, and the weight of each later one.
_FIRST_SECONDS, _WEIGHT = 0.0001, 0.25


class Question(NamedTuple):
    """A name in wire format with its hash, to be matched with the rules of a generation."""

    name_hash: int
    generation: int
    name: bytes


@dataclass(slots=True)
class _Asker:
    """``spent`` seconds of processor time, ``cost`` seconds for a name as expected, and slow names up to now."""

    spent: float = 0.0
    cost: float = _FIRST_SECONDS
    slow: float = 0.0
    slow_at: float = 0.0
    queue: deque[Question] = field(default_factory=deque)


class Turns:
    """Queues of at most ``limit`` questions in all. ``clock`` returns seconds and never goes back."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._askers: OrderedDict[int, _Asker] = OrderedDict()
        #: Those of them with questions.
        self._waiting: dict[int, _Asker] = {}
        self._length = 0
        #: The time that the asker who was last served had spent: new askers begin there.
        self._now = 0.0

    def __len__(self) -> int:
        return self._length

    def add(self, asker: int, question: Question) -> Question | None:
        """Add a question. Return the one that has no place: in a full queue, the asker with most loses the newest."""
        found = self._askers.get(asker)
        if found is None:
            found = self._askers[asker] = _Asker()
            self._forget_idle()
        self._askers.move_to_end(asker)
        if not found.queue:
            found.spent = max(found.spent, self._now)
            self._waiting[asker] = found
        found.queue.append(question)
        self._length += 1
        if self._length <= self._limit:
            return None
        self._length -= 1
        loser = max(self._waiting, key=lambda one: len(self._waiting[one].queue))
        refused = self._waiting[loser].queue.pop()
        self._forget_empty(loser)
        return refused

    def _forget_empty(self, asker: int) -> None:
        if not self._waiting[asker].queue:
            del self._waiting[asker]

    def _forget_idle(self) -> None:
        if len(self._askers) > _REMEMBERED:
            idle = next((asker for asker, one in self._askers.items() if not one.queue), None)
            if idle is not None:
                del self._askers[idle]

    def next(self) -> tuple[int, Question] | None:
        """Remove the next question of the asker with the least time spent, and return both; None without questions."""
        if not self._waiting:
            return None
        asker, found = min(self._waiting.items(), key=lambda item: item[1].spent)
        self._now = max(self._now, found.spent)
        # Until the answer comes, the question counts as expected.
        found.spent += found.cost
        self._length -= 1
        question = found.queue.popleft()
        self._forget_empty(asker)
        return asker, question

    def cost(self, asker: int) -> float:
        """Return how many seconds a question of an asker is expected to take."""
        found = self._askers.get(asker)
        return found.cost if found else _FIRST_SECONDS

    def limit(self, asker: int) -> float:
        """Return how many seconds a question of an asker may take."""
        found = self._askers.get(asker)
        return max(_LEAST_SECONDS, LIMIT_SECONDS / (1 + self._slow(found))) if found else LIMIT_SECONDS

    def give_back(self, asker: int, expected: float) -> None:
        """Note that a question was not answered: it did not take the time that was expected."""
        if found := self._askers.get(asker):
            found.spent -= expected

    def charge(self, asker: int, expected: float, seconds: float, *, over_limit: bool) -> None:
        """Charge an asker with the time that a question took, in place of the cost that was expected."""
        found = self._askers.get(asker)
        if found is None:
            return
        found.spent += seconds - expected
        found.cost += (seconds - found.cost) * _WEIGHT
        if over_limit:
            found.slow, found.slow_at = self._slow(found) + 1, self._clock()

    def _slow(self, asker: _Asker) -> float:
        return asker.slow * math.exp2((asker.slow_at - self._clock()) / _HALF_LIFE)
