"""Looks from time to time whether a process tree sends more queries than the alert of a rule allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from dnsprobe.model import Identity, Series, TreeAlert
from dnsprobe.pipeline.rates import Rates
from dnsprobe.pipeline.session import Session
from dnsprobe.pipeline.steps import Steps, run, run_in_turns

#: The pause after a look is this many times as long as the look took, but at most this many seconds.
_PAUSES, _LONGEST_SECONDS = 10, 5.0

#: The identity of a process tree, for sinks.
NOBODY = Identity()


class RateAlerts:
    """Looks if it is time: call one of the two methods about once a second. ``clock`` is CLOCK_MONOTONIC, in ns."""

    def __init__(self, session: Session, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._session, self._clock = session, clock
        self._rates = Rates()
        self._next_ns = 0

    def _is_due(self) -> bool:
        if not self._session.rules.limited:
            self._rates = Rates()
            return False
        return self._clock() >= self._next_ns

    async def look_in_turns(self) -> list[TreeAlert]:
        """Collect, let the event loop work meanwhile, and return the alerts; none if no look is due."""
        if not self._is_due():
            return []
        began = self._clock()
        return await run_in_turns(self._looking(await self._session.collect_in_turns(), began))

    def look_now(self) -> list[TreeAlert]:
        """Collect, and return the alerts; none if no look is due."""
        if not self._is_due():
            return []
        began = self._clock()
        return run(self._looking(self._session.collect(), began))

    def _looking(self, counts: Mapping[Series, int], began_ns: int) -> Steps[list[TreeAlert]]:
        now = self._clock()
        found = yield from self._rates.looking(self._session.rules.limited, counts, began_ns, now)
        took = self._clock() - began_ns
        self._next_ns = self._clock() + min(took * _PAUSES, int(_LONGEST_SECONDS * 1e9))
        return found
