"""Places that users share: a flood of one leaves some for all others, and for what is urgent."""

import pytest

from dnsprobe.pipeline.budget import Budget

INFO, CRIT = 6, 2


def taken(budget: Budget, share: int, tries: int, priority: int = INFO) -> int:
    return sum(budget.take(share, priority) for _ in range(tries))


def test_one_user_does_not_take_all() -> None:
    budget = Budget(1000)
    assert taken(budget, 1, 5000, CRIT) == 750
    # Those who come later get what they need, up to three quarters of what is left.
    assert taken(budget, 2, 110, CRIT) == 110
    assert taken(budget, 3, 50, CRIT) == 50
    assert taken(budget, 1, 5000, CRIT) == 0


def test_a_flood_of_what_is_not_urgent_leaves_an_eighth() -> None:
    budget = Budget(1000)
    for share in range(500):
        taken(budget, share, 1000)
    assert 100 <= taken(budget, 1000, 1000, CRIT) + taken(budget, 1001, 1000, CRIT) <= 250


def test_a_place_is_free_after_it_was_given_back() -> None:
    budget = Budget(4)
    assert taken(budget, 1, 10, CRIT) == 3
    budget.give_back(1)
    assert taken(budget, 1, 10, CRIT) == 1
    budget.clear()
    assert taken(budget, 1, 10, CRIT) == 3


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100, 4096])
def test_the_size_is_never_exceeded(size: int) -> None:
    budget = Budget(size)
    assert 1 <= sum(taken(budget, share, size, priority) for share in range(20) for priority in (INFO, CRIT)) <= size


def test_a_share_that_was_refused_takes_no_memory() -> None:
    budget = Budget(1)
    assert taken(budget, 0, 1) == 1
    for share in range(1, 1000):
        assert not budget.take(share, INFO)
    assert len(budget._used) == 1


def test_refusals_are_reported_once_by_share() -> None:
    budget = Budget(4)
    for _ in range(6):
        budget.take(1, 6)
    refused = budget.take_refused()
    assert set(refused) == {1}
    assert budget.take(1, 6) is False
    assert budget.take_refused() == {1: 1}
    budget.clear()
    assert budget.take_refused() == {}
