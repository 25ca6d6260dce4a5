"""From events to queries, where the kernel is not needed for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from dnsprobe.kernel.abi import Chain, Event, Facts, Kind, PathNames
from dnsprobe.kernel.maps import ProgramKey
from dnsprobe.kernel.probe import Probe
from dnsprobe.model import Container, Process
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.resolver import Resolver
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.process.container_names import ContainerNames
from dnsprobe.process.procfs import ProcFS
from dnsprobe.process.users import UserNames

ID = "3f4e" * 16
SCOPE = PathNames((b"system.slice", f"docker-{ID}.scope".encode()), whole=True)


class FactsMap:
    """The facts of one process, in a container of Docker's."""

    def get_many(self, keys: Iterable[ProgramKey]) -> Iterator[tuple[ProgramKey, Facts]]:
        facts = Facts(None, 0, 0, SCOPE, PathNames((b"bin", b"curl"), whole=True), b"curl\0")
        return ((key, facts) for key in keys)


class Kernel:
    """A probe with one process and without lineage tracking."""

    generation = 1
    maps = SimpleNamespace(facts=FactsMap())
    lineage_table = SimpleNamespace(hook=None)

    def set_rules(self, trie: Mapping[bytes, int]) -> None:
        """Take what nothing here is matched by."""

    def decide(self, decisions: Iterable[tuple[int, bytes, int]]) -> list[int]:
        return [name_hash for name_hash, _, _ in decisions]


def event(rule: int) -> Event:
    curl = Process(4242, 9_000_000_000, b"curl")
    return Event(
        time_ns=1,
        name_hash=0,
        repeats=0,
        rule=rule,
        generation=1,
        uid=0,
        gid=0,
        net_ns=0,
        qtype=1,
        port=53,
        kind=Kind.QUERY,
        transport=0,
        server=bytes([127, 0, 0, 1]),
        name=b"\4test\0",
        chain=Chain((curl,), complete=True, execs=0, lineage=(curl,), lineage_complete=True),
    )


def test_a_container_gets_its_name_though_its_process_was_known_before_it(tmp_path: Path) -> None:
    now = 0.0
    rules = RuleSet.build([("test", "test", 6)])
    (rule,) = rules.by_id
    names = ContainerNames(str(tmp_path), clock=lambda: now)
    probe = cast(Probe, Kernel())
    in_force = RulesInForce(probe, rules)
    decisions = NameDecisions(probe, in_force, 16)
    resolver = Resolver(in_force, decisions, KnownProcesses(probe, ProcFS(str(tmp_path))), names, UserNames().name)

    def container() -> Container | None:
        ((_, identity),) = resolver.queries([event(rule)])
        return identity.container

    assert container() == Container(ID, "docker")
    file = tmp_path / f"var/lib/docker/containers/{ID}/config.v2.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"Name": "/web"}))
    now = 61.0
    assert container() == Container(ID, "docker", name="web")
