"""Counters with results: the sums close in each collection, while processes end and rules change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from fake_kernel import DIG, FakeKernel, FakeMap, chain_of
from inline_matcher import InlineMatcher

from dnsprobe.kernel.abi import RESULT_ROOM, Result, Statistic
from dnsprobe.kernel.maps import Counted, CountKey, Note, PendingKey
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import Process
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.answers import Answers
from dnsprobe.pipeline.counters import Counters
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.steps import run
from dnsprobe.process.procfs import ProcFS

CURL = Process((1 << 22) + 2, 2_000, b"curl")


class Notes(FakeMap[int, Note]):
    def take_own(self, items: list[tuple[int, int]]) -> Iterator[int]:
        for key, _share in items:
            del self.entries[key]
            yield key


class Scene:
    """The counters of a fake kernel that tracks answers. The processes in ``ended`` have ended."""

    def __init__(self, root: Path) -> None:
        self.kernel = FakeKernel()
        self.counters_map: FakeMap[CountKey, Counted] = FakeMap()
        self.pending_map: FakeMap[PendingKey, Counted] = FakeMap()
        self.notes = Notes()
        maps = self.kernel.maps
        maps.counted, maps.pending_counted, maps.notes = self.counters_map, self.pending_map, self.notes
        maps.put_given_up = lambda notes: None
        self.kernel.pending = self.pending_map  # type: ignore[assignment]
        maps.pending = self.pending_map
        self.ended: set[Process] = set()
        self.now = 100.0
        probe = cast(Probe, self.kernel)
        self.matcher = InlineMatcher(RuleSet.build([("example.test", "example.test", 6)]))
        self.rules = RulesInForce(probe, self.matcher.rules.table(), self.matcher, self.clock)
        decisions = NameDecisions(probe, self.rules, self.matcher, 64, self.clock)
        self.answers = Answers(probe, 5 * 10**9, lambda: int(self.now * 10**9))
        self.totals = Totals(100, tracks_answers=True)
        self.counters = Counters(
            probe,
            self.rules,
            decisions,
            KnownProcesses(probe, ProcFS(str(root))),
            self.totals,
            lambda process: process.tgid not in {gone.tgid for gone in self.ended},
            self.clock,
            answers=self.answers,
        )

    def clock(self) -> float:
        return self.now

    def key(self, process: Process = DIG) -> CountKey:
        (rule,) = [rule.id for rule in self.rules.by_id.values() if rule.name == "example.test"]
        return (process.start_ns, process.tgid, rule, 1, 0)

    def count(self, process: Process, queries: int, **results: int) -> None:
        """Set a counter."""
        numbers = tuple(results.get(result.name.lower(), 0) for result in Result)
        assert len(numbers) <= RESULT_ROOM
        self.counters_map.entries[self.key(process)] = Counted(queries, numbers)
        self.kernel.ancestries.entries[process.start_ns, process.tgid] = chain_of(process)

    def replace(self, *patterns: str) -> None:
        specs = [(pattern, pattern, 6) for pattern in patterns]
        self.matcher.rules = RuleSet.build(specs, self.matcher.rules, self.rules.by_id)
        run(self.rules.replacing(self.matcher.rules.table()))

    def collect(self) -> dict[str, dict[str, int]]:
        """Collect, and return what is not 0, by process. The sums close."""
        queries = self.counters.collect()
        outcomes = self.answers.outcomes
        found: dict[str, dict[str, int]] = {series.process: {"queries": times} for series, times in queries.items()}
        for (series, result), times in [*outcomes.responses.items(), *outcomes.unanswered.items()]:
            found[series.process][result] = times
        with_result = sum(outcomes.responses.values()) + sum(outcomes.unanswered.values())
        without = sum(outcomes.waiting.values()) + sum(outcomes.untracked.values())
        assert sum(queries.values()) == with_result + without
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_results_are_by_process_and_stay_when_it_ends(scene: Scene) -> None:
    scene.count(DIG, 5, noerror=2, nxdomain=1, closed=1, untracked=1)
    scene.count(CURL, 2, servfail=1)
    expected = {
        "dig": {"queries": 5, "NOERROR": 2, "NXDOMAIN": 1, "closed": 1},
        "curl": {"queries": 2, "SERVFAIL": 1},
    }
    assert scene.collect() == expected
    scene.ended = {DIG, CURL}
    scene.counters.sweep()
    # One query of curl still waits, so its counter stays.
    assert list(scene.counters_map.entries) == [scene.key(CURL)]
    assert scene.collect() == expected
    scene.notes.entries[1] = Note(0, scene.key(CURL), False, 7)
    run(scene.answers.giving_up())
    expected["curl"]["timeout"] = 1
    assert scene.collect() == expected
    scene.counters.sweep()
    assert scene.counters_map.entries == {}
    assert scene.collect() == expected


def test_a_rule_is_kept_as_long_as_its_queries_wait(scene: Scene) -> None:
    scene.count(DIG, 2, noerror=1)
    key = scene.key()
    scene.replace("other.test")
    scene.now += 10
    scene.counters.sweep()
    assert scene.collect() == {"dig": {"queries": 2, "NOERROR": 1}}
    scene.count(DIG, 2, noerror=1, nxdomain=1)
    scene.counters.sweep()
    assert key[2] not in scene.rules.by_id
    assert scene.collect() == {"dig": {"queries": 2, "NOERROR": 1, "NXDOMAIN": 1}}


def test_queries_without_process_are_untracked(scene: Scene) -> None:
    scene.kernel.counted[Statistic.UNATTRIBUTED_COUNTERS_FULL] = 3
    rule = scene.key()[2]
    scene.kernel.overflow[rule] = 3
    assert scene.collect() == {"(other)": {"queries": 3}}
    assert scene.answers.outcomes.untracked["example.test", "(other)"] == 3  # type: ignore[index]
    scene.replace("other.test")
    scene.now += 10
    scene.counters.sweep()
    assert scene.kernel.overflow == {}
    assert scene.collect() == {"(other)": {"queries": 3}}
