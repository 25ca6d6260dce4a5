"""The hooks of answers: when their answers count as seen, and which hooks are attached again. Without the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel.abi import ANSWERS_SEEN
from dnsprobe.kernel.answer_hooks import AnswerHooks
from dnsprobe.kernel.canary_rounds import Verdicts
from dnsprobe.kernel.hooks import ANSWERS, ENDS, Hook
from dnsprobe.kernel.loader_client import Attached, LoaderClient
from dnsprobe.kernel.prover import PathState, Prover

BOTH = ANSWERS_SEEN["4"] | ANSWERS_SEEN["6"]
#: Where the loader attaches the hooks: by which way, and at what. This kernel has no tracepoint for errors.
PLACES = {
    "answers": ("cgroup", "ingress"),
    "socket_ends": ("cgroup", "sock_release"),
    "socket_errors": ("kprobe", "sock_def_error_report"),
}
NOT_REPORTED = "answered: the hook did not report the result"


class FakeHook(Hook):
    closed = False

    def close(self) -> None:
        self.closed = True


class World:
    """A loader, and rounds of canaries. ``refused`` and ``problems`` are what goes wrong next."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self.unsent: frozenset[str] = frozenset()
        self.error = ""
        self.requests: list[list[str]] = []
        self.hooks: list[FakeHook] = []
        self.interrupted = False
        self.loader_problem = ""
        self.seen_by_loader: list[int] = []
        self.paths = {path: PathState("cgroup_skb", "cgroup", "egress", True) for path in ("udp4", "udp6")}
        self.seen: list[int] = []
        self.served_paths = ["udp4", "udp6"]
        self.answers = AnswerHooks(
            cast(Prover, SimpleNamespace(rounds=self, paths=self.paths, served_paths=self.served_paths)),
            lambda: self.seen.append(self.answers.seen),
        )

    def attach_answers(self, names: Sequence[str]) -> Attached:
        self.requests.append(list(names))
        self.seen_by_loader.append(self.answers.seen)
        if self.loader_problem:
            raise UserError(self.loader_problem)
        places = {name: PLACES[name] for name in names if name not in self.refused}
        hooks = [FakeHook(name, attach, (), symbol, [], []) for name, (attach, symbol) in places.items()]
        self.hooks += hooks
        return Attached(list(hooks), {name: self.refused[name] for name in names if name in self.refused}, "")

    def start(self, _paths: Sequence[str], _streams: object) -> Any:
        return SimpleNamespace(dismiss=lambda: None)

    def send(self, paths: Sequence[str], _canaries: object, _streams: object) -> Verdicts:
        if self.error:
            raise UserError(self.error)
        return Verdicts({path: self.problems.get(path, "") for path in paths}, self.unsent & {*paths})

    @property
    def loader(self) -> LoaderClient:
        return cast(LoaderClient, self)

    def begin(self) -> AnswerHooks:
        self.answers.start(self.loader, lambda _: None)
        return self.answers


@pytest.fixture
def world() -> World:
    return World()


def test_answers_are_seen_once_they_are_proved(world: World) -> None:
    answers = world.begin()
    assert world.requests == [["answers", "socket_ends", "socket_errors"]]
    assert (answers.seen, world.seen, answers.unproved, answers.failed) == (BOTH, [BOTH], {}, [])
    assert [answers.paths[path].place for path in (*ANSWERS, *ENDS)] == [
        "cgroup ingress",
        "cgroup ingress",
        "cgroup sock_release",
        "kprobe sock_def_error_report",
    ]
    answers.close()
    assert all(hook.closed for hook in world.hooks)


def test_a_refused_hook_is_tried_again_with_those_that_depend_on_it(world: World) -> None:
    world.refused = dict.fromkeys(("answers", "socket_ends", "socket_errors"), "cannot attach")
    answers = world.begin()
    assert (answers.seen, answers.failed) == (0, list(ANSWERS))
    assert answers.unproved["answers4"] == "cgroup ingress: cannot attach"
    world.refused = {}
    answers.recover(world.loader, lambda _: None)
    assert (answers.seen, answers.unproved) == (BOTH, {})


def test_a_kernel_without_an_end_does_not_get_it_later(world: World) -> None:
    world.refused = {"socket_errors": "cannot attach"}
    answers = world.begin()
    assert (answers.seen, [*answers.unproved], answers.failed) == (BOTH, ["unreachable4"], [])


def test_one_version_of_ip_may_be_seen_alone(world: World) -> None:
    world.problems = {"answers6": NOT_REPORTED}
    assert world.begin().seen == ANSWERS_SEEN["4"]


def test_only_the_hook_that_fails_is_attached_again(world: World) -> None:
    answers = world.begin()
    world.problems = {"closed4": "closed: the hook did not report the result"}
    answers.verify()
    assert (answers.seen, answers.failed) == (BOTH, ["closed4"])
    world.problems = {}
    answers.recover(world.loader, lambda _: None)
    assert world.requests[1:] == [["socket_ends"]]
    assert [hook.closed for hook in world.hooks] == [False, True, False, False]
    assert answers.unproved == {}


def test_answers_are_not_seen_while_their_hook_is_exchanged(world: World) -> None:
    answers = world.begin()
    world.problems = {"answers6": NOT_REPORTED}
    answers.verify()
    assert answers.seen == ANSWERS_SEEN["4"]
    world.loader_problem = "the loader has died"
    with pytest.raises(UserError, match="has died"):
        answers.recover(world.loader, lambda _: None)
    # Both versions of IP have one hook, which is gone.
    assert (world.seen_by_loader[1:], answers.seen, world.seen[-1]) == ([0], 0, 0)
    world.problems, world.loader_problem = {}, ""
    answers.recover(world.loader, lambda _: None)
    assert (answers.seen, answers.unproved) == (BOTH, {})


def test_the_proof_of_one_hook_does_not_change_what_is_known_of_others(world: World) -> None:
    answers = world.begin()
    world.problems = dict.fromkeys(ANSWERS, "its answer did not come") | {"closed4": NOT_REPORTED}
    world.unsent = frozenset(ANSWERS)
    answers.verify()
    assert (answers.seen, answers.failed) == (BOTH, ["closed4"])
    world.problems = {}
    answers.recover(world.loader, lambda _: None)
    assert world.requests[1:] == [["socket_ends"]]
    assert (answers.seen, answers.failed) == (BOTH, [])


def test_canaries_that_cannot_be_sent_change_nothing(world: World) -> None:
    answers = world.begin()
    world.problems = dict.fromkeys((*ANSWERS, *ENDS), "its answer did not come")
    world.unsent = frozenset(world.problems)
    answers.verify()
    assert (answers.seen, answers.failed, {*answers.unproved}) == (BOTH, [], {*ANSWERS})
    world.error = "no process is left"
    answers.verify()
    assert (answers.seen, answers.failed) == (BOTH, [])


def test_a_query_that_is_not_seen_says_nothing_about_its_answer(world: World) -> None:
    answers = world.begin()
    world.paths["udp4"] = PathState("cgroup_skb", "cgroup", "egress", False, problem="gone")
    world.problems = {"answers4": NOT_REPORTED}
    answers.verify()
    assert (answers.seen, answers.unproved) == (BOTH, {})
