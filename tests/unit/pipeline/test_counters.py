"""Counters: collected, and moved to the totals exactly once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from fake_kernel import DIG, FakeKernel, chain_of
from inline_matcher import InlineMatcher

from dnsprobe.kernel import abi
from dnsprobe.kernel.abi import OVER_LIMIT, Statistic
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import OTHER, UNDECIDED, UNKNOWN, Process, Series
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.names.wire import from_text
from dnsprobe.pipeline.counters import Counters
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.steps import run
from dnsprobe.process.procfs import ProcFS

CURL = Process((1 << 22) + 2, 2_000, b"curl")


@dataclass
class Pipeline:
    """The objects that collect and sweep the counters of a fake kernel. The processes in ``ended`` have ended."""

    root: Path
    kernel: FakeKernel = field(default_factory=FakeKernel)
    ended: set[Process] = field(default_factory=set)
    now: float = 100.0

    def __post_init__(self) -> None:
        probe, procfs = cast(Probe, self.kernel), ProcFS(str(self.root))
        self.matcher = InlineMatcher(self.build("example.test", "ads*.test"))
        self.rules = RulesInForce(probe, self.matcher.rules.table(), self.matcher, self.clock)
        self.decisions = NameDecisions(probe, self.rules, self.matcher, 64, self.clock)
        processes = KnownProcesses(probe, procfs)
        self.counters = Counters(probe, self.rules, self.decisions, processes, Totals(100), self.alive, self.clock)

    def clock(self) -> float:
        return self.now

    def alive(self, process: Process) -> bool:
        return (process.start_ns, process.tgid) not in {(gone.start_ns, gone.tgid) for gone in self.ended}

    def build(self, *patterns: str) -> RuleSet:
        return RuleSet.build([(pattern, pattern, 6) for pattern in patterns])

    def replace(self, *patterns: str) -> None:
        self.matcher.rules = RuleSet.build(
            [(pattern, pattern, 6) for pattern in patterns], self.matcher.rules, self.rules.by_id
        )
        run(self.rules.replacing(self.matcher.rules.table()))
        run(self.decisions.deciding_again())

    def rule(self, name: str) -> int:
        (found,) = [rule.id for rule in self.rules.current.rules if rule.name == name]
        return found

    def totals(self) -> dict[tuple[str, str], int]:
        """Return the queries by domain and process."""
        return {(series.domain, series.process): queries for series, queries in self.counters.collect().items()}


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def test_labels_come_from_the_ancestry_that_the_kernel_keeps(pipeline: Pipeline) -> None:
    pipeline.kernel.count(DIG, pipeline.rule("example.test"), 3)
    assert pipeline.counters.collect() == {Series("example.test", "A", "udp", "remote", "dig", "dig", "", ""): 3}


def test_queries_to_this_host_and_elsewhere_are_told_apart(pipeline: Pipeline) -> None:
    rule = pipeline.rule("example.test")
    pipeline.kernel.count(DIG, rule, 3)
    pipeline.kernel.count(DIG, rule, 4, transport=abi.TO_LOCAL | abi.TRANSPORTS.index("tcp"))
    expected = {("udp", "remote"): 3, ("tcp", "local"): 4}
    assert {(key.transport, key.to): number for key, number in pipeline.counters.collect().items()} == expected
    pipeline.ended = {DIG}
    pipeline.counters.sweep()
    assert {(key.transport, key.to): number for key, number in pipeline.counters.collect().items()} == expected


def test_a_process_without_an_ancestry_counts_as_unknown(pipeline: Pipeline) -> None:
    pipeline.kernel.count(DIG, pipeline.rule("example.test"))
    pipeline.kernel.ancestries.entries.clear()
    assert pipeline.totals() == {("example.test", UNKNOWN): 1}


def test_only_counters_of_ended_processes_are_swept(pipeline: Pipeline) -> None:
    rule = pipeline.rule("example.test")
    pipeline.kernel.count(DIG, rule, 3)
    pipeline.kernel.count(CURL, rule, 4)
    pipeline.ended = {DIG}
    before = pipeline.counters.collect()
    for _ in range(3):
        pipeline.counters.sweep()
        assert [key[1] for key, _ in pipeline.kernel.counters.items()] == [CURL.tgid]
        assert pipeline.counters.collect() == before
    assert set(pipeline.kernel.ancestries.entries) == {(CURL.start_ns, CURL.tgid)}


def test_queries_without_an_asker_stay_in_the_kernel_and_count_as_unknown(pipeline: Pipeline) -> None:
    nobody = Process(0, 0, b"")
    pipeline.kernel.count(nobody, pipeline.rule("example.test"), 3)
    pipeline.kernel.ancestries.entries.clear()
    pipeline.ended = {nobody}
    for _ in range(2):
        pipeline.counters.sweep()
        # The kernel may count for it at any time, as it does for a process that runs.
        assert [key[:2] for key, _ in pipeline.kernel.counters.items()] == [(0, 0)]
        assert pipeline.totals() == {("example.test", UNKNOWN): 3}


def test_a_process_is_checked_before_its_counter_is_taken(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = pipeline.rule("example.test")
    pipeline.kernel.count(DIG, rule, 3)

    def ask_and_end(process: Process) -> bool:
        pipeline.kernel.count(process, rule, 2)
        return False

    monkeypatch.setattr(pipeline.counters, "_alive", ask_and_end)
    pipeline.counters.sweep()
    assert not pipeline.kernel.counters.entries
    assert pipeline.totals() == {("example.test", "dig"): 5}


def test_counters_of_a_retired_rule_are_swept_after_the_grace_period(pipeline: Pipeline) -> None:
    old = pipeline.rule("example.test")
    pipeline.kernel.count(DIG, old, 3)
    pipeline.kernel.overflow[old] = 5
    pipeline.kernel.counted[Statistic.UNATTRIBUTED_COUNTERS_FULL] = 5
    pipeline.replace("ads*.test")
    # A run of a BPF program that began before the change may still count.
    pipeline.counters.sweep()
    pipeline.kernel.count(DIG, old)
    expected = {("example.test", "dig"): 4, ("example.test", OTHER): 5}
    assert pipeline.totals() == expected
    assert old in pipeline.rules.by_id
    pipeline.now += 2.1
    pipeline.counters.sweep()
    assert not pipeline.kernel.counters.entries
    assert not pipeline.kernel.overflow
    assert old not in pipeline.rules.by_id
    assert pipeline.totals() == expected


def test_pending_counters_are_swept_after_their_name_was_decided(pipeline: Pipeline) -> None:
    pipeline.kernel.count_pending(DIG, from_text("ads1.test"), 3)
    pipeline.kernel.count_pending(CURL, from_text("other.test"), 7)
    expected = {("ads*.test", "dig"): 3}
    assert pipeline.totals() == expected
    verdicts = {stored.name: stored.verdict for stored in pipeline.kernel.names.entries.values()}
    assert verdicts == {from_text("ads1.test"): pipeline.rule("ads*.test"), from_text("other.test"): 0}
    pipeline.counters.sweep()
    assert len(pipeline.kernel.pending.entries) == 2
    pipeline.now += 2.1
    pipeline.counters.sweep()
    assert not pipeline.kernel.pending.entries
    assert pipeline.totals() == expected


def test_pending_counters_belong_to_the_rules_of_their_generation(pipeline: Pipeline) -> None:
    pipeline.kernel.count_pending(DIG, from_text("ads1.test"), 3)
    pipeline.replace("example.test")
    pipeline.kernel.count_pending(DIG, from_text("ads1.test"), 4)
    assert pipeline.totals() == {("ads*.test", "dig"): 3}
    pipeline.now += 2.1
    pipeline.counters.sweep()
    assert not pipeline.kernel.pending.entries
    assert pipeline.totals() == {("ads*.test", "dig"): 3}


def test_decided_names_make_room(pipeline: Pipeline) -> None:
    for number in range(40):
        pipeline.kernel.count_pending(DIG, from_text(f"ads{number}.test"))
    pipeline.counters.sweep()
    assert len(pipeline.kernel.names.entries) == 40
    pipeline.now += 2.1
    pipeline.counters.sweep()
    assert not pipeline.kernel.names.entries
    assert pipeline.totals() == {("ads*.test", "dig"): 40}


def test_counts_have_the_share_of_their_process(pipeline: Pipeline) -> None:
    pipeline.kernel.count(DIG, pipeline.rule("example.test"), 3)
    pipeline.kernel.ancestries.entries[DIG.start_ns, DIG.tgid] = chain_of(DIG, share=7)
    assert [count.share for counts in pipeline.counters._counts() for count in counts] == [7]


def test_counts_of_a_name_that_is_not_decided_stay_in_the_kernel_until_it_is(pipeline: Pipeline) -> None:
    pipeline.matcher.holds = True
    pipeline.kernel.count_pending(DIG, from_text("ads1.test"), 3)
    for _ in range(2):
        pipeline.now += 5
        pipeline.counters.sweep()
        assert pipeline.totals() == {}
        assert len(pipeline.kernel.pending.entries) == 1
    pipeline.kernel.count_pending(DIG, from_text("ads1.test"), 4)
    pipeline.matcher.holds = False
    assert pipeline.totals() == {("ads*.test", "dig"): 7}
    pipeline.now += 5
    pipeline.counters.sweep()
    pipeline.now += 5
    pipeline.counters.sweep()
    assert not pipeline.kernel.pending.entries
    assert pipeline.totals() == {("ads*.test", "dig"): 7}


def test_counts_of_a_name_that_takes_too_long_are_undecided(pipeline: Pipeline) -> None:
    pipeline.matcher.slow.add(from_text("slow.test"))
    pipeline.kernel.count_pending(DIG, from_text("slow.test"), 3)
    assert pipeline.totals() == {(UNDECIDED, "dig"): 3}
    (stored,) = pipeline.kernel.names.entries.values()
    assert stored.verdict == OVER_LIMIT
    pipeline.kernel.count(DIG, OVER_LIMIT, 4)
    pipeline.now += 5
    pipeline.counters.sweep()
    assert not pipeline.kernel.pending.entries
    assert pipeline.totals() == {(UNDECIDED, "dig"): 7}


def test_a_process_that_is_found_during_a_sweep_keeps_its_labels(pipeline: Pipeline) -> None:
    rule = pipeline.rule("example.test")
    pipeline.kernel.count(DIG, rule)
    steps = pipeline.counters.sweeping()
    next(steps)
    while (DIG.start_ns, DIG.tgid) not in pipeline.counters._processes._labels:
        pipeline.counters._processes.learn([(DIG.start_ns, DIG.tgid)])
    pipeline.kernel.count(CURL, rule, 2)
    pipeline.counters._processes.learn([(CURL.start_ns, CURL.tgid)])
    run(steps)
    pipeline.kernel.ancestries.entries.clear()  # so that no label can be found again
    assert pipeline.totals() == {("example.test", "dig"): 1, ("example.test", "curl"): 2}


def test_rules_that_the_kernel_refuses_are_forgotten(pipeline: Pipeline) -> None:
    rules = RuleSet.build([("new.test", "new.test", 6)], pipeline.matcher.rules, pipeline.rules.by_id)
    steps = pipeline.rules.replacing(rules.table())
    next(steps)
    assert rules.rules[0].id in pipeline.rules.by_id
    steps.close()
    assert rules.rules[0].id not in pipeline.rules.by_id
    assert pipeline.rule("example.test")
