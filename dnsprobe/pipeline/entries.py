"""From the events of the kernel side to entries: queries with the identity of their process and their result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from dnsprobe.kernel.abi import Event
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import Identity, Query
from dnsprobe.pipeline.answers import Answers
from dnsprobe.pipeline.matcher import Matcher
from dnsprobe.pipeline.resolver import Resolver
from dnsprobe.pipeline.results import Results
from dnsprobe.pipeline.rules import NameDecisions

#: Seconds that the end waits for names that are not decided yet.
_LAST_DECISIONS_SECONDS = 2.0


class Entries:
    """Yields what sinks write. Without :meth:`add_results`, no entry waits for its result.

    ``has_unread`` is whether messages that cannot be read have entries.
    """

    def __init__(
        self,
        probe: Probe,
        matcher: Matcher,
        decisions: NameDecisions,
        resolver: Resolver,
        *,
        has_unread: bool,
    ) -> None:
        self._probe, self._matcher, self._decisions, self._resolver = probe, matcher, decisions, resolver
        self._has_unread = has_unread
        self._answers: Answers | None = None
        self._results = Results(0, 0)

    def add_results(self, answers: Answers, results: Results) -> None:
        """From now on, add the results of queries. ``answers`` has those that are given up."""
        self._answers, self._results = answers, results

    def next(self) -> Iterator[tuple[Query, Identity]]:
        """Yield what is to be written now, a bounded number of entries.

        Call it if there are events or answers of the matcher, after queries were given up, and after
        :attr:`seconds_left`.
        """
        self._decisions.take_answers()
        self._add(self._probe.maps.events.read())
        yield from self._results.due()

    def _add(self, events: Sequence[Event]) -> bool:
        """Add queries, and the results that are known by now. Return whether there was any."""
        ended = self._probe.maps.events.take_ended()
        queries = self._resolver.queries(events)
        self._results.add((query, identity) for query, identity in queries if self._has_unread or not query.unread)
        if self._answers is not None:
            ended += self._answers.take_ended()
        self._results.end(ended)
        return bool(events or ended)

    @property
    def seconds_left(self) -> float | None:
        """How long until :meth:`next` has one more, whatever happens; None if it waits for the kernel side."""
        return self._results.seconds_left

    def remaining(self) -> Iterator[tuple[Query, Identity]]:
        """Yield all that was not written yet, with the results that are known. Ends only if the hooks are detached."""
        # Events that no rule matches yield nothing, so only an empty read is the end.
        while self._add(self._probe.maps.events.read()):
            yield from self._results.due()
        until = time.monotonic() + _LAST_DECISIONS_SECONDS
        while self._resolver.held and (left := until - time.monotonic()) > 0:
            self._matcher.wait(left)
            yield from self.next()
        self._resolver.drop_held()
        yield from self._results.due(at_end=True)

    @property
    def refused(self) -> int:
        """How many events had no place to wait until their name was decided."""
        return self._resolver.refused

    @property
    def results_lost(self) -> int:
        """How many results no entry has, because too many queries waited for theirs."""
        return self._results.lost
