"""A bounded queue and the thread that empties it, so that a slow output does not block the rest."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable

from dnsprobe.model import Identity, Query, TreeAlert
from dnsprobe.pipeline.budget import Budget
from dnsprobe.threads import leave_abort_to_main

_log = logging.getLogger(__name__)


#: What has an entry. A process tree has no identity.
Entry = Query | TreeAlert


class QueuedSink:
    """Calls ``write`` for each query in a daemon thread; at most ``size`` queries wait for it, and not all of one user.

    If ``write`` raises, that query is lost; the first error after a success is logged. In the end every query that was
    put is counted either in ``entries`` or in ``dropped``.
    """

    def __init__(self, write: Callable[[Entry, Identity], object], size: int, name: str) -> None:
        self._write = write
        self._places = Budget(size)
        self._name = name
        self._queue: deque[tuple[Entry, Identity]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        #: Set once :meth:`close` has waited for its whole timeout: from then on a ``write`` must fail, not wait.
        self.given_up = False
        #: How many were written.
        self.entries = 0
        # Only one side changes each of them: callers under the lock, or the thread.
        self._refused = 0
        self._failed = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many were lost: the queue was full or closed, or ``write`` failed."""
        return self._refused + self._failed

    def put(self, query: Entry, identity: Identity) -> bool:
        """Queue a query without waiting. Return False if it is dropped."""
        with self._changed:
            if self._closing or not self._places.take(query.share, query.priority):
                self._refused += 1
                return False
            self._queue.append((query, identity))
            self._changed.notify()
            return True

    def take_over_share(self) -> Counter[int]:
        """Return how many were dropped since the last call because their user had no room, by share."""
        with self._changed:
            return self._places.take_refused()

    def count_dropped(self) -> None:
        """Count a query as dropped that is not queued at all."""
        with self._changed:
            self._refused += 1

    def report_refused(self) -> None:
        """Log how many queries a limit has refused, if a report is due. Call about once a second."""

    def close(self, timeout: float) -> bool:
        """Write what is queued within ``timeout`` seconds and end; drop the rest. Return True if all was written."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        ended = not self._thread.is_alive()
        with self._changed:
            self.given_up = True
            self._refused += len(self._queue)
            self._queue.clear()
        return ended

    def _run(self) -> None:
        leave_abort_to_main()
        failing = False
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing:
                        return
                    self._changed.wait()
                query, identity = self._queue.popleft()
                self._places.give_back(query.share)
            try:
                self._write(query, identity)
            except Exception as error:  # one query that fails must not end the thread
                self._failed += 1
                if not failing:
                    _log.warning("%s: entries are being lost: %s: %s", self._name, type(error).__name__, error)
                failing = True
            else:
                self.entries += 1
                failing = False
