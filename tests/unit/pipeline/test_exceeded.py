"""Who exceeds a share: the numbers for the metric, and the warning."""

from __future__ import annotations

import logging

import pytest

from dnsprobe.pipeline.exceeded import ExceededShares
from dnsprobe.process.share_names import ShareName


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def named(share: int) -> ShareName:
    return ShareName(unit="nightly.service") if share == 7 else ShareName(user=f"user{share}")


def test_numbers_add_up_by_name_and_resource() -> None:
    exceeded = ExceededShares(named)
    exceeded.add({1: {"names": 2, "events": 0}, 7: {"names": 1}})
    exceeded.add({1: {"names": 3, "counters": 1}, 2: {"names": 0}})
    assert exceeded.counts == {
        ("user1", "", "names"): 5,
        ("user1", "", "counters"): 1,
        ("", "nightly.service", "names"): 1,
    }


def test_names_are_bounded() -> None:
    exceeded = ExceededShares(named)
    for share in range(100, 200):
        exceeded.add({share: {"names": 1}})
    exceeded.add({100: {"names": 1}})
    assert len(exceeded.counts) == 33
    assert exceeded.counts["(other)", "", "names"] == 68
    assert exceeded.counts["user100", "", "names"] == 2


def test_the_log_names_the_user_and_repeats_after_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    exceeded = ExceededShares(named, clock)
    with caplog.at_level(logging.WARNING):
        exceeded.add({1: {"names": 2}})
        exceeded.add({1: {"names": 3, "events": 4}})
        assert [record.getMessage() for record in caplog.records] == [
            "user user1 takes more than its share of names (2 times); others keep theirs "
            "(dnsprobe_share_exceeded_total)"
        ]
        exceeded.add({7: {"lineage": 1}})
        assert "unit nightly.service takes more than its share of lineage (1 time)" in caplog.text
        clock.now += 61
        exceeded.add({})
        assert (
            caplog.records[-1]
            .getMessage()
            .startswith("user user1 takes more than its share of events (4 times), names (3 times);")
        )
        clock.now += 61
        exceeded.add({})
    assert len(caplog.records) == 3


def test_names_of_strangers_are_harmless_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ExceededShares(lambda _: ShareName(unit="/a\n\x1b[2J")).add({1: {"names": 1}})
    assert all(record.getMessage().isprintable() for record in caplog.records)
