"""Asks which rules match names: a few names at a time, so that each user gets the same share of the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dnsprobe.pipeline.matching_client import MatchingClient, Reload
from dnsprobe.pipeline.matching_process import OVER_LIMIT
from dnsprobe.pipeline.turns import Question, Turns

#: Names that the process works on. More would make a new asker wait; fewer would make the process wait for the daemon.
_NAMES_AT_ONCE, _SECONDS_AT_ONCE = 128, 0.02
#: A process that does not answer for so long is replaced.
_HANG_SECONDS = 30.0


class Answer(NamedTuple):
    """The answer to a question: the id of a rule, NO_RULE, or OVER_LIMIT if it took too long to find out."""

    question: Question
    verdict: int


@dataclass(slots=True)
class _Asked:
    """A question that was sent, who asked it, and the seconds that it was expected to take."""

    question: Question
    asker: int
    expected: float


@dataclass(slots=True)
class _Open:
    """A question without an answer: its number, and who has asked it."""

    number: int
    askers: set[int]


class Matcher(MatchingClient):
    """Asks the process which rules match names.

    At most ``limit`` questions wait. ``clock`` returns seconds and never goes back.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turns = Turns(limit, clock)
        #: Questions that wait or were sent, in the order of their numbers.
        self._open: dict[tuple[int, int], _Open] = {}
        self._sent: dict[tuple[int, int], _Asked] = {}
        self._number = 0
        self._heard_at = clock()
        #: Questions that were open when a process died: asked one at a time.
        self._suspects: list[_Asked] = []
        self._answers: list[Answer] = []
        super().__init__()

    def ask(self, question: Question, asker: int) -> None:
        """Ask which rule matches a name. ``asker`` is a share (``SHARE_OF_*``).

        The answer comes later, or never if too many questions wait.
        """
        key = question[:2]
        waiting = self._open.get(key)
        if waiting is None:
            self._number += 1
            waiting = self._open[key] = _Open(self._number, set())
        # Each asker has the question in its own queue: it must not wait for the turn of another one.
        if asker not in waiting.askers:
            waiting.askers.add(asker)
            self._queue(asker, question)

    def _queue(self, asker: int, question: Question) -> None:
        refused = self._turns.add(asker, question)
        if refused is not None:
            self._open.pop(refused[:2], None)

    def _queue_again(self, question: Question) -> None:
        """Queue a question for all who have asked it: some may have done so after it was sent."""
        for asker in self._open[question[:2]].askers if question[:2] in self._open else ():
            self._queue(asker, question)

    def is_open(self, name_hash: int, generation: int) -> bool:
        """Return whether a question waits for its answer."""
        return (name_hash, generation) in self._open

    @property
    def asked(self) -> int:
        """The number of the question that was asked last."""
        return self._number

    @property
    def oldest_open(self) -> int:
        """The number of the oldest question without an answer; above :attr:`asked` if all are answered."""
        return next((waiting.number for waiting in self._open.values()), self._number + 1)

    def answers(self) -> list[Answer]:
        """Return the answers that have come, without waiting."""
        try:
            while messages := self.receive():
                for message in messages:
                    self._take(message.get("matched", ()), message.get("returned", ()))
        except (EOFError, OSError):
            self._process_died()
        self._send_next()
        answers, self._answers = self._answers, []
        return answers

    def _take(self, matched: Sequence[Sequence[int]], returned: Sequence[Sequence[int]]) -> None:
        self._heard_at = self._clock()
        for name_hash, generation, verdict, microseconds in matched:
            asked = self._sent.pop((name_hash, generation), None)
            if asked is None:
                continue
            self._turns.charge(asked.asker, asked.expected, microseconds / 1e6, over_limit=verdict == OVER_LIMIT)
            self._answer(asked.question, verdict)
        # They were behind a name that took long.
        for name_hash, generation in returned:
            if asked := self._sent.pop((name_hash, generation), None):
                self._turns.give_back(asked.asker, asked.expected)
                self._queue_again(asked.question)

    def _answer(self, question: Question, verdict: int) -> None:
        self._open.pop(question[:2], None)
        self._answers.append(Answer(question, verdict))

    def _send_next(self) -> None:
        """Send questions, as many as the process should work on at a time."""
        if not self.is_available:
            return
        chosen = list(self._choose())
        if chosen:
            if not self._sent:
                self._heard_at = self._clock()
            self._sent.update({asked.question[:2]: asked for asked in chosen})
            self.send({"match": [self._row(asked) for asked in chosen]})

    def _row(self, asked: _Asked) -> tuple[int, int, str, float]:
        name_hash, generation, name = asked.question
        return name_hash, generation, name.hex(), self._turns.limit(asked.asker)

    def _choose(self) -> Iterator[_Asked]:
        if self._suspects:
            if not self._sent:
                yield self._suspects.pop()
            return
        seconds = sum(asked.expected for asked in self._sent.values())
        names = len(self._sent)
        while names < _NAMES_AT_ONCE and seconds < _SECONDS_AT_ONCE and (turn := self._turns.next()):
            asker, question = turn
            key = question[:2]
            if key in self._sent or key not in self._open:  # another asker had the same question
                continue
            expected = self._turns.cost(asker)
            seconds += expected
            names += 1
            yield _Asked(question, asker, expected)

    def _ask_again(self) -> None:
        sent, self._sent = self._sent, {}
        for asked in sent.values():
            self._queue_again(asked.question)

    def _process_died(self) -> None:
        """Note that the process is gone. One of the names that it worked on may be the reason."""
        self.end_process()
        sent, self._sent = list(self._sent.values()), {}
        if len(sent) == 1:
            self._answer(sent[0].question, OVER_LIMIT)
        else:
            self._suspects += sent

    def adopt(self, reload: Reload) -> None:
        """Use the process of a reload whose rules come into force, in place of the present one."""
        super().adopt(reload)
        self._ask_again()

    def maintain(self) -> None:
        """Start another process if the last one has died or hangs, but no more often than this is called."""
        if self._sent and self._clock() - self._heard_at > _HANG_SECONDS:
            # It is stopped, or has no processor time. No name is to blame.
            self.end_process()
            self._ask_again()
        super().maintain()
