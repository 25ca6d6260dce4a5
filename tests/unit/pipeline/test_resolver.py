"""Events: which query each is, and the identity of its process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast

import pytest
from fake_kernel import DIG, EVENT, FakeKernel, chain_of
from inline_matcher import InlineMatcher

from dnsprobe.kernel.abi import OVER_LIMIT, Event, Facts, Kind, PathNames
from dnsprobe.kernel.maps import NameVerdict
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import DECIDE, NO_RULE, UNDECIDED, Container, Identity, Query
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.names.wire import from_text
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.resolver import Resolver
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.process.container_names import ContainerNames
from dnsprobe.process.procfs import ProcFS

ID = "3f4e" * 16
SCOPE = PathNames((b"system.slice", f"docker-{ID}.scope".encode()), whole=True)


def facts(program: str) -> Facts:
    """Return the facts of a process in a Docker container while it runs a program."""
    return Facts(None, 0, 0, 0, 0, SCOPE, PathNames((b"bin", program.encode()), whole=True), program.encode() + b"\0")


@dataclass
class Pipeline:
    """A resolver on a fake kernel, with a made-up file system."""

    root: Path
    kernel: FakeKernel = field(default_factory=FakeKernel)
    now: float = 0.0

    def __post_init__(self) -> None:
        probe = cast(Probe, self.kernel)
        self.matcher = InlineMatcher(RuleSet.build([("test", "test", 6), ("ads*.test", "ads*.test", 6)]))
        self.rules = RulesInForce(probe, self.matcher.rules.table(), self.matcher)
        self.decisions = NameDecisions(probe, self.rules, self.matcher, 16)
        self.processes = KnownProcesses(probe, ProcFS(str(self.root)))
        names = ContainerNames(str(self.root), clock=lambda: self.now)
        self.resolver = Resolver(self.rules, self.decisions, self.processes, names, {0: "root", 7: "ada"}.get)

    def resolve(self, *events: Event) -> list[tuple[Query, Identity]]:
        return list(self.resolver.queries(events))

    def add_facts(self, *programs: str) -> None:
        """Keep facts for the programs that dig runs one after the other."""
        for execs, program in enumerate(programs):
            self.kernel.facts.entries[DIG.start_ns, DIG.tgid, execs] = facts(program)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def test_an_event_becomes_a_query_with_an_identity(pipeline: Pipeline) -> None:
    pipeline.add_facts("dig")
    ((query, identity),) = pipeline.resolve(replace(EVENT, qclass=3))
    assert (query.rule, query.qname, query.transport) == (pipeline.rules.by_id[1], b"\4test\0", "udp")
    assert (query.qtype, query.qclass) == (1, 3)
    assert query.server == IPv4Address("127.0.0.1")
    assert query.ancestry.chain == (DIG,)
    assert (identity.exe, identity.user, identity.unit) == ("/bin/dig", "root", f"docker-{ID}.scope")


def test_a_program_without_facts_counts_once(pipeline: Pipeline) -> None:
    pipeline.resolve(EVENT, EVENT)
    pipeline.resolve(EVENT)
    assert pipeline.processes.without_facts == 1
    pipeline.add_facts("sh", "dig")
    chain = replace(EVENT.chain, execs=1)
    pipeline.resolve(replace(EVENT, chain=chain))
    assert pipeline.processes.without_facts == 1


def test_an_event_that_no_rule_matches_yields_nothing(pipeline: Pipeline) -> None:
    undecided = replace(EVENT, kind=Kind.UNDECIDED, rule=DECIDE, name=from_text("www.invalid"))
    assert pipeline.resolve(replace(EVENT, rule=77), undecided) == []


def names_of(kernel: FakeKernel) -> dict[int, int]:
    return {name_hash: stored.verdict for name_hash, stored in kernel.names.items()}


def test_undecided_names_get_a_verdict(pipeline: Pipeline) -> None:
    names = [from_text("ads1.test"), from_text("www.invalid")]
    for name_hash, name in enumerate(names):
        pipeline.kernel.names.entries[name_hash] = NameVerdict(DECIDE, 1, name)
    events = [
        replace(EVENT, kind=Kind.UNDECIDED, rule=DECIDE, name_hash=name_hash, name=name)
        for name_hash, name in enumerate(names)
    ]
    assert [query.rule.name for query, _ in pipeline.resolve(*events)] == ["ads*.test"]
    (wanted,) = [rule.id for rule in pipeline.rules.current.rules if rule.name == "ads*.test"]
    assert names_of(pipeline.kernel) == {0: wanted, 1: NO_RULE}


@pytest.mark.parametrize(
    ("execs", "programs"),
    [
        ([0, 0, 1, 1], ["sh", "sh", "dig", "dig"]),
        ([0, 1, 0, 1], ["sh", "dig", "sh", "dig"]),
        ([1, 2], ["dig", None]),
    ],
)
@pytest.mark.parametrize("at_once", [1, 4])
def test_each_program_of_a_process_has_its_facts(
    pipeline: Pipeline, execs: Sequence[int], programs: Sequence[str | None], at_once: int
) -> None:
    pipeline.add_facts("sh", "dig")
    events = [replace(EVENT, chain=chain_of(DIG, number)) for number in execs]
    found = []
    for first in range(0, len(events), at_once):
        found += [identity.exe for _, identity in pipeline.resolve(*events[first : first + at_once])]
    assert found == [program and f"/bin/{program}" for program in programs]


def test_each_query_has_the_user_of_its_moment(pipeline: Pipeline) -> None:
    found = pipeline.resolve(EVENT, replace(EVENT, uid=7), replace(EVENT, uid=8))
    assert [identity.user for _, identity in found] == ["root", "ada", None]


def test_a_container_gets_its_name_after_its_first_query(pipeline: Pipeline) -> None:
    pipeline.add_facts("dig")

    def container() -> Container | None:
        ((_, identity),) = pipeline.resolve(EVENT)
        return identity.container

    assert container() == Container(ID, "docker")
    file = pipeline.root / f"var/lib/docker/containers/{ID}/config.v2.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"Name": "/web"}))
    pipeline.now = 61.0
    assert container() == Container(ID, "docker", name="web")


def test_a_query_has_the_share_of_its_sender(tmp_path: Path) -> None:
    ((query, _),) = Pipeline(tmp_path).resolve(replace(EVENT, chain=chain_of(DIG, share=7)))
    assert query.share == 7


def undecided(name: str, name_hash: int) -> Event:
    return replace(EVENT, kind=Kind.UNDECIDED, rule=DECIDE, name_hash=name_hash, name=from_text(name))


def test_an_event_waits_until_its_name_is_decided(pipeline: Pipeline) -> None:
    pipeline.matcher.holds = True
    assert pipeline.resolve(undecided("ads1.test", 1), undecided("www.invalid", 2), EVENT)[0][0].rule.name == "test"
    assert pipeline.resolver.held == 2
    pipeline.matcher.holds = False
    pipeline.decisions.take_answers()
    assert [query.rule.name for query, _ in pipeline.resolve()] == ["ads*.test"]
    assert (pipeline.resolver.held, pipeline.resolver.refused) == (0, 0)
    # From now on, nobody has to be asked.
    pipeline.matcher.holds = True
    assert [query.rule.name for query, _ in pipeline.resolve(undecided("ads1.test", 1))] == ["ads*.test"]


def test_a_name_that_takes_too_long_has_a_rule_of_its_own(pipeline: Pipeline) -> None:
    pipeline.matcher.slow.add(from_text("slow.test"))
    pipeline.kernel.names.entries[1] = NameVerdict(DECIDE, 1, from_text("slow.test"))
    ((query, _),) = pipeline.resolve(undecided("slow.test", 1))
    assert (query.rule.name, query.rule.priority) == (UNDECIDED, 4)
    assert names_of(pipeline.kernel) == {1: OVER_LIMIT}
    assert pipeline.decisions.too_slow == 1


def test_names_are_asked_for_by_the_share_of_their_asker(pipeline: Pipeline) -> None:
    pipeline.resolve(replace(undecided("a.test", 1), chain=replace(EVENT.chain, share=77)))
    assert pipeline.matcher.askers == [77]
