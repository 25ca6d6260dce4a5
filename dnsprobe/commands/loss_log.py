"""Warnings about queries that were not counted, while that happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from dnsprobe.kernel.losses import Counted, Loss

_log = logging.getLogger(__name__)

#: Seconds between two warnings about the same loss.
_AGAIN_SECONDS = 600.0
#: A lost journal entry or tree has its metric. This is about queries that are in no count.
_NOT_COUNTED = {Counted.NO, Counted.IN_PART}


class LossLog:
    """Warns at the first loss of each kind, and every ten minutes of ``clock`` (seconds) while it goes on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged: dict[Loss, tuple[float, int]] = {}

    def report(self, losses: Mapping[Loss, int]) -> None:
        """Log the losses that grew. Call about once a second with all losses since the start."""
        now = self._clock()
        for loss, times in losses.items():
            if loss.counted not in _NOT_COUNTED:
                continue
            when, before = self._logged.get(loss, (now - _AGAIN_SECONDS, 0))
            if times > before and now - when >= _AGAIN_SECONDS:
                self._logged[loss] = now, times
                _log.warning(
                    "%s: %d more, %d since the start: %s (%s%s)",
                    loss.counted,
                    times - before,
                    times,
                    loss.what,
                    loss.metric,
                    f'{{reason="{loss.reason}"}}' if loss.reason else "",
                )
