"""The process that matches names: time limits, its end, and reloads."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dnsprobe.config.source import Source
from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.model import NO_RULE, Alert, Rate, Rule
from dnsprobe.names.wire import from_text
from dnsprobe.pipeline.matcher import Answer, Matcher
from dnsprobe.pipeline.matching_client import Reload
from dnsprobe.pipeline.matching_process import OVER_LIMIT, Stopwatch
from dnsprobe.pipeline.matching_protocol import read_rules, rule_rows
from dnsprobe.pipeline.turns import Question

#: Seconds after which a test has failed.
PATIENCE = 60.0

CATASTROPHIC = r"/^([a-z0-9]+-?)+\.slow\.test$/"
#: A name for it that would take longer than the universe exists.
HOSTILE = "a" * 60 + "_.slow.test"

ATTACKER, VICTIM = 7, 8


def specs(*patterns: str) -> list[tuple[str, str, int]]:
    return [(pattern, pattern, 6) for pattern in patterns]


@pytest.fixture
def matcher() -> Iterator[Matcher]:
    """Yield a matcher whose rules 1 and 2 are CATASTROPHIC and a wildcard."""
    found = Matcher(10_000)
    found.build(specs(CATASTROPHIC, "ads*.test"))
    found.in_force(1)
    yield found
    found.close()


def question(number: int, name: str, generation: int = 1) -> Question:
    return Question(number, generation, from_text(name))


def answers(matcher: Matcher, count: int) -> list[Answer]:
    """Return the next answers, in their order."""
    found: list[Answer] = []
    until = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < until
        found += matcher.answers()
        matcher.maintain()
        if len(found) < count:
            matcher.wait(0.05)
    return found


def verdicts(found: Sequence[Answer]) -> dict[int, int]:
    return {answer.question.name_hash: answer.verdict for answer in found}


def test_names_are_matched(matcher: Matcher) -> None:
    names = ["www.slow.test", "ads7.test", "other.test"]
    for number, name in enumerate(names):
        matcher.ask(question(number, name), VICTIM)
    assert verdicts(answers(matcher, 3)) == {0: 1, 1: 2, 2: NO_RULE}


def test_a_name_that_takes_too_long_is_not_decided(matcher: Matcher) -> None:
    matcher.ask(question(0, HOSTILE), ATTACKER)
    matcher.ask(question(1, "ads7.test"), ATTACKER)
    assert verdicts(answers(matcher, 2)) == {0: OVER_LIMIT, 1: 2}


def test_slow_names_of_one_user_do_not_delay_those_of_another(matcher: Matcher) -> None:
    for number in range(100):
        matcher.ask(question(number, f"{'a' * 50}{number}_.slow.test"), ATTACKER)
    matcher.answers()
    for number in range(1000, 1300):
        matcher.ask(question(number, f"ads{number}.test"), VICTIM)
    found = answers(matcher, 400)
    last = max(at for at, answer in enumerate(found) if answer.question.name_hash >= 1000)
    before = [answer for answer in found[:last] if answer.verdict == OVER_LIMIT]
    assert len(before) <= 10
    assert verdicts(found) == dict.fromkeys(range(100), OVER_LIMIT) | dict.fromkeys(range(1000, 1300), 2)


def test_a_name_that_two_users_ask_for_waits_for_neither(matcher: Matcher) -> None:
    for number in range(50):
        matcher.ask(question(number, f"{'a' * 50}{number}_.slow.test"), ATTACKER)
    matcher.ask(question(99, "ads9.test"), ATTACKER)
    matcher.answers()
    matcher.ask(question(99, "ads9.test"), VICTIM)
    found = answers(matcher, 51)
    assert [answer.question.name_hash for answer in found].index(99) <= 10


def test_another_process_takes_the_place_of_one_that_was_killed(matcher: Matcher) -> None:
    process = matcher._processes[-1]
    os.kill(process.pid, signal.SIGSTOP)
    for number in range(300):
        matcher.ask(question(number, f"ads{number}.test"), VICTIM)
    matcher.answers()
    process.kill()
    assert verdicts(answers(matcher, 300)) == dict.fromkeys(range(300), 2)
    assert matcher._processes[-1].pid != process.pid


def test_a_process_that_does_not_answer_is_replaced() -> None:
    now = [0.0]
    matcher = Matcher(100, lambda: now[0])
    try:
        matcher.build(specs("ads*.test"))
        os.kill(matcher._processes[-1].pid, signal.SIGSTOP)
        matcher.ask(question(1, "ads1.test"), VICTIM)
        matcher.answers()
        matcher.maintain()
        assert len(matcher._processes) == 1
        now[0] += 31
        assert verdicts(answers(matcher, 1)) == {1: 1}
    finally:
        matcher.close()


def test_the_process_has_no_capabilities_and_a_low_priority(matcher: Matcher) -> None:
    matcher.ask(question(0, "ads.test"), VICTIM)
    answers(matcher, 1)  # it has started
    pid = matcher._processes[-1].pid
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert {status[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)


def reloaded(matcher: Matcher, path: Path, *reserved: int) -> Reload:
    loaded = matcher.reload(Source(str(path)), reserved)
    while loaded.table is None:
        loaded.read(wait=True)
    return loaded


def test_a_reload_reads_and_builds_in_another_process(matcher: Matcher, tmp_path: Path) -> None:
    path = tmp_path / "dnsprobe.yaml"
    path.write_text("domains: ['b*.test', 'ads*.test']\nprobe: {names: 77}")
    matcher.ask(question(0, HOSTILE), ATTACKER)
    matcher.ask(question(1, "ads1.test"), VICTIM)
    loaded = reloaded(matcher, path, 1, 2, 3)
    assert loaded.table is not None
    assert loaded.source == Source(str(path))
    assert "names=77" in loaded.needs_restart
    # The wildcard stays, so it keeps its id. The new rule gets one that is not reserved.
    assert {rule.name: rule.id for rule in loaded.table.rules} == {"b*.test": 4, "ads*.test": 2}
    assert {entry.suffix for entry in loaded.table.trie} == {from_text("test")}
    matcher.adopt(loaded)
    matcher.in_force(2)
    matcher.ask(question(2, "b1.test", 2), VICTIM)
    matcher.ask(question(3, "www.slow.test", 1), VICTIM)
    found = verdicts(answers(matcher, 4))
    # The rules of the first generation are still known.
    assert (found[1], found[2], found[3]) == (2, 4, 1)
    assert found[0] in {OVER_LIMIT, NO_RULE}


def test_alerts_of_rules_come_with_them(tmp_path: Path) -> None:
    alert = Alert(3, ("NXDOMAIN", "NODATA"), unanswered=True, latency_ns=1_000_000, rate=Rate(5, 60 * 10**9))
    rules = [Rule(7, "a", "a.test", 5, alert), Rule(8, "b", "b.test")]
    assert read_rules(json.loads(json.dumps(rule_rows(rules)))) == rules
    path = tmp_path / "dnsprobe.yaml"
    path.write_text("answers: on\ndomains: [a.test, {pattern: b.test, alert: {rcode: [nodata]}}]")
    matcher = Matcher(10)
    try:
        first = matcher.build([("a.test", "a.test", 6, alert), ("b.test", "b.test", 6)])
        assert [rule.alert for rule in first.rules] == [alert, None]
        assert first.limited == first.rules[:1]
        loaded = reloaded(matcher, path)
        assert loaded.table is not None
        # The rules are the same otherwise, so they keep their ids.
        assert [(rule.id, rule.alert) for rule in loaded.table.rules] == [
            (first.rules[0].id, None),
            (first.rules[1].id, Alert(rcodes=("NODATA",))),
        ]
        assert loaded.table.limited == ()
        matcher.end_unused(loaded)
    finally:
        matcher.close()


@pytest.mark.parametrize("content", ["domains: [a..b]", "domains: ['/(/']", "unknown: 1"])
def test_a_wrong_configuration_leaves_the_process_as_it_is(matcher: Matcher, tmp_path: Path, content: str) -> None:
    path = tmp_path / "dnsprobe.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"dnsprobe\.yaml:1"):
        reloaded(matcher, path)
    matcher.ask(question(1, "ads1.test"), VICTIM)
    assert verdicts(answers(matcher, 1)) == {1: 2}


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the file with the step at which a process that matches names dies."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "host" / "at_step"))
    monkeypatch.setenv("STEP", str(tmp_path / "step"))
    return tmp_path / "step"


def test_a_process_that_dies_with_the_first_rules_is_an_error(step: Path) -> None:
    step.write_text("dnsprobe.pipeline.matching_process call MatchingProcess._build 1", "ascii")
    matcher = Matcher(10)
    try:
        with pytest.raises(UserError, match="the process that builds the rules has died"):
            matcher.build(specs("a.test"))
    finally:
        matcher.close()
    assert not step.exists(), "it died"


@pytest.mark.parametrize("at", ["call MatchingProcess._read", "call MatchingProcess._set_rules"])
def test_a_reload_whose_process_dies_leaves_the_process_as_it_is(
    step: Path, request: pytest.FixtureRequest, tmp_path: Path, at: str
) -> None:
    matcher = request.getfixturevalue("matcher")
    path = tmp_path / "dnsprobe.yaml"
    path.write_text("domains: ['b*.test']")
    step.write_text(f"dnsprobe.pipeline.matching_process {at} 1", "ascii")
    with pytest.raises(UserError, match="the process that builds the rules has died"):
        reloaded(matcher, path)
    assert not step.exists(), "it died"
    matcher.ask(question(1, "ads1.test"), VICTIM)
    assert verdicts(answers(matcher, 1)) == {1: 2}
    # The next reload works.
    loaded = reloaded(matcher, path)
    assert loaded.table is not None
    matcher.adopt(loaded)


def test_wrong_first_rules_are_an_error() -> None:
    matcher = Matcher(10)
    try:
        with pytest.raises(UserError, match="two rules with the same name") as raised:
            matcher.build([("same", "a.test", 6), ("same", "b.test", 6)])
        assert (raised.value.hint, raised.value.status) == ("give one of them another name", EXIT_USAGE)
    finally:
        matcher.close()


def test_an_expression_that_takes_long_on_a_configured_name_is_left_to_the_decision_of_each_name() -> None:
    matcher = Matcher(10)
    try:
        table = matcher.build(specs(CATASTROPHIC, f"={HOSTILE}", "*." + HOSTILE))
        assert len(table.rules) == 3
    finally:
        matcher.close()


def test_a_limit_ends_a_call_and_leaves_no_timer() -> None:
    stopwatch = Stopwatch()

    def forever() -> int:
        while True:
            pass

    try:
        assert stopwatch.limit(forever, 0.02, -7) == -7
        assert stopwatch.limit(lambda: 3, 0.02, -7) == 3
        assert signal.getitimer(signal.ITIMER_PROF) == signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
