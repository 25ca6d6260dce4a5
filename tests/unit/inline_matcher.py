"""Matching without another process: each question has its answer at once, unless a test holds the answers back."""

from __future__ import annotations

from collections.abc import Iterable

from dnsprobe.model import NO_RULE
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.matcher import Answer
from dnsprobe.pipeline.matching_process import OVER_LIMIT
from dnsprobe.pipeline.turns import Question


class InlineMatcher:
    """Matches with ``rules``. Names in ``slow`` take too long. ``holds`` keeps the answers back."""

    def __init__(self, rules: RuleSet) -> None:
        self.rules = rules
        self.by_generation: dict[int, RuleSet] = {}
        self.asked: dict[tuple[int, int], Question] = {}
        self.askers: list[int] = []
        self.slow: set[bytes] = set()
        self.holds = False

    def in_force(self, generation: int) -> None:
        self.by_generation[generation] = self.rules

    def forget(self, kept: Iterable[int]) -> None:
        for generation in self.by_generation.keys() - set(kept):
            del self.by_generation[generation]

    def ask(self, question: Question, asker: int) -> None:
        self.askers.append(asker)
        self.asked[question[:2]] = question

    def is_open(self, name_hash: int, generation: int) -> bool:
        return (name_hash, generation) in self.asked

    def answers(self) -> list[Answer]:
        if self.holds:
            return []
        asked, self.asked = self.asked, {}
        return [Answer(question, self._verdict(question)) for question in asked.values()]

    def _verdict(self, question: Question) -> int:
        if question.name in self.slow:
            return OVER_LIMIT
        rule = self.by_generation.get(question.generation, self.rules).match(question.name)
        return rule.id if rule else NO_RULE
