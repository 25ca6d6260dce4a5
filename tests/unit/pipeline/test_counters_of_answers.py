"""Counters with results: the sums close in each collection, while processes end and rules change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from fake_kernel import DIG, FakeKernel, FakeMap, chain_of
from inline_matcher import InlineMatcher

from dnsprobe.config.main import BUCKETS_NS, MAX_BUCKETS
from dnsprobe.kernel.abi import LATENCY_BUCKETS, RESULT_ROOM, Noted, Result, Statistic
from dnsprobe.kernel.maps import Counted, CountKey, Latencies, LatencyKey, NameVerdict, Note, PendingKey
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import DECIDE, Process
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.answers import Answers
from dnsprobe.pipeline.counters import Counters
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.latencies import Histograms, key_of_counter, key_of_pending
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.steps import run
from dnsprobe.process.procfs import ProcFS

CURL = Process((1 << 22) + 2, 2_000, b"curl")


class Notes(FakeMap[int, Note]):
    def take_own(self, keys: Iterable[int]) -> Iterator[tuple[int, Note]]:
        for key in keys:
            yield key, self.entries.pop(key)


class Scene:
    """The counters of a fake kernel that tracks answers. The processes in ``ended`` have ended."""

    def __init__(self, root: Path) -> None:
        self.kernel = FakeKernel()
        self.counters_map: FakeMap[CountKey, Counted] = FakeMap()
        self.pending_map: FakeMap[PendingKey, Counted] = FakeMap()
        self.notes = Notes()
        maps = self.kernel.maps
        maps.counted, maps.pending_counted, maps.notes = self.counters_map, self.pending_map, self.notes
        maps.canary_notes = self.notes
        maps.put_given_up = lambda notes: None
        maps.sockets = SimpleNamespace(get_many=lambda keys: [(key, []) for key in keys])
        maps.unmatched = SimpleNamespace(read=lambda reasons: [(reason, 0) for reason in reasons])
        self.latencies: FakeMap[LatencyKey, Latencies] = FakeMap()
        self.rest = dict.fromkeys(range(5), Latencies((0,) * LATENCY_BUCKETS, 0))
        self.bounds: list[int] = []
        maps.latencies, maps.put_latency_bounds = self.latencies, self.bounds.extend
        maps.latency_rest = SimpleNamespace(read=lambda indexes: [(index, self.rest[index]) for index in indexes])
        self.kernel.pending = self.pending_map  # type: ignore[assignment]
        maps.pending = self.pending_map
        self.ended: set[Process] = set()
        self.now = 100.0
        probe = cast(Probe, self.kernel)
        self.matcher = InlineMatcher(RuleSet.build([("example.test", "example.test", 6)]))
        self.rules = RulesInForce(probe, self.matcher.rules.table(), self.matcher, self.clock)
        decisions = NameDecisions(probe, self.rules, self.matcher, 64, self.clock)
        self.totals = Totals(100, tracks_answers=True)
        processes = KnownProcesses(probe, ProcFS(str(root)))
        self.histograms = Histograms(probe, self.rules, decisions, processes, Totals(16), (1_000, 2_000_000_000))
        self.answers = Answers(probe, 5 * 10**9, lambda: int(self.now * 10**9), histograms=self.histograms)
        self.counters = Counters(
            probe,
            self.rules,
            decisions,
            processes,
            self.totals,
            lambda process: process.tgid not in {gone.tgid for gone in self.ended},
            self.clock,
            answers=self.answers,
        )

    def clock(self) -> float:
        return self.now

    def key(self, process: Process = DIG) -> CountKey:
        (rule,) = [rule.id for rule in self.rules.by_id.values() if rule.name == "example.test"]
        return (process.start_ns, process.tgid, rule, 1, 0, 0)

    def count(self, process: Process, queries: int, **results: int) -> None:
        """Set a counter."""
        numbers = tuple(results.get(result.name.lower(), 0) for result in Result)
        assert len(numbers) <= RESULT_ROOM
        self.counters_map.entries[self.key(process)] = Counted(queries, numbers)
        self.kernel.ancestries.entries[process.start_ns, process.tgid] = chain_of(process)

    def took(self, process: Process, latencies_ns: list[int]) -> None:
        """Set the histogram of a process."""
        buckets = [0] * LATENCY_BUCKETS
        for latency in latencies_ns:
            buckets[sum(latency > bound for bound in self.bounds)] += 1
        self.latencies.entries[key_of_counter(self.key(process))] = Latencies(tuple(buckets), sum(latencies_ns))

    def histogram(self, domain: str = "example.test", unit: str = "") -> list[float]:
        """Return the samples of a histogram in the last collection."""
        samples = sorted(self.histograms.samples.items())
        return [number for sample, number in samples if sample[:3] == (domain, "udp", unit)]

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
    scene.notes.entries[1] = Note(0, scene.key(CURL), Noted.COUNT, 7, 1)
    run(scene.answers.giving_up())
    expected["curl"]["timeout"] = 1
    assert scene.collect() == expected
    scene.counters.sweep()
    assert scene.counters_map.entries == {}
    assert scene.collect() == expected


@pytest.mark.parametrize(("again", "queries"), [(7, 7), (3, 4)])
def test_a_result_is_never_without_its_query(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, again: int, queries: int
) -> None:
    scene.count(DIG, again, noerror=5)
    (key,) = scene.counters_map.entries
    # What a processor with weak ordering may copy: four results, but not all of their queries yet.
    before = Counted(3, (4, *[0] * (len(Result) - 1)))
    monkeypatch.setattr(scene.counters_map, "items", lambda: iter([(key, before)]))
    assert scene.collect() == {"dig": {"queries": queries, "NOERROR": 4}}


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


def test_latencies_are_added_up_and_stay_when_processes_end(scene: Scene) -> None:
    scene.count(DIG, 3, noerror=3)
    scene.count(CURL, 2, nxdomain=1)
    scene.took(DIG, [1_000, 1_001, 2_000_000_001])
    scene.took(CURL, [500])
    scene.collect()
    expected = [2, 3, 4, 4, (1_000 + 1_001 + 2_000_000_001 + 500) / 1e9]
    assert scene.histogram() == expected
    assert [sample.bound for sample in sorted(scene.histograms.samples)][:3] == [1e-6, 2.0, math.inf]
    scene.ended = {DIG, CURL}
    scene.counters.sweep()
    # A query of curl still waits, and its answer will be added.
    assert list(scene.latencies.entries) == [key_of_counter(scene.key(CURL))]
    scene.collect()
    assert scene.histogram() == expected
    scene.count(CURL, 2, nxdomain=2)
    scene.took(CURL, [500, 600])
    scene.counters.sweep()
    assert scene.latencies.entries == {}
    scene.collect()
    assert scene.histogram() == [3, 4, 5, 5, (1_000 + 1_001 + 2_000_000_001 + 500 + 600) / 1e9]


def test_the_histogram_of_a_rule_that_is_gone_stays(scene: Scene) -> None:
    scene.count(DIG, 1, noerror=1)
    scene.took(DIG, [7])
    scene.replace("other.test")
    scene.now += 10
    scene.counters.sweep()
    assert scene.latencies.entries == {}
    scene.collect()
    assert scene.histogram() == [1, 1, 1, 1, 7e-9]


def test_latencies_without_room_count_for_all_domains(scene: Scene) -> None:
    scene.rest[0] = Latencies((2, *[0] * (LATENCY_BUCKETS - 1)), 30)
    scene.collect()
    assert scene.histogram("(other)", "(other)") == [2, 2, 2, 2, 30e-9]


def test_latencies_of_a_name_count_when_it_is_decided(scene: Scene) -> None:
    name = b"\3www\7example\4test\0"
    scene.kernel.names.entries[7] = NameVerdict(DECIDE, scene.kernel.generation, name)
    key = (DIG.start_ns, 7, DIG.tgid, scene.kernel.generation, 1, 0, 0)
    scene.pending_map.entries[key] = Counted(1, (1, *[0] * (len(Result) - 1)))
    scene.kernel.ancestries.entries[DIG.start_ns, DIG.tgid] = chain_of(DIG)
    scene.latencies.entries[key_of_pending(key)] = Latencies((1, *[0] * (LATENCY_BUCKETS - 1)), 40)
    scene.collect()
    assert scene.histogram() == [1, 1, 1, 1, 40e-9]
    scene.counters.sweep()
    scene.now += 10
    scene.counters.sweep()
    assert scene.pending_map.entries == {}
    assert scene.latencies.entries == {}
    scene.collect()
    assert scene.histogram() == [1, 1, 1, 1, 40e-9]


def test_the_kernel_has_room_for_all_buckets_that_can_be_configured() -> None:
    assert len(BUCKETS_NS) <= MAX_BUCKETS == LATENCY_BUCKETS - 1
