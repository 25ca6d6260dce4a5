"""The rules in force, and the decisions about names that the kernel leaves to user space.

The kernel matches most names by their suffix. A name that needs more than that, such as below a wildcard, comes to user
space once: the kernel counts its queries separately, as pending, until user space stores a verdict with the name. The
verdict comes from another process (:mod:`dnsprobe.pipeline.matcher`), so a name stays open for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Protocol

from dnsprobe.kernel import abi
from dnsprobe.kernel.maps import PendingKey
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import NO_RULE, UNDECIDED, Rule
from dnsprobe.names.ruleset import RuleTable
from dnsprobe.pipeline.matcher import Answer
from dnsprobe.pipeline.matching_process import OVER_LIMIT
from dnsprobe.pipeline.steps import Steps
from dnsprobe.pipeline.turns import Question

#: Decided names are forgotten once their map is that full. A single user cannot fill more than half of it.
_NAMES_FILL = 0.25
#: Names that are asked for in one step.
_AT_ONCE = 64

#: The rule of connections whose queries cannot be read. It is in force whatever the configured rules are.
ENCRYPTED = Rule(abi.ENCRYPTED, "", "")
#: The rule of names that took too long to decide. Its entries are warnings: somebody may be hiding queries.
TOO_SLOW = Rule(abi.OVER_LIMIT, UNDECIDED, "", 4)
#: The rule of messages that cannot be read as a query. It is in force in the same way.
UNREAD = Rule(abi.UNREAD, "", "", 5)

#: A name by its hash, and the generation of the rules that it was asked under.
NameKey = tuple[int, int]


class Matching(Protocol):
    """Finds out which rule matches a name: :class:`dnsprobe.pipeline.matcher.Matcher`."""

    def in_force(self, generation: int) -> None:
        """Note that the rules that were built last are those of a generation."""

    def forget(self, kept: Iterable[int]) -> None:
        """Forget the rules of all generations but some."""

    def ask(self, question: Question, asker: int) -> None:
        """Ask which rule matches a name."""

    def is_open(self, name_hash: int, generation: int) -> bool:
        """Return whether a question waits for its answer."""

    def answers(self) -> list[Answer]:
        """Return the answers that have come, without waiting."""


class RulesInForce:
    """The rules that the kernel matches now, and earlier rules whose counts may still be in the kernel.

    ``clock`` returns seconds and never goes back.
    """

    def __init__(
        self, probe: Probe, rules: RuleTable, matcher: Matching, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe, self._matcher, self._clock = probe, matcher, clock
        self._by_id = {abi.ENCRYPTED: ENCRYPTED, abi.OVER_LIMIT: TOO_SLOW, abi.UNREAD: UNREAD, **rules.by_id}
        self._by_generation: dict[int, RuleTable] = {}
        self._retired: dict[int, float] = {}
        self.current = rules
        probe.set_rules(rules.trie)
        self._note(rules)

    def _note(self, rules: RuleTable) -> None:
        self.current = rules
        self._by_generation[self._probe.generation] = rules
        self._matcher.in_force(self._probe.generation)

    @property
    def by_id(self) -> Mapping[int, Rule]:
        """The rules whose counts may be in the kernel, by their ids. A new rule must not get one of these ids."""
        return self._by_id

    def replacing(self, rules: RuleTable, adopt: Callable[[], None] = lambda: None) -> Steps[None]:
        """Put other rules in force. A rule with the same id continues to count; a removed rule keeps its counts.

        ``adopt`` is called when they are in force, before names are decided by them. Raises OSError if the kernel has
        no memory for the rules. The old ones then stay in force.
        """
        # The kernel counts by the new rules from one moment on, which is before this function goes on.
        new = {rule_id: rule for rule_id, rule in rules.by_id.items() if rule_id not in self._by_id}
        before = self._by_id.copy()
        self._by_id.update(rules.by_id)
        done = False
        try:
            yield from self._probe.setting_rules(rules.trie)
            done = True
        finally:
            if not done:
                self._by_id.update({rule_id: before[rule_id] for rule_id in rules.by_id if rule_id in before})
                for rule_id in new:
                    del self._by_id[rule_id]
        adopt()
        gone = self.current.by_id.keys() - rules.by_id.keys()
        self._retired.update(dict.fromkeys(gone, self._clock()))
        self._note(rules)

    def rule(self, verdict: int, generation: int) -> Rule | None:
        """Return the rule with an id in the rule set of a generation, None for NO_RULE."""
        if verdict == OVER_LIMIT:
            return TOO_SLOW
        return self._by_generation.get(generation, self.current).by_id.get(verdict)

    def is_retired(self, rule: int, before: float) -> bool:
        """Return whether a rule went out of force before a moment."""
        return self._retired.get(rule, before) < before

    def retired(self, before: float) -> list[int]:
        """Return the ids of the rules that went out of force before a moment."""
        return [rule for rule in self._retired if self.is_retired(rule, before)]

    def forget(self, rules: Iterable[int]) -> None:
        """Forget rules that went out of force, so that new rules can have their ids."""
        for rule in rules:
            del self._retired[rule]
            del self._by_id[rule]

    def forget_generations(self, pending: Collection[int], latest: int) -> None:
        """Forget rule sets before the latest, except for the generations that pending counts belong to."""
        forgotten = {generation for generation in self._by_generation if generation < latest} - set(pending)
        for generation in forgotten:
            del self._by_generation[generation]
        if forgotten:
            self._matcher.forget(self._by_generation)


class NameDecisions:
    """Decides names for the kernel, whose map has room for ``size`` of them.

    ``clock`` returns seconds and never goes back.
    """

    def __init__(
        self,
        probe: Probe,
        rules: RulesInForce,
        matcher: Matching,
        size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe, self._rules, self._matcher, self._size, self._clock = probe, rules, matcher, size, clock
        self._verdicts: dict[NameKey, Rule | None] = {}
        self._decided_at: dict[int, float] = {}
        self._newly_decided: dict[NameKey, Rule | None] = {}
        self._names_full = 0
        #: How many names took too long to decide.
        self.too_slow = 0

    def ask(self, questions: Iterable[tuple[Question, int]]) -> None:
        """Ask for names, each with who asks: a share (``SHARE_OF_*``)."""
        for question, asker in questions:
            self._matcher.ask(question, asker)
        self.take_answers()

    def take_answers(self) -> None:
        """Store the verdicts that have come in the kernel."""
        while answers := self._matcher.answers():
            verdicts: dict[int, tuple[bytes, int]] = {}
            for (name_hash, generation, name), verdict in answers:
                rule = self._rules.rule(verdict, generation)
                self.too_slow += rule is TOO_SLOW
                self._verdicts[name_hash, generation] = self._newly_decided[name_hash, generation] = rule
                if generation == self._probe.generation:
                    verdicts[name_hash] = (name, rule.id if rule else NO_RULE)
            decided = self._probe.decide((name_hash, *verdict) for name_hash, verdict in verdicts.items())
            self._decided_at.update(dict.fromkeys(decided, self._clock()))

    def take_newly_decided(self) -> Mapping[NameKey, Rule | None]:
        """Return the names that were decided since the last call, each with its rule."""
        newly_decided, self._newly_decided = self._newly_decided, {}
        return newly_decided

    def deciding_again(self) -> Steps[None]:
        """Decide all names in the kernel again: call this after other rules are in force."""
        self._decided_at.clear()
        names = self._probe.maps.names.items()
        while some := list(islice(names, _AT_ONCE)):
            generation = self._probe.generation
            self.ask((Question(name_hash, generation, stored.name), stored.share) for name_hash, stored in some)
            yield None

    def is_known(self, key: NameKey) -> bool:
        """Return whether it is known which rule matches a name under the rules of a generation."""
        return key in self._verdicts

    def rule(self, key: NameKey) -> Rule | None:
        """Return the rule of a name that is known."""
        return self._verdicts[key]

    def is_decided(self, name_hash: int, before: float) -> bool:
        """Return whether a name was decided at a moment or before, and not decided again since."""
        decided_at = self._decided_at.get(name_hash)
        return decided_at is not None and decided_at <= before

    def asking(self, keys: Iterable[PendingKey]) -> Steps[None]:
        """Ask for the names of pending counts that are not decided and not asked for."""
        self.take_answers()
        unknown = self._unknown({(name_hash, generation) for _, name_hash, _, generation, *_ in keys})
        while some := set(islice(unknown, _AT_ONCE)):
            names = dict(self._probe.maps.names.get_many({name_hash for name_hash, _ in some}))
            self.ask(
                (Question(name_hash, generation, stored.name), stored.share)
                for name_hash, generation in some
                if (stored := names[name_hash]) is not None
            )
            yield None

    def _unknown(self, keys: Iterable[NameKey]) -> Iterator[NameKey]:
        current = self._probe.generation
        for name_hash, generation in keys:
            wanted = {(name_hash, generation)} if (name_hash, generation) not in self._verdicts else set()
            if name_hash not in self._decided_at:
                wanted.add((name_hash, current))
            yield from (key for key in wanted if not self._matcher.is_open(*key))

    def sweeping(self, before: float, pending: Collection[int]) -> Steps[None]:
        """Make room for names if there is little: forget those decided before a moment, except pending ones."""
        # A name stays undecided if there was no room for its count: no event and no counter shows it.
        names_full = self._probe.statistics()[abi.Statistic.UNDECIDED_NAMES_FULL]
        if names_full != self._names_full:
            self._names_full = names_full
            names = self._probe.maps.names.items()
            generation = self._probe.generation
            while some := list(islice(names, _AT_ONCE)):
                self.ask(
                    (Question(name_hash, generation, stored.name), stored.share)
                    for name_hash, stored in some
                    if name_hash not in self._decided_at and not self._matcher.is_open(name_hash, generation)
                )
                yield None
        if len(self._decided_at) >= self._size * _NAMES_FILL:
            unused = [
                name_hash for name_hash in self._decided_at.keys() - pending if self.is_decided(name_hash, before)
            ]
            self._probe.maps.names.delete_many(unused)
            for name_hash in unused:
                del self._decided_at[name_hash]
        yield None
        kept = self._decided_at.keys() | pending
        self._verdicts = {key: rule for key, rule in self._verdicts.items() if key[0] in kept}
