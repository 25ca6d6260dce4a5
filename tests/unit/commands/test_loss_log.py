"""Warnings about queries that are not counted."""

from __future__ import annotations

import pytest

from dnsprobe.commands.loss_log import LossLog
from dnsprobe.kernel.losses import LOSSES, NO_LOSSES, Counted, Loss

(SKIPPED,) = (loss for loss in LOSSES if loss.reason == "run_missed" and loss.counted is Counted.NO)
(FULL,) = (loss for loss in LOSSES if loss.reason == "names_full")
(COUNTED,) = (loss for loss in LOSSES if loss.reason == "ring_full")


def test_the_first_loss_of_each_kind_and_those_after_a_while_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    log = LossLog(lambda: now)

    def logged(skipped: int, full: int) -> list[str]:
        caplog.clear()
        log.report(NO_LOSSES | {SKIPPED: skipped, FULL: full, COUNTED: skipped})
        return caplog.messages

    where = 'dnsprobe_events_lost_total{reason="run_missed"}'
    assert logged(0, 0) == []
    assert logged(3, 0) == [f"not counted: 3 more, 3 since the start: {SKIPPED.what} ({where})"]
    now += 1
    assert logged(5, 0) == []
    (message,) = logged(5, 7)
    assert message.startswith(f"not counted: 7 more, 7 since the start: {FULL.what}")
    now += 600
    assert logged(9, 7) == [f"not counted: 6 more, 9 since the start: {SKIPPED.what} ({where})"]
    now += 6000
    assert logged(9, 7) == []


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.metric}-{loss.reason}")
def test_a_warning_is_about_queries_that_are_in_no_count(loss: Loss, caplog: pytest.LogCaptureFixture) -> None:
    LossLog().report(NO_LOSSES | {loss: 1})
    assert bool(caplog.messages) == (loss.counted in {Counted.NO, Counted.IN_PART})
