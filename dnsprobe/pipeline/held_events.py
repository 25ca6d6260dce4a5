"""Events whose name is not decided yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from dnsprobe.kernel import abi
from dnsprobe.model import Rule
from dnsprobe.pipeline.rules import NameKey

#: The most events that wait. Each takes up to 10 KB.
_LIMIT = 2048


class HeldEvents:
    """At most ``limit`` events. In a full one, the user with the most events loses one."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._events: dict[NameKey, list[abi.Event]] = {}
        self._held: Counter[int] = Counter()
        #: How many events had no place.
        self.refused = 0

    def __len__(self) -> int:
        return self._held.total()

    def add(self, event: abi.Event) -> None:
        """Hold an event."""
        asker = event.chain.share
        if len(self) >= self._limit:
            self.refused += 1
            largest, held = self._held.most_common(1)[0]
            if held <= self._held[asker]:
                return
            self._drop_one(largest)
        self._held[asker] += 1
        self._events.setdefault((event.name_hash, event.generation), []).append(event)

    def _drop_one(self, asker: int) -> None:
        for key, events in reversed(self._events.items()):
            for at, event in enumerate(events):
                if event.chain.share == asker:
                    del events[at]
                    if not events:
                        del self._events[key]
                    self._forget(asker)
                    return

    def _forget(self, asker: int) -> None:
        self._held[asker] -= 1
        if not self._held[asker]:
            del self._held[asker]

    def take(self, decided: Mapping[NameKey, Rule | None]) -> Iterator[tuple[abi.Event, Rule]]:
        """Remove the events of names that are decided, and yield those that a rule matches."""
        for key, rule in decided.items():
            for event in self._events.pop(key, ()):
                self._forget(event.chain.share)
                if rule is not None:
                    yield event, rule

    def drop(self) -> None:
        """Drop all events: their names are not decided in time."""
        self.refused += len(self)
        self._events.clear()
        self._held.clear()
