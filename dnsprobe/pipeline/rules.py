"""The rules in force, and the decisions about names that the kernel leaves to user space.

The kernel matches most names by their suffix. A name that needs more than that, such as below a wildcard, comes to user
space once: the kernel counts its queries separately, as pending, until user space stores a verdict with the name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from dnsprobe.kernel import abi
from dnsprobe.kernel.maps import PendingKey
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import DECIDE, NO_RULE, Rule
from dnsprobe.names.ruleset import RuleSet

#: Decided names are forgotten once their map is that full. A single user cannot fill more than half of it.
_NAMES_FILL = 0.25

#: The rule of connections whose queries cannot be read. It is in force whatever the configured rules are.
ENCRYPTED = Rule(abi.ENCRYPTED, "", "")


class RulesInForce:
    """The rules that the kernel matches now, and earlier rules whose counts may still be in the kernel.

    ``clock`` returns seconds and never goes back.
    """

    def __init__(self, probe: Probe, rules: RuleSet, clock: Callable[[], float] = time.monotonic) -> None:
        self._probe, self._clock = probe, clock
        self._by_id = {abi.ENCRYPTED: ENCRYPTED}
        self._by_generation: dict[int, RuleSet] = {}
        self._retired: dict[int, float] = {}
        self.current = rules
        self._put_in_force(rules)

    def _put_in_force(self, rules: RuleSet) -> None:
        self._probe.set_rules(rules.trie())
        self.current = rules
        self._by_id.update(rules.by_id)
        self._by_generation[self._probe.generation] = rules

    @property
    def by_id(self) -> Mapping[int, Rule]:
        """The rules whose counts may be in the kernel, by their ids. A new rule must not get one of these ids."""
        return self._by_id

    def replace(self, rules: RuleSet) -> None:
        """Put other rules in force. A rule with the same id continues to count; a removed rule keeps its counts.

        Raises OSError if the kernel has no memory for the rules. The old ones then stay in force.
        """
        now = self._clock()
        gone = self.current.by_id.keys() - rules.by_id.keys()
        self._put_in_force(rules)
        self._retired.update(dict.fromkeys(gone, now))

    def match(self, name: bytes, generation: int) -> Rule | None:
        """Return the rule for a name in the rule set of a generation, or in the present one if that is forgotten."""
        return self._by_generation.get(generation, self.current).match(name)

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

    def forget_generations(self, pending: Collection[int]) -> None:
        """Forget earlier rule sets, except for the generations that pending counts belong to."""
        for generation in self._by_generation.keys() - {self._probe.generation, *pending}:
            del self._by_generation[generation]


class NameDecisions:
    """Decides names for the kernel, whose map has room for ``size`` of them.

    ``clock`` returns seconds and never goes back.
    """

    def __init__(
        self, probe: Probe, rules: RulesInForce, size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe, self._rules, self._size, self._clock = probe, rules, size, clock
        self._decided_at: dict[int, float] = {}
        self._names_full = 0

    def decide(self, names: Iterable[tuple[int, bytes]]) -> None:
        """Store the verdicts on names, each given with its hash, under the rules in force."""
        matched = ((name_hash, name, self._rules.current.match(name)) for name_hash, name in names)
        decided = self._probe.decide(
            (name_hash, name, rule.id if rule else NO_RULE) for name_hash, name, rule in matched
        )
        self._decided_at.update(dict.fromkeys(decided, self._clock()))

    def decide_all(self) -> None:
        """Store the verdicts on all names in the kernel: call this after other rules are in force."""
        self.decide([(name_hash, stored.name) for name_hash, stored in self._probe.maps.names.items()])

    def is_decided(self, name_hash: int, before: float) -> bool:
        """Return whether a name was decided at a moment or before, and not decided again since."""
        decided_at = self._decided_at.get(name_hash)
        return decided_at is not None and decided_at <= before

    def rules_of(self, keys: Iterable[PendingKey]) -> dict[tuple[int, int], Rule | None]:
        """Return the rules for names by hash and generation; decide those that are still open."""
        wanted = {(name_hash, generation) for _, name_hash, _, generation, _, _ in keys}
        if not wanted:
            return {}
        hashes = {name_hash for name_hash, _ in wanted}
        names: dict[int, bytes] = {}
        undecided: dict[int, bytes] = {}
        for name_hash, stored in self._probe.maps.names.items():
            if name_hash in hashes:
                names[name_hash] = stored.name
                if stored.verdict == DECIDE or stored.generation != self._probe.generation:
                    undecided[name_hash] = stored.name
        self.decide(undecided.items())
        return {
            (name_hash, generation): self._rules.match(names[name_hash], generation)
            for name_hash, generation in wanted
            if name_hash in names
        }

    def sweep(self, before: float, pending: Collection[int]) -> None:
        """Make room for names if there is little: forget those decided before a moment, except pending ones."""
        # A name stays undecided if there was no room for its count: no event and no counter shows it.
        names_full = self._probe.statistics()[abi.Statistic.UNDECIDED_NAMES_FULL]
        if names_full != self._names_full:
            self._names_full = names_full
            names = [(name_hash, stored.name) for name_hash, stored in self._probe.maps.names.items()]
            self.decide((name_hash, name) for name_hash, name in names if name_hash not in self._decided_at)
        if len(self._decided_at) < self._size * _NAMES_FILL:
            return
        unused = [name_hash for name_hash in self._decided_at.keys() - pending if self.is_decided(name_hash, before)]
        self._probe.maps.names.delete_many(unused)
        for name_hash in unused:
            del self._decided_at[name_hash]
