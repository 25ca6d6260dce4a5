"""Writes entries while the event loop of the service runs."""

from __future__ import annotations

import asyncio
from collections import deque

from dnsprobe.model import Query
from dnsprobe.pipeline.session import Session
from dnsprobe.sinks.queue import QueuedSink

#: The number of last queries that the page shows.
_LAST_QUERIES = 100


class EntryWriter:
    """Hands the entries of a session to a sink, each as soon as it is due."""

    def __init__(self, session: Session, sink: QueuedSink) -> None:
        self._session, self._sink = session, sink
        self._timer: asyncio.TimerHandle | None = None
        self._descriptors: tuple[int, ...] = ()
        #: The last queries that could be read.
        self.last: deque[Query] = deque(maxlen=_LAST_QUERIES)

    def start(self) -> None:
        """Write entries from now on, in the running loop."""
        # They are readable if there may be entries.
        self._descriptors = self._session.probe.maps.events.fileno(), self._session.matcher.fileno()
        for descriptor in self._descriptors:
            asyncio.get_running_loop().add_reader(descriptor, self.write)

    def write(self) -> None:
        """Write what is due, and come back when the next entry is."""
        for query, identity in self._session.queries():
            self._sink.put(query, identity)
            if not query.unread and not query.is_late:
                self.last.append(query)
        self._stop_timer()
        if (left := self._session.seconds_left) is not None:
            self._timer = asyncio.get_running_loop().call_later(left, self.write)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def stop(self) -> None:
        """Stop reading. The loop may have found the ring readable in this round: no call may come after it is freed."""
        self._stop_timer()
        for descriptor in self._descriptors:
            asyncio.get_running_loop().remove_reader(descriptor)

    def write_remaining(self) -> None:
        """Write all that is left. Ends only if the session is detached."""
        for query, identity in self._session.remaining_queries():
            self._sink.put(query, identity)
