"""The exchange of hooks that are not proved any more, with a loader, canaries and maps that need no kernel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel import canary_rounds
from dnsprobe.kernel.canary import CanaryPort
from dnsprobe.kernel.hooks import Hook, Rung
from dnsprobe.kernel.loader_client import Attached, LoaderClient
from dnsprobe.kernel.maps import CanaryRing, Maps
from dnsprobe.kernel.prover import HookChoice, Prover, require_udp
from dnsprobe.kernel.recovery import Recovery, Trial

UNSENT = "the canary could not be sent"
UNREPORTED = "the hook did not report the canary"
FENTRY = {"ip_send_skb by fentry", "tcp_sendmsg_locked by fentry", "cgroup_skb"}


class World:
    """A kernel that attaches hooks, and canaries that prove them.

    ``broken`` has the titles of rungs that the kernel refuses now. ``blind`` has pairs of a title and a path whose
    canaries are not reported: by hooks in use, by new ones, or by both. ``unsent`` has paths whose canaries cannot be
    sent. ``story`` is what happened. The loader dies at a request to attach with the maps ``deadly``.
    """

    def __init__(self, *paths: str) -> None:
        self.broken: set[str] = set()
        self.blind: set[tuple[str, str]] = set()
        self.unsent: set[str] = set()
        self.story: list[str] = []
        self.attached: list[FakeHook] = []
        self.maps = "maps in use"
        self.deadly = ""
        self.split = False
        self.told: list[bool] = []
        port = SimpleNamespace(port=1, paths=list(paths))
        self._port = cast(CanaryPort, port)
        self.prover = self._prover("maps in use")

    def _prover(self, maps: str) -> Prover:
        ring = SimpleNamespace(read=lambda: maps)
        return Prover(self._port, b"\0", cast(CanaryRing, ring))

    def make_trial(self, parts_only: bool) -> Trial:
        maps = SimpleNamespace(descriptors={"parts": 1} if parts_only else {"trial": 1}, close=lambda: None)
        return Trial(cast(Maps, maps), self._prover(next(iter(maps.descriptors))))

    def use_maps(self, maps: Mapping[str, int]) -> None:
        self.maps = next(iter(maps))

    def attach(self, rung: Rung, paths: Sequence[str], attempt: int) -> Attached:
        if self.maps == self.deadly:
            raise UserError("the loader process died")
        if attempt or rung.title in self.broken or rung.title not in FENTRY | {"udp_send_skb by kprobe"}:
            return Attached([], dict.fromkeys(paths, "refused"), "")
        groups = [[path] for path in paths] if rung.title.startswith("ip_send_skb") else [paths]
        hooks = [FakeHook(rung.name, rung.attach, tuple(group), rung.title, [], []) for group in groups]
        for hook in hooks:
            hook.world, hook.maps = self, self.maps
            self.attached.append(hook)
            self.story.append(f"attach {hook}")
        return Attached(list(hooks), {}, "")

    def problem(self, path: str, maps: str) -> str:
        """Return the problem of a canary whose reports are read from these maps."""
        if path in self.unsent:
            return UNSENT
        seen = [
            hook
            for hook in self.attached
            if path in hook.every_path and hook.maps == maps and (hook.symbol, path) not in self.blind
        ]
        return "" if len(seen) == 1 else f"reported {len(seen)} times" if seen else UNREPORTED


class FakeHook(Hook):
    world: World
    maps: str

    def __str__(self) -> str:
        return f"{self.symbol} for {' '.join(self.paths)} to {self.maps}"

    @property
    def every_path(self) -> set[str]:
        """The paths that it sees: at egress also datagrams in parts, unless there is a hook for those."""
        parts = {f"parts{path[-1]}" for path in self.paths if path.startswith("udp")}
        return {*self.paths, *(parts if self.attach == "cgroup" else ())}

    def close(self) -> None:
        self.world.attached.remove(self)
        self.world.story.append(f"detach {self}")


class FakeCanaries:
    world: World

    def __init__(self, paths: Collection[str], _port: CanaryPort, _suffix: bytes, _streams: object) -> None:
        self.paths = list(paths)
        self.unsent: set[str] = set()

    def release(self, paths: Collection[str]) -> None:
        self.paths = list(paths)

    def wait(self) -> None:
        self.unsent = self.world.unsent & set(self.paths)

    def dismiss(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def judge(self, maps: object) -> dict[str, str]:
        return {path: self.world.problem(path, str(maps)) for path in self.paths}


@pytest.fixture(autouse=True)
def _canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_rounds, "Canaries", FakeCanaries)


def started(
    *paths: str, hook: str = "auto", tcp_hook: str = "tcp_sendmsg_locked", broken: Collection[str] = ()
) -> tuple[World, Recovery]:
    """Return a world after the start, in which each hook of ``FENTRY`` works."""
    world = World(*paths)
    FakeCanaries.world = world
    world.broken |= set(broken)
    choice = HookChoice(hook, tcp_hook)
    world.prover.climb(cast(LoaderClient, world), choice)
    require_udp(world.prover)
    world.prover.serve_parts(cast(LoaderClient, world), lambda _: None, lambda _: None, world.told.append)
    world.story.clear()
    return world, Recovery(world.prover, choice, {"maps in use": 1}, world.make_trial, world.told.append)


def recover(world: World, recovery: Recovery) -> dict[str, str]:
    """Verify and recover. Return what serves each path."""
    world.prover.verify()
    recovery.run(cast(LoaderClient, world), lambda _: None)
    assert world.maps == "maps in use" or not world.story
    assert {hook.maps for hook in world.attached} <= {"maps in use", "nowhere"}, "no trial stays attached"
    return {path: world.prover.paths[path].symbol for path in world.prover.active_paths}


def lose(world: World, title: str) -> None:
    """Detach hooks behind the back of the prover."""
    for hook in [hook for hook in world.attached if hook.symbol == title]:
        hook.maps = "nowhere"


def test_nothing_is_tried_while_all_paths_are_proved() -> None:
    world, recovery = started("udp4", "udp6", "tcp4", "tcp6")
    assert world.prover.unproved == {}
    recover(world, recovery)
    assert world.story == []


def test_a_path_without_a_hook_since_the_start_gets_one() -> None:
    world, recovery = started("udp4", "tcp4", broken=["tcp_sendmsg_locked by fentry"])
    assert world.prover.unproved.keys() == {"tcp4"}
    recover(world, recovery)
    assert world.prover.unproved.keys() == {"tcp4"}
    world.broken.clear()
    assert recover(world, recovery)["tcp4"] == "tcp_sendmsg_locked by fentry"
    assert world.prover.unproved == {}
    assert world.story == [
        "attach tcp_sendmsg_locked by fentry for tcp4 to trial",
        "detach tcp_sendmsg_locked by fentry for tcp4 to trial",
        "attach tcp_sendmsg_locked by fentry for tcp4 to maps in use",
    ]


def test_a_hook_that_was_detached_is_attached_again() -> None:
    world, recovery = started("udp4", "udp6", "tcp4", "tcp6")
    lose(world, "tcp_sendmsg_locked by fentry")
    recover(world, recovery)
    assert world.prover.unproved == {}
    # The old one first: no write is counted twice. The hooks of the other paths are not touched.
    assert world.story[2:] == [
        "detach tcp_sendmsg_locked by fentry for tcp4 tcp6 to nowhere",
        "attach tcp_sendmsg_locked by fentry for tcp4 tcp6 to maps in use",
    ]


def test_the_hook_at_egress_for_tcp_does_not_touch_that_for_parts() -> None:
    world, recovery = started("udp4", "tcp4", tcp_hook="cgroup_skb")
    (hook,) = [hook for hook in world.attached if "tcp4" in hook.paths]
    hook.maps = "nowhere"
    recover(world, recovery)
    assert world.prover.unproved == {}
    assert world.story[2:] == [
        "detach cgroup_skb for tcp4 to nowhere",
        "attach cgroup_skb for tcp4 to maps in use",
    ]
    assert world.told == [True]


def test_the_next_rung_serves_if_the_first_one_fails_for_good() -> None:
    world, recovery = started("udp4", "udp6")
    lose(world, "ip_send_skb by fentry")
    world.broken.add("ip_send_skb by fentry")
    assert recover(world, recovery) == {
        "udp4": "udp_send_skb by kprobe",
        "udp6": "udp_send_skb by kprobe",
        "parts4": "cgroup_skb",
        "parts6": "cgroup_skb",
    }
    assert world.prover.unproved == {}
    assert "fentry ip_send_skb: refused" in world.prover.paths["udp4"].tried
    assert world.told == [True], "the hook for parts stays"


def test_a_hook_that_is_not_proved_in_a_trial_is_never_in_use() -> None:
    world, recovery = started("udp4")
    lose(world, "ip_send_skb by fentry")
    world.blind |= {("ip_send_skb by fentry", "udp4"), ("udp_send_skb by kprobe", "udp4"), ("cgroup_skb", "udp4")}
    before = list(world.attached)
    recover(world, recovery)
    assert world.attached == before, "what may still count something is not detached for nothing"
    assert all("in use" not in line for line in world.story)
    assert world.prover.unproved["udp4"] == UNREPORTED
    assert len(world.prover.paths["udp4"].tried) >= 3


def test_a_hook_that_works_for_a_sibling_is_detached_only_after_the_new_one_is_there() -> None:
    world, recovery = started("udp4", "tcp4", "tcp6")
    (old,) = [hook for hook in world.attached if "tcp4" in hook.paths]
    old.symbol = "old"
    world.blind.add(("old", "tcp6"))
    recover(world, recovery)
    assert world.story[2:] == [
        "attach tcp_sendmsg_locked by fentry for tcp4 tcp6 to maps in use",
        "detach old for tcp4 tcp6 to maps in use",
    ]
    assert world.prover.unproved == {}


def test_a_hook_that_sees_writes_and_the_one_at_egress_are_never_there_together() -> None:
    world, recovery = started("udp4", "tcp4", "tcp6", tcp_hook="auto")
    (old,) = [hook for hook in world.attached if "tcp4" in hook.paths]
    old.symbol = "old"
    world.blind |= {("old", "tcp6"), ("cgroup_skb", "tcp4"), ("cgroup_skb", "tcp6")}
    recover(world, recovery)
    assert world.story[-2:] == [
        "detach old for tcp4 tcp6 to maps in use",
        "attach tcp_sendmsg_locked by fentry for tcp4 tcp6 to maps in use",
    ]
    assert world.prover.unproved == {}


def test_a_hook_that_works_for_a_sibling_stays_if_no_hook_works_for_both() -> None:
    world, recovery = started("udp4", "tcp4", "tcp6")
    world.blind.add(("tcp_sendmsg_locked by fentry", "tcp6"))
    assert recover(world, recovery)["tcp4"] == "tcp_sendmsg_locked by fentry"
    assert world.prover.unproved == {"tcp6": UNREPORTED}


def test_the_hook_at_egress_takes_over_parts_with_all_other_datagrams() -> None:
    world, recovery = started("udp4", "udp6")
    lose(world, "ip_send_skb by fentry")
    world.broken |= {"ip_send_skb by fentry", "udp_send_skb by kprobe"}
    recover(world, recovery)
    assert [str(hook) for hook in world.attached] == ["cgroup_skb for udp4 udp6 to maps in use"]
    assert world.prover.unproved == {}
    assert world.told[-1] is False, "no hook leaves parts to another one"


def test_the_hook_for_parts_is_exchanged_alone() -> None:
    world, recovery = started("udp4", "udp6")
    lose(world, "cgroup_skb")
    recover(world, recovery)
    assert world.prover.unproved == {}
    assert world.story == [
        "attach cgroup_skb for parts4 parts6 to parts",
        "detach cgroup_skb for parts4 parts6 to parts",
        "detach cgroup_skb for parts4 parts6 to nowhere",
        "attach cgroup_skb for parts4 parts6 to maps in use",
    ]
    assert world.told[-1] is True


@pytest.mark.parametrize("deadly", ["parts", "maps in use"])
def test_a_loader_that_dies_leaves_parts_to_a_hook_that_is_there(deadly: str) -> None:
    world, recovery = started("udp4", "udp6")
    lose(world, "cgroup_skb")
    world.deadly = deadly
    with pytest.raises(UserError, match="the loader process died"):
        recover(world, recovery)
    # The hooks at functions see datagrams in parts, if only to count that they cannot read them.
    attached = {hook.symbol for hook in world.attached}
    assert attached == {"ip_send_skb by fentry"} | ({"cgroup_skb"} if world.told[-1] else set())
    world.deadly, world.maps = "", "maps in use"
    recover(world, recovery)
    assert world.prover.unproved == {}
    assert world.told[-1] is True


def test_canaries_that_cannot_be_sent_are_no_reason_to_exchange_a_hook() -> None:
    world, recovery = started("udp4", "tcp4")
    world.unsent = {"udp4", "tcp4", "parts4"}
    recover(world, recovery)
    assert world.prover.unproved == {"udp4": UNSENT, "tcp4": UNSENT, "parts4": UNSENT}
    assert world.story == []
    world.unsent.clear()
    recover(world, recovery)
    assert world.prover.unproved == {}


def test_only_the_hook_of_the_configuration_is_tried() -> None:
    world, recovery = started("udp4", hook="ip_send_skb")
    lose(world, "ip_send_skb by fentry")
    world.broken.add("ip_send_skb by fentry")
    recover(world, recovery)
    assert "udp4" in world.prover.unproved
    assert all("udp_send_skb" not in line and "udp4" not in line for line in world.story)


def test_after_an_interruption_nothing_is_exchanged() -> None:
    world, recovery = started("udp4")
    lose(world, "ip_send_skb by fentry")
    world.prover.verify()
    recovery.interrupt()
    with pytest.raises(UserError):
        recovery.run(cast(LoaderClient, world), lambda _: None)
    assert {hook.maps for hook in world.attached} == {"nowhere", "maps in use"}
