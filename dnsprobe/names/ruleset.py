"""The rules in force: which rule counts a name, and the table from which the kernel decides that.

Exactly one rule counts a name. Of the rules that match, it is the one with the longest literal suffix: the labels
behind the last label with a wildcard, or the literal name in which a regular expression ends. Rules with the same
suffix have this order: ``=name``, then wildcards and regular expressions in the order of the file, then ``*.name``,
then ``name``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from dnsprobe.model import DECIDE, NO_RULE, UNDECIDED, Alert, Rule
from dnsprobe.names.pattern import Name, Pattern, RuleError, parse_pattern, pattern_error
from dnsprobe.names.wire import to_labels

#: A rule as it is configured: its name, its pattern, its priority, and its alert if it has one.
Spec = tuple[str, str, int] | tuple[str, str, int, Alert | None]

#: The kernel side has a slot for each id up to this one; 0 is NO_RULE.
MAX_RULE_ID = 65535

#: The most wildcards and regular expressions that are tried for one entry of the trie. If there are more, user space
#: decides each name. Without a limit, thousands of names and thousands of expressions would take millions of trials at
#: each start.
_TRIALS = 32


@dataclass(frozen=True, slots=True)
class TrieEntry:
    """What the kernel does with a name that equals a suffix (``at``) and with names below it (``below``).

    ``suffix`` is in wire format, in lower case, with its root byte; ``labels`` does not count the root. ``at`` and
    ``below`` are the id of a rule, NO_RULE or DECIDE (``struct outcome``).
    """

    suffix: bytes
    labels: int
    at: int
    below: int


@dataclass(frozen=True)
class RuleTable:
    """What the kernel side needs of a set of rules: ``rules`` in the order of the configuration, and the trie."""

    rules: tuple[Rule, ...]
    trie: Sequence[TrieEntry]

    @cached_property
    def by_id(self) -> Mapping[int, Rule]:
        """The rules by their ids."""
        return {rule.id: rule for rule in self.rules}

    @cached_property
    def limited(self) -> tuple[Rule, ...]:
        """The rules whose alert has a limit on the rate of queries."""
        return tuple(rule for rule in self.rules if rule.alert and rule.alert.rate)


def _at_once(outcome: Callable[[], int]) -> int:
    return outcome()


class RuleSet:
    """The rules of one configuration, with their ids.

    ``rules`` are in the order of the configuration, ``by_id`` has the same rules by their ids. The search for the ids
    of new rules begins at ``next_id``.
    """

    def __init__(self, rules: Sequence[tuple[Rule, Pattern]], next_id: int) -> None:
        self.rules: tuple[Rule, ...] = tuple(rule for rule, _ in rules)
        self.by_id: Mapping[int, Rule] = {rule.id: rule for rule in self.rules}
        self.next_id = next_id
        self._ids = {(rule.name, pattern): rule.id for rule, pattern in rules}
        self._by_suffix: dict[bytes, list[tuple[Pattern, Rule]]] = {}
        # Sorting is stable: wildcards and regular expressions stay in the order of the file.
        for rule, pattern in sorted(rules, key=lambda item: item[1].rank):
            self._by_suffix.setdefault(pattern.suffix, []).append((pattern, rule))

    @classmethod
    def build(
        cls,
        specs: Iterable[Spec],
        previous: RuleSet | None = None,
        reserved: Collection[int] = (),
    ) -> RuleSet:
        """Return the rules for ``specs``. No specs mean one rule for all names.

        A rule keeps its id if ``previous`` has a rule of the same name and pattern. Other rules get ids from 1 to
        MAX_RULE_ID that are neither in ``previous`` nor in ``reserved``. Raises RuleError for a bad pattern, for two
        rules with the same name or pattern, and if there are not enough ids.
        """
        parsed = [(spec, parse_pattern(spec[1])) for spec in [*specs] or [(".", ".", 6)]]
        _check_duplicates(parsed)
        kept = previous._ids if previous else {}
        next_id = previous.next_id if previous else 1
        new_ids = _free_ids(next_id, {*kept.values(), *reserved})
        rules = []
        for (name, _text, priority, *alert), pattern in parsed:
            rule_id = kept.get((name, pattern))
            if rule_id is None:
                rule_id = next(new_ids, None)
                if rule_id is None:
                    raise RuleError(f"too many rules ({len(parsed)})", f"at most {MAX_RULE_ID} can be in use at a time")
                next_id = rule_id % MAX_RULE_ID + 1
            rules.append((Rule(rule_id, name, pattern.text, priority, *alert), pattern))
        return cls(rules, next_id)

    def match(self, wire: bytes) -> Rule | None:
        """Return the rule that counts a name in wire format and lower case; None if no rule matches.

        Raises ValueError if ``wire`` is not a name in wire format.
        """
        name = Name(to_labels(wire))
        for pattern, rule in self._candidates(wire, name):
            if pattern.matches(name):
                return rule
        return None

    def trie(self, within: Callable[[Callable[[], int]], int] = _at_once) -> list[TrieEntry]:
        """Return one entry for each distinct literal suffix; the longest suffix of a name decides about the name.

        ``within`` calls a function that computes an outcome. It may give up and return DECIDE: a regular expression
        can take any time, also on a configured name.
        """
        return [
            TrieEntry(
                suffix,
                entries[0][0].depth,
                within(partial(self._outcome, suffix, below=False)),
                within(partial(self._outcome, suffix, below=True)),
            )
            for suffix, entries in self._by_suffix.items()
        ]

    def table(self, within: Callable[[Callable[[], int]], int] = _at_once) -> RuleTable:
        """Return the rules and the trie, which :meth:`trie` explains."""
        return RuleTable(self.rules, self.trie(within))

    def _outcome(self, suffix: bytes, *, below: bool) -> int:
        """Return a rule's id, NO_RULE or DECIDE for ``suffix``, or for the names below it without a longer suffix.

        It is DECIDE if it depends on the name below, or would take more than _TRIALS wildcards and expressions.
        """
        name = Name(to_labels(suffix))
        trials = 0
        for pattern, rule in self._candidates(suffix, name):
            trials += pattern.conditional
            if trials > _TRIALS:
                return DECIDE
            matches = pattern.matches_below(name) if below else pattern.matches(name)
            if matches is None:
                return DECIDE
            if matches:
                return rule.id
        return NO_RULE

    def _candidates(self, wire: bytes, name: Name) -> Iterator[tuple[Pattern, Rule]]:
        """Yield the patterns with a suffix that the name ends in, in the order of precedence."""
        at = 0
        for label in (*name.labels, b""):
            yield from self._by_suffix.get(wire[at:], ())
            at += 1 + len(label)


def _check_duplicates(rules: Iterable[tuple[Spec, Pattern]]) -> None:
    names: set[str] = set()
    patterns: set[Pattern] = set()
    for (name, *_), pattern in rules:
        if name == UNDECIDED:
            raise pattern_error("a name that is not free", name, "give the rule another name")
        if pattern in patterns:
            raise pattern_error("two rules with the same pattern", pattern.text, "remove one of them")
        if name in names:
            raise pattern_error("two rules with the same name", name, "give one of them another name")
        names.add(name)
        patterns.add(pattern)


def _free_ids(first: int, taken: Collection[int]) -> Iterator[int]:
    """Yield the free ids from ``first`` up and then from 1, so that the id of a removed rule is reused late."""
    for step in range(MAX_RULE_ID):
        candidate = (first - 1 + step) % MAX_RULE_ID + 1
        if candidate not in taken:
            yield candidate
