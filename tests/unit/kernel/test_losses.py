"""The table of losses: complete, and the same in the documents and in the alert rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dnsprobe.kernel.abi import Statistic, Unmatched
from dnsprobe.kernel.losses import (
    LOSSES,
    METRICS,
    NO_LOSSES,
    Counted,
    Loss,
    LostParts,
    Source,
    describe_losses,
    read_losses,
)

REPOSITORY = Path(__file__).parents[3]
#: Statistics that count work, not losses.
OF_WORK = {
    Statistic.EVENTS,
    Statistic.COUNTERS_ADDED,
    Statistic.NAMES_ADDED,
    Statistic.LINEAGE_ADDED,
    Statistic.LINEAGE_LEFT,
}
#: Statistics of messages that are not standard queries.
OF_OTHER_MESSAGES = {statistic for statistic in Statistic if statistic.name.startswith("OTHER_")}
#: Statistics that are read together with a number of the daemon itself.
PART_OF_A_SOURCE = {
    Statistic.LINEAGE_FULL: Source.LINEAGE_FULL,
    Statistic.IDENTITIES_FULL: Source.IDENTITIES_FULL,
    Statistic.PARTS_LEFT: Source.PARTS_LOST,
    Statistic.PARTS_TAKEN: Source.PARTS_LOST,
}
#: Reasons without an alert. Anyone can send malformed packets, which are no queries. In multicast DNS, packets often
#: have several questions.
#: What is as it should be: no queries, what a setting of the host causes, and servers without a label of their own.
NO_ALERT = {"malformed", "more_questions", "firewall", "servers_full"}

ALERTS = [
    rule
    for group in yaml.safe_load((REPOSITORY / "packaging/prometheus/dnsprobe-alerts.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def documented() -> dict[tuple[str, str], tuple[str, str]]:
    """Return the rows of docs/metrics.md by metric and reason: the meaning, and whether the query is counted."""
    page = (REPOSITORY / "docs/metrics.md").read_text("utf-8")
    section = page.split("\n### What is lost, and what is not counted\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? *\| (.+?) *\| (.+?) *\|$", section, re.MULTILINE)
    return {(f"dnsprobe_{metric}_total", reason): (what, counted) for metric, reason, what, counted in rows}


def test_every_statistic_and_source_is_in_one_loss() -> None:
    sources = [loss.source for loss in LOSSES]
    assert len(sources) == len(set(sources))
    statistics = set(Statistic) - OF_WORK - OF_OTHER_MESSAGES - PART_OF_A_SOURCE.keys()
    assert set(sources) == statistics | set(Source)
    assert {loss.metric for loss in LOSSES} == METRICS.keys()
    assert len({(loss.metric, loss.reason) for loss in LOSSES}) == len(LOSSES)


def test_the_document_has_the_same_losses() -> None:
    assert list(documented()) == [(loss.metric, loss.reason) for loss in LOSSES]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.metric}-{loss.reason}")
def test_the_document_uses_the_same_words(loss: Loss) -> None:
    what, counted = documented()[loss.metric, loss.reason]
    assert what.startswith(loss.what), f"docs/metrics.md: begin with: {loss.what}"
    expected = {Counted.YES: "yes", Counted.NO: "**no**", Counted.IN_PART: "in part", Counted.NO_QUERY: "not a query"}
    assert re.split("[;,]", counted)[0] == expected[loss.counted]


def alerts_on(loss: Loss) -> list[str]:
    """Return the alerts whose expression selects a loss."""
    found = []
    for rule in ALERTS:
        for matchers in re.findall(rf"{loss.metric}(?:{{(.*?)}})?\[", rule["expr"]):
            unequal = set(re.findall(r'reason!="(\w+)"', matchers))
            equal = set(re.findall(r'reason="(\w+)"', matchers))
            if loss.reason not in unequal and (not equal or loss.reason in equal):
                found.append(rule["alert"])
    return found


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.metric}-{loss.reason}")
def test_one_alert_is_about_it(loss: Loss) -> None:
    alerts = alerts_on(loss)
    assert len(alerts) == (loss.reason not in NO_ALERT)
    # The alert on lost queries is about those that are not counted.
    if loss.metric == "dnsprobe_events_lost_total":
        assert (alerts == ["DnsprobeQueriesLost"]) == (loss.counted is Counted.NO)


def test_alerts_name_no_other_reason() -> None:
    reasons = {loss.reason for loss in LOSSES} | {reason.name.lower() for reason in Unmatched}
    for rule in ALERTS:
        assert set(re.findall(r'reason!?=~?"(\w+)"', rule["expr"])) <= reasons
        assert set(re.findall(r"\b\w+_full\b|\brun_missed\b", rule["annotations"]["description"])) <= reasons


def test_numbers_come_from_statistics_and_other_sources() -> None:
    statistics = {statistic: 100 + statistic for statistic in Statistic} | {Statistic.PARTS_TAKEN: 115}
    parts = LostParts()
    parts.detach()
    losses = read_losses({Source.MISSED_RUNS: 7}, statistics, parts)
    by_source = {loss.source: times for loss, times in losses.items()}
    assert by_source[Statistic.LOST_RING_FULL] == 101
    assert by_source[Source.MISSED_RUNS] == 7
    assert by_source[Source.PARTS_LOST] == 100 + Statistic.PARTS_LEFT - 115
    assert by_source[Source.JOURNAL_DROPPED] == 0
    assert losses.keys() == NO_LOSSES.keys()


@pytest.mark.parametrize(
    ("left", "taken", "missed", "runs_lost"),
    [(9, 9, 0, 0), (9, 7, 4, 4), (9, 10, 4, 3), (9, 13, 4, 0), (9, 14, 4, 0)],
)
def test_a_skipped_run_is_no_loss_if_the_hook_at_egress_took_the_packet(
    left: int, taken: int, missed: int, runs_lost: int
) -> None:
    found = read_losses({Source.MISSED_RUNS: missed}, with_parts(left, taken), LostParts())
    by_source = {loss.source: times for loss, times in found.items()}
    assert by_source[Source.MISSED_RUNS] == runs_lost


def with_parts(left: int, taken: int) -> dict[Statistic, int]:
    return dict.fromkeys(Statistic, 0) | {Statistic.PARTS_LEFT: left, Statistic.PARTS_TAKEN: taken}


def test_a_packet_on_its_way_to_egress_is_not_lost() -> None:
    now = 100.0
    parts = LostParts(lambda: now)
    assert parts.read(with_parts(1, 0)) == 0
    now += 0.1
    assert parts.read(with_parts(2, 1)) == 0
    now += 60
    # Another one is on its way at each look, also much later, but one look found none.
    assert parts.read(with_parts(5, 5)) == 0
    now += 60
    assert parts.read(with_parts(8, 7)) == 0


def test_a_packet_that_is_missing_at_two_looks_is_lost() -> None:
    now = 100.0
    parts = LostParts(lambda: now)
    assert parts.read(with_parts(3, 2)) == 0
    now += 0.1
    assert parts.read(with_parts(3, 2)) == 0
    now += 0.2
    assert parts.read(with_parts(3, 2)) == 1
    now += 15
    assert parts.read(with_parts(9, 7)) == 1


def test_after_the_end_nothing_is_on_its_way() -> None:
    parts = LostParts()
    assert parts.read(with_parts(3, 1)) == 0
    parts.detach()
    assert parts.read(with_parts(3, 1)) == 2


def test_packets_that_were_taken_without_having_been_left_show_at_once() -> None:
    parts = LostParts(lambda: 100.0)
    assert parts.read(with_parts(1000, 1004)) == -4
    # One that is on its way does not hide another.
    assert parts.read(with_parts(1001, 1004)) == -4


def test_many_looks_do_not_hide_a_lost_packet() -> None:
    now = 100.0
    parts = LostParts(lambda: now)
    lost = []
    for _ in range(50):
        lost.append(parts.read(with_parts(1, 0)))
        now += 0.01
    assert lost == sorted(lost)
    assert lost[:20] == [0] * 20
    assert lost[-1] == 1


def test_programs_without_facts_count_once_and_only_if_the_kernel_had_no_room() -> None:
    for failures, programs, expected in ((234, 18, 18), (0, 2, 0), (1, 3, 1)):
        statistics = dict.fromkeys(Statistic, 0) | {Statistic.IDENTITIES_FULL: failures}
        losses = read_losses({Source.IDENTITIES_FULL: programs}, statistics, LostParts())
        assert {loss.reason: times for loss, times in losses.items()}["identities_full"] == expected


def test_every_loss_above_zero_is_named() -> None:
    assert describe_losses(NO_LOSSES) == "0 lost"
    ring_full, names_full = LOSSES[:2]
    assert describe_losses(NO_LOSSES | {ring_full: 3, names_full: 1}) == (
        "lost: 3 times no room for an event in the ring buffer, so no journal entry (counted); "
        "1 time no room to remember a name that only the daemon can decide (not counted)"
    )
    line = describe_losses(dict.fromkeys(LOSSES, 2))
    assert all(f"2 times {loss.what} ({loss.counted})" in line for loss in LOSSES)
