"""What the tests with contention take for counted, missed and lost, from the text of a scrape."""

from __future__ import annotations

from collections import Counter

import pytest
from contention import Counted, Result, Sent

SENT = Sent(Counter({("steady0", "matched"): 10}), Counter({7: 10}), {7: "steady0"})


def counted(queries: int, *, missed: int = 0, gaps: int = 0, unread: int = 0) -> Counted:
    return Counted.of(
        f'dnsprobe_queries_total{{domain="matched.exact.test",process="steady0"}} {queries}\n'
        f'dnsprobe_events_lost_total{{reason="run_missed"}} {missed}\n'
        'dnsprobe_events_lost_total{reason="names_full"} 0\n'
        f'dnsprobe_packets_unparsed_total{{reason="unaligned"}} {gaps}\n'
        f'dnsprobe_packets_unparsed_total{{reason="nonlinear"}} {unread}\n'
    )


@pytest.mark.parametrize(
    ("found", "unaccounted"),
    [
        (counted(10), 0),
        (counted(9), 1),
        (counted(11), -1),
        (counted(7, missed=3), 0),
        (counted(7, unread=3), 0),
        # The gap that a skipped write leaves is the same loss. A gap without a skipped write is another one.
        (counted(7, missed=3, gaps=2), 0),
        (counted(7, missed=2, gaps=3), 0),
        (counted(7, gaps=3), 0),
    ],
)
def test_a_query_is_counted_or_missed_or_lost(found: Counted, unaccounted: int) -> None:
    assert Result(SENT, found.since(counted(0)), set(), 1, 0.0).unaccounted == unaccounted


def test_more_queries_than_were_sent_are_a_mistake() -> None:
    assert Result(SENT, counted(10), set(), 1, 0.0).mistakes == []
    assert Result(SENT, counted(11), set(), 1, 0.0).mistakes == ["steady0, matched: 11 counted, 10 sent"]


def test_two_storms_are_added_up() -> None:
    more = Sent(Counter({("steady0", "matched"): 5, ("steady1", "parts"): 8}), Counter({8: 13}), {8: "steady1"})
    both = SENT + more
    assert (both.total, both.calls) == (23, 17)
    assert both.by_pid == {7: 10, 8: 13}
    assert both.comms == {7: "steady0", 8: "steady1"}
