"""Names of users."""

import os
import pwd
import threading

from dnsprobe.process.users import UserNames


def test_this_user_has_a_name() -> None:
    assert UserNames().name(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name


def test_a_bounded_number_of_names_is_kept_for_a_minute() -> None:
    asked: list[int] = []
    now = 0.0

    def user_name(uid: int) -> str | None:
        asked.append(uid)
        return f"u{uid}" if uid else None

    users = UserNames(user_name, clock=lambda: now)
    for _ in range(3):
        assert users.name(7) == "u7"
        assert users.name(0) is None
    assert asked == [7, 0]
    now = 61.0
    assert users.name(7) == "u7"
    assert asked == [7, 0, 7]
    for uid in range(1000, 11000):
        users.name(uid)
    assert len(users._users) <= 256


def test_an_unknown_user_has_no_name() -> None:
    assert UserNames().name(4294967294) is None
    assert UserNames().name(1 << 40) is None


def test_a_name_that_comes_late_is_given_up_and_kept_when_it_comes() -> None:
    answers = threading.Event()
    asked: list[int] = []
    now = 0.0

    def user_name(uid: int) -> str:
        asked.append(uid)
        answers.wait(60)
        return f"u{uid}"

    before = set(threading.enumerate())
    users = UserNames(user_name, clock=lambda: now)
    assert [users.name(uid) for uid in range(1000, 1100)] == [None] * 100
    # No more than that many wait for a server that does not answer.
    assert asked == [1000, 1001, 1002, 1003]
    answers.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert users.name(1003) == "u1003"
    assert len(asked) == 4
