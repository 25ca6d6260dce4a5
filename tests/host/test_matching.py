"""Matching of names by the kernel side and user space together: compare the counts of each rule with what was sent."""

from __future__ import annotations

import json
import os
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from inline_matcher import InlineMatcher
from reference import message, wire

from dnsprobe.config.main import Config, DomainSpec, JournalConfig, MetricsConfig, ProbeConfig
from dnsprobe.kernel.abi import Event, Kind, Statistic
from dnsprobe.kernel.canary import CanaryPort
from dnsprobe.kernel.maps import PendingKey, Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.model import DECIDE, UNKNOWN, Query
from dnsprobe.names.pattern import parse_pattern
from dnsprobe.names.qtype import QTYPES
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.names.wire import MAX_NAME, from_text, label_text, to_text
from dnsprobe.pipeline.counters import Counters
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.resolver import Resolver
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.pipeline.series import Totals
from dnsprobe.pipeline.session import Session
from dnsprobe.pipeline.steps import run
from dnsprobe.process.container_names import ContainerNames
from dnsprobe.process.procfs import ProcFS
from dnsprobe.process.users import UserNames

#: Seconds that are enough for any step on a slow machine.
PATIENCE = 120.0

#: Seconds that are enough for running BPF programs to end: then a sweep may remove entries of the past.
GRACE = 3.0


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Host:
    """A probe that watches a port of the test, the pipeline behind it, and a clock that the test sets."""

    probe: Probe
    names: int
    address: tuple[str, int]
    sender: socket.socket
    clock: Clock = field(default_factory=Clock)

    def watch(self, *patterns: str) -> None:
        """Start again without counts, with these rules; each has its pattern as name."""
        while self.probe.maps.events.read():
            pass
        counted = list(self.probe.maps.counters.take_many([key for key, _ in self.probe.maps.counters.items()]))
        self.probe.maps.ancestries.delete_many(key[:2] for key, _ in counted)
        pending = list(self.probe.maps.pending.take_many([key for key, _ in self.probe.maps.pending.items()]))
        self.probe.maps.ancestries.delete_many((key[0], key[2]) for key, _ in pending)
        self.probe.maps.names.delete_many(list(self.probe.maps.names.keys()))
        self.before = self.probe.statistics()
        self.matcher = InlineMatcher(RuleSet.build([(pattern, pattern, 6) for pattern in patterns]))
        procfs = ProcFS()
        self.rules = RulesInForce(self.probe, self.matcher.rules.table(), self.matcher, self.clock)
        self.decisions = NameDecisions(self.probe, self.rules, self.matcher, self.names, self.clock)
        processes = KnownProcesses(self.probe, procfs)
        self.resolver = Resolver(self.rules, self.decisions, processes, ContainerNames(), UserNames().name)
        self.counters = Counters(
            self.probe, self.rules, self.decisions, processes, Totals(100_000), procfs.alive, self.clock
        )

    def build(self, specs: Sequence[tuple[str, str]]) -> RuleSet:
        """Return rules for names and patterns; unchanged rules keep their ids."""
        return RuleSet.build([(*spec, 6) for spec in specs], self.matcher.rules, self.rules.by_id)

    def replace(self, *patterns: str) -> None:
        self.put_in_force(self.build([(pattern, pattern) for pattern in patterns]))

    def put_in_force(self, rules: RuleSet) -> None:
        self.matcher.rules = rules
        run(self.rules.replacing(rules.table()))
        run(self.decisions.deciding_again())

    def send(self, name: bytes | str, qtype: int = 1, times: int = 1) -> None:
        wire_name = name if isinstance(name, bytes) else from_text(name)
        payload = message(wire_name, qtype)
        for _ in range(times):
            self.sender.sendto(payload, self.address)

    def take(self) -> list[tuple[Event, Query | None]]:
        """Take all events. User space thereby decides the names that the kernel leaves to it."""
        taken = []
        while some := self.take_some():
            taken += some
        return taken

    def take_some(self) -> list[tuple[Event, Query | None]]:
        """Take a bounded number of events, since more events may arrive all the time."""
        taken = []
        for event in self.probe.maps.events.read():
            queries = [query for query, _ in self.resolver.queries([event])]
            taken.append((event, queries[0] if queries else None))
        return taken

    def counts(self) -> dict[str, int]:
        """Return the number of queries by the name of the rule."""
        totals: Counter[str] = Counter()
        for series, queries in self.counters.collect().items():
            totals[series.domain] += queries
        return dict(totals)

    def statistic(self, statistic: Statistic) -> int:
        return self.probe.statistics()[statistic] - self.before[statistic]

    def sweep_later(self) -> None:
        """Advance the clock past the grace period and sweep: final counts move from the kernel to the totals."""
        self.clock.now += GRACE
        self.counters.sweep()


def hosts(names: int) -> Iterator[Host]:
    port = CanaryPort()
    # One user fills half of the map: the other half is the share of others.
    sizes = Sizes(ring=1 << 20, processes=256, counters=65536, names=2 * names, recent=1024)
    probe = Probe(ProbeOptions([port.port], tcp_hook="none"), sizes, repeat_ns=0)
    try:
        # Without rules, nothing is counted until a test calls watch().
        probe.set_rules([])
        probe.start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            yield Host(probe, names, ("127.0.0.1", port.port), sender)
    finally:
        probe.close()
        probe.release()
        port.close()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host on which one user has as much room for names as the default configuration has in all."""
    yield from hosts(ProbeConfig().names)


NARROW = 64


@pytest.fixture(scope="module")
def narrow() -> Iterator[Host]:
    """A host whose names map holds only NARROW names of one user."""
    yield from hosts(NARROW)


def fork(run: Callable[[], None]) -> int:
    """Run a function in a child process that exits afterwards; return the pid."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    return child


def upper(name: bytes) -> bytes:
    """Return a name in upper case. Length octets do not change: they are below the letters."""
    return name.upper()


# Tables

LOOKS_LIKE_TWO_LABELS = b"\7example\4test"
MANY = [b"a"] * 124
LONG = [b"x" * 63, b"y" * 63, b"z" * 63, b"w" * 48]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("patterns", "labels", "expected"),
    [
        # A suffix ends where a label begins.
        (["example.test"], [b"example", b"test"], "example.test"),
        (["example.test"], [b"www", b"example", b"test"], "example.test"),
        (["example.test"], [b"xexample", b"test"], None),
        (["example.test"], [b"example", b"xtest"], None),
        (["example.test"], [b"test"], None),
        (["example.test"], [b"example", b"test", b"test"], None),
        (["example.test"], [], None),
        (["=example.test"], [b"www", b"example", b"test"], None),
        (["=example.test"], [b"example", b"test"], "=example.test"),
        (["*.example.test"], [b"example", b"test"], None),
        (["*.example.test"], [b"xexample", b"test"], None),
        (["*.example.test"], [b"a", b"b", b"example", b"test"], "*.example.test"),
        (["."], [], "."),
        (["."], [b"test"], "."),
        (["=."], [], "=."),
        (["=."], [b"test"], None),
        # Octets in a label that look like the length of a label.
        (["example.test"], [LOOKS_LIKE_TWO_LABELS], None),
        (["example.test"], [b"www", LOOKS_LIKE_TWO_LABELS], None),
        (["example.test"], [b"\7example", b"test"], None),
        (["example.test"], [b"x\7example", b"test"], None),
        (["example.test"], [b"www\7example", b"test"], None),
        (["example.test", "test"], [b"www\7example", b"test"], "test"),
        (["example.test", "="], [b"www\7example", b"test"], None),
        (["example.test", "."], [LOOKS_LIKE_TWO_LABELS], "."),
        (["example.test", "*.test"], [b"x", b"x\7example", b"test"], "*.test"),
        (["example.test"], [LOOKS_LIKE_TWO_LABELS, b"example", b"test"], "example.test"),
        ([r"\007example\004test", "example.test"], [LOOKS_LIKE_TWO_LABELS], r"\007example\004test"),
        ([r"\007example\004test", "example.test"], [b"www", LOOKS_LIKE_TWO_LABELS], r"\007example\004test"),
        ([r"\007example.test", "example.test"], [b"\7example", b"test"], r"\007example.test"),
        ([r"\007example.test", "example.test"], [b"example", b"test"], "example.test"),
        # The suffix has more labels than the name, whose octets end in the same way.
        ([".".join("a" * 60)], [b"\1a" * 30, b"\1a" * 29 + b"\1"], None),
        ([".".join("a" * 31)], [b"\1a" * 31], None),
        ([".".join("a" * 31)], [b"x" + b"\1a" * 31], None),
        # The most labels and the longest names.
        (["a.a.a"], [b"b", *MANY[:123], b"a", b"a", b"a"], "a.a.a"),
        ([".".join("a" * 127)], [b"a"] * 127, ".".join("a" * 127)),
        (["=" + ".".join("a" * 126)], [b"a"] * 127, None),
        (["*." + ".".join("a" * 126)], [b"a"] * 127, "*." + ".".join("a" * 126)),
        ([".".join("a" * 126)], [b"b"] + [b"a"] * 126, ".".join("a" * 126)),
        ([".".join("a" * 126)], [b"b"] * 2 + [b"a"] * 125, None),
        (["example.test"], [*LONG, b"example", b"test"], "example.test"),
        (["example.test"], [*LONG, b"xexampl", b"test"], None),
        ([to_text(wire([*LONG, b"example", b"test"]))], [*LONG, b"example", b"test"], "all of it"),
        ([to_text(wire([*LONG[1:], b"example", b"test"]))], [*LONG, b"example", b"test"], "all of it"),
        (["a*.example.test"], [b"a" + b"x" * 62, *LONG[1:], b"example", b"test"], None),
        (["w*.example.test"], [*LONG, b"example", b"test"], "w*.example.test"),
        # Only A to Z have an upper and a lower case.
        (["example.test"], [b"EXAMPLE", b"tESt"], "example.test"),
        (["EXAMPLE.test"], [b"example", b"test"], "EXAMPLE.test"),
        ([r"a\091.test"], [b"a{", b"test"], None),
        ([r"a\064.test"], [b"a`", b"test"], None),
        ([r"a\065.test"], [b"aa", b"test"], r"a\065.test"),
        ([r"\196.test"], [b"\xe4", b"test"], None),
        ([r"\228.test"], [b"\xc4", b"test"], None),
        # Only user space can decide these.
        (["ads*.example.test", "example.test"], [b"ads1", b"example", b"test"], "ads*.example.test"),
        (["ads*.example.test", "example.test"], [b"www", b"example", b"test"], "example.test"),
        (["ads*.example.test", "example.test"], [b"www", b"ads1", b"example", b"test"], "ads*.example.test"),
        (["ads?.example.test"], [b"ads", b"example", b"test"], None),
        (["=*.example.test"], [b"www", b"example", b"test"], "=*.example.test"),
        (["=*.example.test"], [b"a.b", b"example", b"test"], "=*.example.test"),
        (["=*.example.test"], [b"a", b"b", b"example", b"test"], None),
        (["/^cdn[0-9]+/", "example.test"], [b"cdn7", b"example", b"test"], "example.test"),
        (["/^cdn[0-9]+/", "example.test"], [b"cdn7", b"other", b"test"], "/^cdn[0-9]+/"),
        (["/^cdn[0-9]+/", "example.test"], [b"other", b"test"], None),
        ([r"/\.test$/"], [b"a.test"], None),
        ([r"/\.test$/"], [b"a", b"test"], r"/\.test$/"),
        ([r"/^\.$/"], [], r"/^\.$/"),
    ],
)
def test_rule_that_counts_a_name(host: Host, patterns: list[str], labels: list[bytes], expected: str | None) -> None:
    name = wire(labels)
    if expected == "all of it":
        (expected,) = patterns
    host.watch(*[pattern for pattern in patterns if pattern != "="])
    rule = host.matcher.rules.match(name.lower())
    assert (rule.name if rule else None) == expected
    # If user space has to decide the name, the first queries come before the decision, the others after it.
    host.send(name, times=2)
    host.send(upper(name), times=3)
    first = host.take()
    host.send(name, times=5)
    host.send(upper(name), times=7)
    reported = [query for _, query in first + host.take() if query]
    assert [query.rule.name for query in reported] == ([expected] * 17 if expected else [])
    assert {query.qname for query in reported} <= {name.lower()}
    assert host.counts() == ({expected: 17} if expected else {})


# Random rules and names

LABELS = [
    *(b"a", b"b", b"ab", b"aab", b"x", b"www", b"ads", b"ads1", b"xads", b"ads-eu", b"example", b"xexample", b"test"),
    *(LOOKS_LIKE_TWO_LABELS, b"\4test", b"\7example", b"q\7example", b"\1a\1b", b"a\1b", b"\1a", b"\0", b"a\0b"),
    *(b"a.b", b"*", b"?", b"=a", b"/a/", b"\\", b'"', b"\xff", b"\xc3\xa4", b"a b"),
]
ENDS = [[b"test"], [b"example", b"test"], [b"a", b"example", b"test"], [b"b"], [b"b", b"b"], [b"ab", b"b"], []]
PIECES = ["*", "?", "a*", "*a", "a?", "ads*", "*ds*", "a*b", "x*", "?*", r"\007*", "*\\004test"]
EXPRESSIONS = [
    "/^a/",
    "/b$/",
    r"/\.test$/",
    r"/(^|\.)example\.test$/",
    r"/(^|\.)ads[0-9]*\.a\.example\.test$/",
    r"/^[^.]+\.example\.test$/",
    "/x/",
    "/ads.*ads/",
    r"/\\007/",
    r"/^\.$/",
    r"/^(a|b)\.b$/",
    r"/\\046/",
    "/^.{40,}$/",
]


def pattern_label(label: bytes) -> str:
    return "".join(f"\\{char}" if char in "*?=/" else char for char in label_text(label))


def random_pattern(rng: random.Random) -> str:
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice(EXPRESSIONS)
    labels = [pattern_label(rng.choice(LABELS)) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
    labels += [pattern_label(label) for label in rng.choice(ENDS)]
    if kind <= 4:
        labels.insert(rng.randrange(len(labels) + 1), rng.choice(PIECES))
    prefix = rng.choice(["", "", "=", "*."])
    return f"{prefix}{'.'.join(labels)}" if labels else rng.choice([".", "=.", "*."])


def random_specs(rng: random.Random, prefix: str) -> list[tuple[str, str]]:
    patterns = {parse_pattern(pattern): pattern for pattern in (random_pattern(rng) for _ in range(rng.randint(1, 12)))}
    return [(f"{prefix} {pattern}", pattern) for pattern in patterns.values()]


def random_name(rng: random.Random) -> bytes:
    labels = [rng.choice(LABELS) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    if rng.random() < 0.05:
        labels += [rng.choice([b"a", b"b", b"ab"]) for _ in range(rng.randrange(80))]
    if rng.random() < 0.05:
        labels = [rng.choice(LABELS) * 4 for _ in range(3)]
    labels += rng.choice(ENDS)
    name = wire([label[:63] for label in labels])
    return name if len(name) <= MAX_NAME else wire(ENDS[0])


def random_case(rng: random.Random, name: bytes) -> bytes:
    return bytes(rng.choice((octet, bytes([octet]).upper()[0])) for octet in name)


def test_random_rules_and_names(host: Host) -> None:
    """Rules are replaced again and again; counts stay exact, whether a name is decided before or after."""
    rng = random.Random(11)
    pool = sorted({random_name(rng) for _ in range(100)} | {wire([b"a"] * 127), wire([*LONG, b"example", b"test"])})
    host.watch("unused.invalid")
    expected: Counter[str] = Counter()
    kinds: Counter[tuple[int, bool]] = Counter()
    generations: dict[int, RuleSet] = {}
    for turn in range(80):
        rules = host.build(random_specs(rng, str(turn)))
        host.put_in_force(rules)
        generations[host.probe.generation] = rules
        # The replacement decides names that the map already has; new names are undecided at first.
        names = rng.choices(pool, k=10) + [random_name(rng) for _ in range(30)]
        rng.shuffle(names)
        sent: Counter[bytes] = Counter()
        for batch in (names, names[:20], names[10:]):
            for name in batch:
                sent[name] += 1
                host.send(random_case(rng, name), rng.choice([1, 28]))
            # Sometimes user space takes no events, so that a scrape or the next replacement decides the names.
            if rng.random() < 0.7:
                check_events(host, generations, kinds)
            if rng.random() < 0.1:
                host.counts()
        for name, times in sent.items():
            rule = rules.match(name)
            if rule:
                expected[rule.name] += times
        if rng.random() < 0.2:
            check_events(host, generations, kinds)
            host.sweep_later()
        if turn % 10 == 0:
            assert host.counts() == expected, turn
    check_events(host, generations, kinds)
    assert host.counts() == expected
    host.sweep_later()
    host.sweep_later()
    assert host.counts() == expected
    assert host.statistic(Statistic.LOST_RING_FULL) == 0
    # There were names that the kernel decided, and names that user space decided in both ways.
    assert min(kinds[0, True], kinds[1, True], kinds[1, False]) > 300, kinds
    assert kinds[0, False] == 0
    assert expected.total() > 1000


def check_events(host: Host, generations: dict[int, RuleSet], kinds: Counter[tuple[int, bool]]) -> None:
    """Take the events and check the rule of each: the one that counts its name in the generation of the event."""
    for event, query in host.take():
        rule = generations[event.generation].match(event.name)
        assert (query.rule if query else None) == rule, event.name
        kinds[event.kind, rule is not None] += 1


def test_every_name_that_a_rule_matches_has_an_event(host: Host) -> None:
    """One name at a time: exactly one query for each name that a rule matches, and none for the others."""
    rng = random.Random(12)
    pool = sorted({random_name(rng) for _ in range(300)})
    for turn in range(25):
        host.watch("unused.invalid")
        rules = host.build(random_specs(rng, str(turn)))
        host.put_in_force(rules)
        for name in rng.sample(pool, 40):
            host.send(name)
            reported = [query.rule for _, query in host.take() if query]
            rule = rules.match(name)
            assert reported == ([rule] if rule else []), name


# Many


def test_ten_thousand_rules() -> None:
    rng = random.Random(13)
    domains = ["d{}.example.test", "=d{}.exact.test", "*.d{}.below.test", "ads*.d{}.glob.test"]
    patterns = [domain.format(index) for index in range(2500) for domain in domains]
    port = CanaryPort()
    config = Config(
        domains=tuple(DomainSpec(pattern, pattern) for pattern in patterns),
        probe=ProbeConfig(ports=(port.port,)),
        journal=JournalConfig(repeat_ns=0),
        metrics=MetricsConfig(max_series=100_000),
    )
    rules = RuleSet.build(config.domains)
    session = Session(config, config.domains)
    try:
        session.start()
        expected: Counter[str] = Counter()
        reported: Counter[str] = Counter()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(400):
                index = rng.choice([0, 1, 2499, 2500, rng.randrange(2500)])
                base = rng.choice(domains).format(index).lstrip("=*.").removeprefix("ads*.")
                for front in ("", "www.", "x", "a.ads1."):
                    name = from_text(front + base)
                    rule = rules.match(name)
                    times = rng.randint(1, 3)
                    for _ in range(times):
                        sender.sendto(message(name), ("127.0.0.1", port.port))
                    if rule:
                        expected[rule.name] += times
                if rng.random() < 0.2:
                    reported.update(query.rule.name for query, _ in session.queries())
        while events := list(session.queries()):
            reported.update(query.rule.name for query, _ in events)
        counted: Counter[str] = Counter()
        for series, queries in session.collect().items():
            counted[series.domain] += queries
        assert counted == expected
        assert reported == expected
        assert {pattern.split(".")[-2] for pattern in expected} == {"example", "exact", "below", "glob"}
    finally:
        session.close()
        port.close()


def test_thousands_of_names_under_a_wildcard(host: Host) -> None:
    host.watch("ads*.example.test", "example.test")
    names = [f"ads{index}.example.test" for index in range(3000)]
    for name in names:
        host.send(name)
        host.send(f"x{name}")
    # These are more events than the ring holds, so the scrape decides most names.
    assert host.counts() == {"ads*.example.test": 3000, "example.test": 3000}
    assert host.statistic(Statistic.LOST_RING_FULL) > 0
    host.take()
    for name in names:
        host.send(name, 28)
    assert host.counts() == {"ads*.example.test": 6000, "example.test": 3000}
    host.sweep_later()
    assert not list(host.probe.maps.pending.items())
    for name in names:
        host.send(name, 28)
        host.send(f"x{name}", times=2)
    assert host.counts() == {"ads*.example.test": 9000, "example.test": 9000}
    assert host.statistic(Statistic.UNDECIDED_NAMES_FULL) == 0


def test_several_processes_query_new_names_at_once(host: Host) -> None:
    host.watch("ads*.example.test", "example.test")
    reader, writer = os.pipe()

    def run() -> None:
        os.close(writer)
        os.read(reader, 1)  # Returns in all children at once, when the parent closes the other end.
        for index in range(500):
            host.send(f"ads{index}.example.test")
            host.send(f"x{index}.example.test", times=2)

    children = [fork(run) for _ in range(4)]
    os.close(writer)
    os.close(reader)
    # User space decides names while the children send queries for them.
    host.take_some()
    assert host.counts().keys() <= {"ads*.example.test", "example.test"}
    for child in children:
        os.waitpid(child, 0)
        host.take_some()
    expected = {"ads*.example.test": 4 * 500, "example.test": 4 * 1000}
    assert host.counts() == expected
    host.take()
    host.sweep_later()
    host.sweep_later()
    assert not list(host.probe.maps.pending.items())
    assert host.counts() == expected


# Rules that change


def test_new_rules_count_from_the_replacement_on(host: Host) -> None:
    host.watch("example.test", "b*.example.test")
    names = ["example.test", "a.example.test", "b.example.test", "c.test"]
    for name in names:
        host.send(name, times=5)
    host.replace("example.test", "=a.example.test", "c.test", "/^b/")
    for name in names:
        host.send(name, times=7)
    expected = {
        "example.test": 10 + 7 + 7,
        "b*.example.test": 5,
        "=a.example.test": 7,
        "c.test": 7,
    }
    assert host.counts() == expected
    host.take()
    host.sweep_later()
    assert host.counts() == expected
    # A rule that comes back continues its count.
    host.replace("b*.example.test")
    for name in names:
        host.send(name, times=11)
    expected["b*.example.test"] += 11
    assert host.counts() == expected
    for _ in range(3):
        host.take()
        host.sweep_later()
        assert host.counts() == expected


def test_entries_stay_in_the_kernel_for_the_grace_period(host: Host) -> None:
    """A BPF program that started before a rule was removed, or before a name was decided, may still count."""
    host.watch("old.test", "ads*.example.test")
    host.send("old.test", times=3)
    host.send("ads.example.test", times=5)
    host.take()
    host.replace("ads*.example.test")
    for later in (0, GRACE / 3):
        host.clock.now += later
        host.counters.sweep()
        assert [queries for _, queries in host.probe.maps.counters.items()] == [3]
        assert [queries for _, queries in host.probe.maps.pending.items()] == [5]
    host.sweep_later()
    assert not list(host.probe.maps.counters.items())
    assert not list(host.probe.maps.pending.items())
    assert host.counts() == {"old.test": 3, "ads*.example.test": 5}


def test_a_decision_is_valid_for_one_generation_of_rules(host: Host) -> None:
    """New rules are in force for a moment before user space decides the names for them."""
    host.watch("ads*.example.test")
    entries = host.rules.current.trie
    rule = host.rules.current.rules[0].id
    for generation in range(host.probe.generation, host.probe.generation + 3):
        host.send("ads.example.test")
        ((undecided, _),) = host.take()
        host.send("ads.example.test")
        ((decided, _),) = host.take()
        assert (undecided.kind, undecided.rule, undecided.generation) == (Kind.UNDECIDED, DECIDE, generation)
        assert (decided.kind, decided.rule, decided.generation) == (Kind.QUERY, rule, generation)
        host.probe.set_rules(entries)


@dataclass
class Sender:
    """A process that sends queries for names in turn until ``finish``."""

    pid: int
    stop: int
    result: int

    def finish(self) -> list[int]:
        """Stop the process; return how many queries it sent for each name."""
        os.close(self.stop)
        os.waitpid(self.pid, 0)
        with os.fdopen(self.result, "rb") as result:
            sent: list[int] = json.loads(result.read())
        return sent


def start_sender(host: Host, names: Sequence[str]) -> Sender:
    stop_reader, stop = os.pipe()
    result, result_writer = os.pipe()
    payloads = [message(from_text(name)) for name in names]

    def run() -> None:
        # The reader sees the end of the pipe only after the last writer is closed, also if the test ends early.
        os.close(stop)
        sent = [0] * len(payloads)
        index = 0
        while not select.select([stop_reader], [], [], 0)[0]:
            for _ in range(50):
                host.sender.sendto(payloads[index], host.address)
                sent[index] += 1
                index = (index + 1) % len(payloads)
        os.write(result_writer, json.dumps(sent).encode())

    pid = fork(run)
    os.close(stop_reader)
    os.close(result_writer)
    return Sender(pid, stop, result)


def test_unchanged_rules_neither_lose_nor_double_a_count(host: Host) -> None:
    """While a process sends, other rules come and go, so that now the kernel and now user space decides."""
    stay = ["keep.test", "=ads*.glob.test"]
    others = [
        [],
        ["other.test"],
        ["zzz*.keep.test", "*.x.glob.test"],
        ["/never$/", "*.zzz*.keep.test", "=glob.test"],
        ["www.other.test", "=zzz?.keep.test", r"/^zzz.*\.glob\.test$/", "."],
    ]
    names = ["keep.test", "www.keep.test", "other.test"]
    names += [f"ads{index}.glob.test" for index in range(100)] + [f"www{index}.keep.test" for index in range(100)]
    host.watch(*stay)
    sender = start_sender(host, names)
    counted = 0
    try:
        for turn in range(30):
            host.replace(*stay, *others[turn % len(others)])
            if turn % 3:
                host.take_some()
            if turn % 4 == 1:
                host.clock.now += GRACE / 2
                host.counters.sweep()
            # Wait until the sender has sent all names under these rules.
            until = time.monotonic() + PATIENCE
            while (now := sum(host.counts().values())) < counted + len(names) and time.monotonic() < until:
                time.sleep(0.001)
            assert now >= counted + len(names)
            counted = now
    finally:
        sent = dict(zip(names, sender.finish(), strict=True))
    expected = {
        "keep.test": sum(times for name, times in sent.items() if name.endswith("keep.test")),
        "=ads*.glob.test": sum(times for name, times in sent.items() if name.endswith("glob.test")),
    }
    for _ in range(4):
        counts = host.counts()
        assert {rule: counts[rule] for rule in stay} == expected
        # The other rules counted some of the remaining queries, and none of them twice.
        assert sum(counts.values()) <= sum(sent.values())
        host.take()
        host.sweep_later()
    assert not list(host.probe.maps.pending.items())
    assert host.statistic(Statistic.UNDECIDED_NAMES_FULL) == 0


# Processes that have exited


def test_counts_of_exited_processes_move_to_the_totals(host: Host) -> None:
    host.watch("example.test", "ads*.glob.test")
    zombies = []
    for round_ in range(1, 4):

        def run(round_: int = round_) -> None:
            host.send("www.example.test", times=5)
            host.send("www.example.test", 28, times=3)
            host.send("example.test")
            for index in range(20):
                host.send(f"ads{round_}{index}.glob.test", times=2)
                host.send(f"x{round_}{index}.glob.test")

        child = fork(run)
        # A zombie sends nothing either.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        if round_ == 2:
            zombies.append(child)
        else:
            os.waitpid(child, 0)
        expected = {"example.test": 9 * round_, "ads*.glob.test": 40 * round_}
        assert host.counts() == expected
        start_ns = next(key[0] for key, _ in host.probe.maps.counters.items() if key[1] == child)
        series = {key: queries for key, queries in host.counters.collect().items() if queries}
        assert dict(host.probe.maps.ancestries.get_many([(start_ns, child)]))[start_ns, child]
        host.take()
        host.sweep_later()
        host.sweep_later()
        assert not list(host.probe.maps.counters.items())
        assert not list(host.probe.maps.pending.items())
        assert dict(host.probe.maps.ancestries.get_many([(start_ns, child)]))[start_ns, child] is None
        assert host.counters.collect() == series
        assert host.counts() == expected
    for child in zombies:
        os.waitpid(child, 0)


def test_counts_of_running_processes_stay_in_the_kernel(host: Host) -> None:
    host.watch("example.test", "ads*.glob.test")
    host.send("example.test", times=3)
    host.send("ads.glob.test", times=2)
    for _ in range(3):
        host.take()
        host.sweep_later()
        assert [(key[1], queries) for key, queries in host.probe.maps.counters.items()] == [(os.getpid(), 3)]
        assert host.counts() == {"example.test": 3, "ads*.glob.test": 2}
    host.send("example.test")
    host.send("ads.glob.test")
    assert host.counts() == {"example.test": 4, "ads*.glob.test": 3}


# A full map of names


def test_queries_without_room_for_their_names_are_counted(narrow: Host) -> None:
    narrow.watch("ads*.example.test", "other.test")
    for index in range(NARROW + 13):
        narrow.send(f"ads{index}.example.test")
    assert narrow.counts() == {"ads*.example.test": NARROW}
    assert narrow.statistic(Statistic.UNDECIDED_NAMES_FULL) == 13
    # Known names, and names that the kernel decides, need no further room.
    for index in range(NARROW):
        narrow.send(f"ads{index}.example.test", times=2)
    narrow.send("other.test", times=5)
    narrow.take()
    assert narrow.counts() == {"ads*.example.test": 3 * NARROW, "other.test": 5}
    assert narrow.statistic(Statistic.UNDECIDED_NAMES_FULL) == 13
    # After the grace period, decided names make room.
    narrow.sweep_later()
    narrow.sweep_later()
    for index in range(100, 100 + NARROW):
        narrow.send(f"ads{index}.example.test")
    assert narrow.counts() == {"ads*.example.test": 4 * NARROW, "other.test": 5}
    assert narrow.statistic(Statistic.UNDECIDED_NAMES_FULL) == 13


def test_names_come_and_go(narrow: Host) -> None:
    """Over time there are many more names than the map holds: decided names make room, and some come back."""
    rng = random.Random(14)
    narrow.watch("ads*.example.test", "=b?.example.test")
    expected: Counter[str] = Counter()
    evicted = False
    for turn in range(60):
        before = {stored.name for _, stored in narrow.probe.maps.names.items()}
        # At most twelve new names, and some earlier ones.
        indices = [*range(turn * 8, turn * 8 + 8), *(rng.randrange(turn * 8 + 8) for _ in range(4))]
        for index in indices:
            name = f"{rng.choice(['ads', 'x'])}{index}.example.test"
            times = rng.randint(1, 3)
            narrow.send(name, rng.choice([1, 28]), times)
            if name.startswith("ads"):
                expected["ads*.example.test"] += times
        if rng.random() < 0.8:
            narrow.take()
        if rng.random() < 0.5:
            assert narrow.counts() == expected, turn
        narrow.clock.now += 1.5
        narrow.counters.sweep()
        assert narrow.counts() == expected, turn
        evicted |= bool(before - {stored.name for _, stored in narrow.probe.maps.names.items()})
    assert evicted
    assert narrow.statistic(Statistic.UNDECIDED_NAMES_FULL) == 0


def test_names_without_room_for_their_counts_are_removed(narrow: Host) -> None:
    """The maps of names and of their counts have the same size: many types of one name use up all counts."""
    narrow.watch("ads*.example.test")
    # Those without a name share one counter.
    for qtype in sorted(QTYPES)[:NARROW]:
        narrow.send("ads.example.test", qtype)
    for index in range(NARROW - 1):
        narrow.send(f"ads{index}.example.test")
    assert narrow.counts() == {"ads*.example.test": NARROW}
    assert narrow.statistic(Statistic.UNDECIDED_NAMES_FULL) == NARROW - 1
    for _ in range(3):
        narrow.take()
        narrow.sweep_later()
    narrow.send("adsnew.example.test")
    assert narrow.counts() == {"ads*.example.test": NARROW + 1}


def test_late_event_of_a_name_that_made_room_for_others(narrow: Host) -> None:
    """When user space takes the event, the map is full of other names."""
    narrow.watch("ads*.example.test")
    for index in range(NARROW):
        narrow.send(f"ads{index}.example.test")
    # User space takes no events, but a scrape decides these names and sweeps remove them.
    assert narrow.counts() == {"ads*.example.test": NARROW}
    narrow.sweep_later()
    narrow.sweep_later()
    for index in range(100, 100 + NARROW):
        narrow.send(f"ads{index}.example.test")
    reported = [query for _, query in narrow.take() if query]
    assert len(reported) == 2 * NARROW
    assert narrow.counts() == {"ads*.example.test": 2 * NARROW}


# Races


def test_counts_of_a_removed_rule_during_the_grace_period(host: Host) -> None:
    host.watch("old.test", "stays.test")
    host.send("old.test", times=5)
    host.replace("stays.test")
    for _ in range(8):
        host.clock.now += 0.5
        host.counters.sweep()
        assert host.counts() == {"old.test": 5}


def test_process_that_sends_during_the_sweep(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with only undecided names sends once more while a sweep moves their counts, and exits."""
    host.watch("ads*.example.test")
    reader, writer = os.pipe()

    def run() -> None:
        os.close(writer)
        host.send("ads.example.test", times=3)
        while os.read(reader, 1):
            host.send("ads.example.test", times=2)

    child = fork(run)
    until = time.monotonic() + PATIENCE
    while sum(host.counts().values()) < 3 and time.monotonic() < until:
        time.sleep(0.001)
    host.take()
    before = set(host.counters.collect())
    take_many = host.probe.maps.pending.take_many

    def send_and_take(keys: Iterable[PendingKey]) -> Iterator[tuple[PendingKey, int]]:
        os.write(writer, b"x")
        os.close(writer)
        os.waitpid(child, 0)
        return take_many(keys)

    monkeypatch.setattr(host.probe.maps.pending, "take_many", send_and_take)
    host.sweep_later()
    monkeypatch.undo()
    # Scrape without taking the event, as if it was lost.
    assert host.counts() == {"ads*.example.test": 5}
    assert UNKNOWN not in {series.process for series in host.counters.collect()}
    assert set(host.counters.collect()) == before
