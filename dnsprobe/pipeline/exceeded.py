"""Who exceeds a share: names for the metrics and for the log."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

from dnsprobe.model import OTHER
from dnsprobe.process.share_names import ShareName
from dnsprobe.text import number, printable

_log = logging.getLogger(__name__)

#: Names in the metrics. Further ones count as (other).
_NAMES = 32
#: A message about the same name comes again after that time.
_REPEAT_SECONDS = 60.0


class ExceededShares:
    """Counts how often shares were exceeded, and warns about it.

    ``name`` returns the name of a share; ``clock`` returns seconds and never goes back.
    """

    def __init__(self, name: Callable[[int], ShareName], clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        #: How often each share was exceeded up to now, by user, unit and resource.
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._names: set[ShareName] = set()
        self._unlogged: dict[ShareName, Counter[str]] = {}
        self._logged_at: dict[ShareName, float] = {}

    def add(self, refused: Mapping[int, Mapping[str, int]]) -> None:
        """Add how often each share was exceeded since the last call, by resource, and warn if it is time."""
        for share, by_resource in refused.items():
            if not any(by_resource.values()):
                continue
            name = self._bounded(self._name(share))
            for resource, times in by_resource.items():
                if times:
                    self.counts[name.user, name.unit, resource] += times
                    self._unlogged.setdefault(name, Counter())[resource] += times
        self._warn()

    def _bounded(self, name: ShareName) -> ShareName:
        if name not in self._names:
            if len(self._names) >= _NAMES:
                return ShareName(user=OTHER)
            self._names.add(name)
        return name

    def _warn(self) -> None:
        now = self._clock()
        for name, by_resource in list(self._unlogged.items()):
            if now - self._logged_at.get(name, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
                continue
            what = ", ".join(f"{resource} ({number(times, 'time')})" for resource, times in sorted(by_resource.items()))
            _log.warning(
                "%s takes more than its share of %s; others keep theirs (dnsprobe_share_exceeded_total)",
                printable(str(name)),
                what,
            )
            self._logged_at[name] = now
            del self._unlogged[name]
