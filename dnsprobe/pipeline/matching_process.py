"""The process that matches names with patterns, and reads configurations for reloads.

A regular expression can take minutes for a name that was made for it, and Python's ``re`` keeps the interpreter lock
all the while. So the daemon leaves all names to this process, with a limit of processor time for each. The process has
no capabilities and a low priority, and knows nothing but rules and names.

For a reload, it forks: the child reads the configuration and builds the rules, while the parent goes on to match names.
When the new rules are in force, the child takes the place of its parent. It still has the earlier rules, for names that
were asked for under them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from dnsprobe import privileges
from dnsprobe.config.source import Source
from dnsprobe.errors import EXIT_FAILED, UserError
from dnsprobe.model import DECIDE, NO_RULE
from dnsprobe.names.pattern import parse_pattern
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.matching_protocol import Channel, in_parts, read_rules, read_specs, rule_rows, trie_rows

#: In place of the id of a rule: the limit of time was reached.
OVER_LIMIT = -1

#: Seconds of processor time for the outcome of one configured name. The administrator has chosen both.
_OUTCOME_SECONDS = 0.2
#: Processor time of a name after which all names that wait here are returned.
_SLOW_MICROSECONDS = 1000
#: Python ends an expression at the limit. If it does not, the kernel ends the process at this multiple of the limit.
_LAST_RESORT = 20
#: Below ordinary programs, but not so low that a busy host never decides a name.
_NICENESS = 5


class _OverLimitError(Exception):
    """The limit of processor time was reached."""


class Stopwatch:
    """Ends calls that take too much processor time. Only for the main thread: it uses the timers of the process.

    ``re`` looks for signals every few thousand steps (``SRE(match)``, Modules/_sre/sre_lib.h), so a handler that raises
    ends an expression.
    """

    def __init__(self) -> None:
        self._running = False
        signal.signal(signal.SIGPROF, self._on_limit)
        # The default action ends the process.
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)

    def _on_limit(self, *_: object) -> None:
        if self._running:
            self._running = False
            raise _OverLimitError

    def limit(self, call: Callable[[], int], seconds: float, instead: int) -> int:
        """Return the result of ``call``, or ``instead`` if it takes more processor time than allowed."""
        try:
            try:
                self._running = True
                signal.setitimer(signal.ITIMER_VIRTUAL, seconds * _LAST_RESORT)
                signal.setitimer(signal.ITIMER_PROF, seconds)
                return call()
            finally:
                # The signal can arrive here, too: the outer clause is for that.
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                self._running = False
        except _OverLimitError:
            return instead


class MatchingProcess:
    """Answers the requests of the daemon until the channel is closed."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stopwatch = Stopwatch()
        self._rules: RuleSet | None = None
        self._by_generation: dict[int, RuleSet] = {}
        self._rows: list[Sequence[Any]] = []
        self._inbox: deque[tuple[str, Any]] = deque()
        self._handlers: Mapping[str, Callable[[Any], None]] = {
            "rules": self._rows.extend,
            "build": self._build,
            "restore": self._restore,
            "reload": self._reload,
            "in_force": self._put_in_force,
            "forget": self._forget,
            "match": self._match,
        }

    def run(self) -> None:
        """Answer requests until the daemon closes the channel."""
        try:
            while True:
                if not self._inbox:
                    self._receive(wait=True)
                request, value = self._inbox.popleft()
                self._handlers[request](value)
        except (EOFError, OSError):  # the daemon has ended, or uses another process from now on
            return

    def _receive(self, *, wait: bool) -> None:
        for message in self._channel.read(wait=wait):
            self._inbox.extend(message.items())

    # Rules

    def _build(self, _: object) -> None:
        """Build rules from what was sent."""
        specs, self._rows[:] = read_specs(self._rows), []
        self._answer(lambda: self._set_rules(RuleSet.build(specs)))

    def _restore(self, next_id: int) -> None:
        """Take over rules with their ids: the process that had them has died."""
        rules = [(rule, parse_pattern(rule.pattern)) for rule in read_rules(self._rows)]
        self._rows.clear()
        self._rules = RuleSet(rules, next_id)

    def _reload(self, request: Mapping[str, Any]) -> None:
        """Read the configuration in a child, which answers on the channel that came with the request."""
        theirs = self._channel.received.pop(0)
        if os.fork():
            os.close(theirs)
            return
        self._channel.close()
        self._channel = Channel(socket.socket(fileno=theirs))
        self._answer(lambda: self._read(request))

    def _read(self, request: Mapping[str, Any]) -> None:
        source = Source(*request["source"]).resolved()
        config = source.read()
        self._channel.send({"read": [astuple(source), config.needs_restart()]})
        assert self._rules is not None, "a reload comes after the first rules"
        self._set_rules(RuleSet.build(config.domains, self._rules, request["reserved"]))

    def _answer(self, build: Callable[[], None]) -> None:
        try:
            build()
        except UserError as error:
            self._channel.send({"failed": [error.message, error.hint, error.status]})
        except OSError as error:
            self._channel.send({"failed": [error.strerror or str(error), "", EXIT_FAILED]})

    def _set_rules(self, rules: RuleSet) -> None:
        trie = rules.trie(lambda outcome: self._stopwatch.limit(outcome, _OUTCOME_SECONDS, DECIDE))
        self._rules = rules
        for name, rows in (("rules", rule_rows(rules.rules)), ("trie", trie_rows(trie))):
            for part in in_parts(rows):
                self._channel.send({name: part})
        self._channel.send({"built": rules.next_id})

    def _put_in_force(self, generation: int) -> None:
        assert self._rules is not None, "rules come first"
        self._by_generation[generation] = self._rules

    def _forget(self, kept: Sequence[int]) -> None:
        for generation in self._by_generation.keys() - set(kept):
            del self._by_generation[generation]

    # Names

    def _match(self, questions: Sequence[tuple[int, int, str, float]]) -> None:
        matched = []
        for at, question in enumerate(questions, 1):
            matched.append(self._matched(*question))
            if matched[-1][-1] > _SLOW_MICROSECONDS:
                # The daemon decides anew whose turn it is.
                self._channel.send({"matched": matched, "returned": self._take_back(questions[at:])})
                return
        self._channel.send({"matched": matched})

    def _take_back(self, rest: Sequence[tuple[int, int, str, float]]) -> list[tuple[int, int]]:
        """Return hash and generation of all questions that were sent and are not answered, and forget them."""
        # This finds out, too, that the daemon has ended.
        self._receive(wait=False)
        questions = [*rest, *(one for request, value in self._inbox if request == "match" for one in value)]
        self._inbox = deque((request, value) for request, value in self._inbox if request != "match")
        return [(name_hash, generation) for name_hash, generation, *_ in questions]

    def _matched(self, name_hash: int, generation: int, name: str, seconds: float) -> tuple[int, int, int, int]:
        """Return hash, generation, the id of the rule, and the processor time in microseconds."""
        rules = self._by_generation.get(generation, self._rules)
        assert rules is not None, "rules come first"
        wire = bytes.fromhex(name)

        def match() -> int:
            rule = rules.match(wire)
            return rule.id if rule else NO_RULE

        began = time.process_time_ns()
        verdict = self._stopwatch.limit(match, seconds, OVER_LIMIT)
        return name_hash, generation, verdict, (time.process_time_ns() - began) // 1000


def main() -> None:
    """Serve the channel whose descriptor is the first argument."""
    # Ctrl-C and a reload of all processes of this name are for the daemon.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The kernel removes children that have ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.nice(_NICENESS)
    privileges.drop_all()
    MatchingProcess(Channel(socket.socket(fileno=int(sys.argv[1])))).run()


if __name__ == "__main__":
    main()
