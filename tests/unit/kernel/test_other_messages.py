"""The table of messages that are not standard queries: complete, and the same in the documents."""

from __future__ import annotations

import re
from pathlib import Path

from dnsprobe.kernel.abi import Statistic
from dnsprobe.kernel.losses import LOSSES
from dnsprobe.kernel.other_messages import OTHER_MESSAGES, UNREAD_REASONS, read_other_messages, unread_reason
from dnsprobe.names.qtype import QTYPES

REPOSITORY = Path(__file__).parents[3]


def test_each_kind_has_its_statistic() -> None:
    statistics = {statistic: 100 + statistic for statistic in Statistic}
    assert read_other_messages(statistics) == {
        statistic.name.removeprefix("OTHER_").lower(): number
        for statistic, number in statistics.items()
        if statistic.name.startswith("OTHER_")
    }


def test_none_is_a_loss() -> None:
    assert {kind.statistic for kind in OTHER_MESSAGES} & {loss.source for loss in LOSSES} == set()


def test_no_alert_is_about_them() -> None:
    rules = (REPOSITORY / "packaging/prometheus/dnsprobe-alerts.yaml").read_text("utf-8")
    assert "dnsprobe_messages_other_total" not in rules


def test_the_document_has_the_same_kinds() -> None:
    page = (REPOSITORY / "docs/metrics.md").read_text("utf-8")
    section = page.split("\n### Messages that are not standard queries\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` *\| (.+?) *\|$", section, re.MULTILINE)
    assert [reason for reason, _ in rows if reason != "reason"] == [kind.reason for kind in OTHER_MESSAGES]
    for kind in OTHER_MESSAGES:
        assert dict(rows)[kind.reason].startswith(kind.what), f"docs/metrics.md: begin with: {kind.what}"


def test_each_reason_why_a_message_is_not_read_has_a_counter_of_its_own() -> None:
    """The kernel side counts it in place of the type, and types without a name have one counter."""
    assert UNREAD_REASONS.keys() <= QTYPES.keys()
    assert len(set(UNREAD_REASONS.values())) == len(UNREAD_REASONS)
    assert {unread_reason(Statistic.UNPARSED_MALFORMED), unread_reason(Statistic.OTHER_OPCODE)} == {
        "malformed",
        "opcode",
    }
