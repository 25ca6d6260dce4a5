"""The climb up the ladders and the later rounds, with a loader and canaries that need no kernel."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel import canary_rounds
from dnsprobe.kernel.canary import CanaryPort
from dnsprobe.kernel.hooks import Hook, Rung
from dnsprobe.kernel.loader_client import Attached, LoaderClient
from dnsprobe.kernel.maps import CanaryRing
from dnsprobe.kernel.prover import HookChoice, PathState, Prover, require_udp

NO_KPROBES = "this kernel has no kprobes"
NO_FENTRY = "BTF has no such function"
UNSENT = "the canary could not be sent"


class FakeHook(Hook):
    closed = False

    def close(self) -> None:
        self.closed = True


class FakeLoader:
    """Attaches the rungs in ``attempts``, which has the number of ways for each title; refuses all others."""

    def __init__(self, attempts: Mapping[str, int], messages: str = "") -> None:
        self.attempts, self.messages = attempts, messages
        self.hooks: list[FakeHook] = []
        #: Whether each path has a hook of its own, as at functions.
        self.split = False

    def attach(self, rung: Rung, paths: Sequence[str], attempt: int) -> Attached:
        if attempt >= self.attempts.get(rung.title, 0):
            reason = NO_FENTRY if rung.attach == "fentry" else NO_KPROBES
            return Attached([], dict.fromkeys(paths, reason), self.messages)
        groups = [[path] for path in paths] if self.split else [paths]
        hooks = [FakeHook(rung.name, rung.attach, tuple(group), f"symbol{attempt}", [], []) for group in groups]
        self.hooks += hooks
        return Attached(list(hooks), {}, "")


class FakeCanaries:
    """A round whose verdicts come from ``problems``, the first of them in the first round."""

    problems: list[dict[str, str]]

    def __init__(self, paths: Collection[str], _port: CanaryPort, _suffix: bytes, _streams: object) -> None:
        self.paths = list(paths)
        self.unsent: set[str] = set()
        self.dismissed = False

    def release(self, paths: Collection[str] | None = None) -> None:
        self.paths = list(self.paths if paths is None else paths)

    def wait(self) -> None:
        pass

    def dismiss(self) -> None:
        self.dismissed = True

    def kill(self) -> None:
        self.dismissed = True

    def judge(self, _events: object) -> dict[str, str]:
        found = self.problems.pop(0) if self.problems else {}
        self.unsent = {path for path, problem in found.items() if problem.startswith(UNSENT)}
        return {path: found.get(path, "") for path in self.paths}


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Return the list that has the problems of each round: empty rounds prove everything."""
    found: list[dict[str, str]] = []
    monkeypatch.setattr(FakeCanaries, "problems", found, raising=False)
    monkeypatch.setattr(canary_rounds, "Canaries", FakeCanaries)
    return found


def prover(*paths: str) -> Prover:
    port = SimpleNamespace(port=1, paths=list(paths), close_connections=lambda: None, close=lambda: None)
    return Prover(cast(CanaryPort, port), b"\0", cast(CanaryRing, SimpleNamespace(read=list)))


def climb(
    made: Prover, loader: FakeLoader, hook: str = "auto", tcp_hook: str = "auto", *, fentry: bool = True
) -> list[str]:
    """Climb, and return the rungs that were tried."""
    tried: list[str] = []
    made.climb(cast(LoaderClient, loader), HookChoice(hook, tcp_hook, fentry), lambda _: None, tried.append)
    require_udp(made)
    return tried


@pytest.mark.usefixtures("problems")
def test_the_best_rung_serves_if_it_is_proved() -> None:
    made = prover("udp4", "udp6", "tcp4")
    ways = ["ip_send_skb by fentry", "cgroup_skb"]
    assert climb(made, FakeLoader(dict.fromkeys(ways, 1))) == ways
    assert made.active_paths == ("udp4", "udp6", "tcp4", "parts4", "parts6")
    assert made.served_paths == ["udp4", "udp6", "tcp4"]
    assert (set(made.unserved), len(made.hooks)) == ({"parts4", "parts6"}, 2)
    assert (made.paths["tcp4"].place, made.paths["tcp4"].verified) == ("cgroup symbol0", True)
    assert made.paths["tcp6"].place == ""


def with_parts(made: Prover, loader: FakeLoader) -> list[bool]:
    """Climb and serve datagrams in parts. Return what the hooks at functions were told."""
    told: list[bool] = []
    climb(made, loader)
    tried: list[str] = []
    made.serve_parts(cast(LoaderClient, loader), lambda _: None, tried.append, told.append)
    # systemd extends the time limit of the start at each attempt.
    assert set(tried) <= {"cgroup_skb"}
    assert len(tried) >= len([one for one in told if one])
    return told


@pytest.mark.usefixtures("problems")
def test_parts_are_read_at_egress_where_functions_serve() -> None:
    made = prover("udp4", "udp6", "tcp4")
    loader = FakeLoader({"ip_send_skb by fentry": 1, "tcp_sendmsg by kprobe": 1, "cgroup_skb": 1})
    assert with_parts(made, loader) == [True]
    assert made.active_paths == ("udp4", "udp6", "tcp4", "parts4", "parts6")
    assert [hook.paths for hook in made.hooks] == [("udp4", "udp6"), ("tcp4",), ("parts4", "parts6")]
    assert (made.paths["parts6"].place, made.paths["udp6"].place) == ("cgroup symbol0", "fentry symbol0")
    assert made.unproved == {}


def test_parts_that_are_not_proved_stay_with_the_function(problems: list[dict[str, str]]) -> None:
    problems += [{}, {"parts6": "the hook did not report the canary"}]
    made = prover("udp4", "udp6")
    loader = FakeLoader({"ip_send_skb by fentry": 1, "cgroup_skb": 1})
    assert with_parts(made, loader) == [True, False]
    assert [hook.closed for hook in loader.hooks] == [False, True]
    assert made.unserved == {
        "parts4": "cgroup symbol0: shared with a path that it does not serve",
        "parts6": "cgroup symbol0: the hook did not report the canary",
    }
    assert made.unproved == made.unserved


def test_the_hook_at_egress_is_tried_in_another_way(problems: list[dict[str, str]]) -> None:
    problems += [{}, {"parts4": "server is 0.0.0.0, not 127.0.0.1"}, {}]
    made = prover("udp4")
    loader = FakeLoader({"ip_send_skb by fentry": 1, "cgroup_skb": 2})
    assert with_parts(made, loader) == [True, False, True]
    assert [hook.closed for hook in loader.hooks] == [False, True, False]
    assert made.paths["parts4"].place == "cgroup symbol1"


@pytest.mark.usefixtures("problems")
def test_without_the_hook_at_egress_parts_are_not_read() -> None:
    made = prover("udp4")
    assert with_parts(made, FakeLoader({"ip_send_skb by kprobe": 1})) == []
    assert made.unserved == {"parts4": f"cgroup egress: {NO_KPROBES}"}
    assert made.served_paths == ["udp4"]


def test_the_hook_at_egress_reads_parts_itself(problems: list[dict[str, str]]) -> None:
    problems += [{}, {"parts6": "the hook reported one canary 2 times"}]
    made = prover("udp4", "udp6")
    loader = FakeLoader({"cgroup_skb": 1})
    assert with_parts(made, loader) == []
    assert len(loader.hooks) == 1
    assert made.paths["parts4"].place == "cgroup symbol0"
    assert made.unserved == {"parts6": "cgroup symbol0: the hook reported one canary 2 times"}
    problems.append({"parts4": "the hook did not report the canary"})
    assert made.verify() == {"parts4": "the hook did not report the canary"}
    assert made.unproved.keys() == {"parts4", "parts6"}


def test_the_hook_at_egress_of_one_family_does_not_serve_another(problems: list[dict[str, str]]) -> None:
    problems += [{"udp6": "the hook did not report the canary"}]
    made = prover("udp4", "udp6")
    loader = FakeLoader({"ip_send_skb by fentry": 1, "cgroup_skb": 1})
    loader.split = True
    with_parts(made, loader)
    assert (made.paths["udp4"].attach, made.paths["udp6"].attach) == ("fentry", "cgroup")
    assert made.paths["parts6"].place == "cgroup symbol0"
    assert made.paths["parts4"].tried == ["cgroup egress: it serves only udp6"]


@pytest.mark.usefixtures("problems")
def test_without_udp_there_are_no_parts() -> None:
    made = prover("tcp4")
    assert with_parts(made, FakeLoader({"tcp_sendmsg by fentry": 1})) == []
    assert made.active_paths == ("tcp4",)


@pytest.mark.usefixtures("problems")
def test_a_refused_rung_gives_way_to_the_next() -> None:
    made = prover("udp4", "udp6")
    log = "first line\nR1 is wrong\nprocessed 7 insns"
    assert climb(made, FakeLoader({"cgroup_skb": 1}, log)) == [
        "ip_send_skb by fentry",
        "ip_send_skb by kprobe",
        "udp_send_skb by fentry",
        "udp_send_skb by kprobe",
        "cgroup_skb",
    ]
    assert made.paths["udp6"].place == "cgroup symbol0"
    assert made.paths["udp6"].tried == [
        f"fentry ip6_send_skb: {NO_FENTRY} (R1 is wrong)",
        f"kprobe ip6_send_skb: {NO_KPROBES} (R1 is wrong)",
        f"fentry udp_v6_send_skb: {NO_FENTRY} (R1 is wrong)",
        f"kprobe udp_v6_send_skb: {NO_KPROBES} (R1 is wrong)",
    ]


@pytest.mark.usefixtures("problems")
def test_without_fentry_only_kprobes_are_tried_at_functions() -> None:
    made = prover("udp4", "tcp4")
    loader = FakeLoader({"udp_send_skb by fentry": 1, "udp_send_skb by kprobe": 1, "tcp_sendmsg by kprobe": 1})
    tried = climb(made, loader, fentry=False)
    assert tried == [
        "ip_send_skb by kprobe",
        "udp_send_skb by kprobe",
        "cgroup_skb",
        "tcp_sendmsg_locked by kprobe",
        "tcp_sendmsg by kprobe",
    ]
    assert made.paths["udp4"].place == "kprobe symbol0"


@pytest.mark.usefixtures("problems")
def test_a_hook_that_is_named_is_tried_in_all_its_ways() -> None:
    made = prover("udp4")
    assert climb(made, FakeLoader({"udp_send_skb by kprobe": 1}), hook="udp_send_skb") == [
        "udp_send_skb by fentry",
        "udp_send_skb by kprobe",
    ]


def test_a_hook_that_is_not_proved_is_closed_and_tried_in_another_way(problems: list[dict[str, str]]) -> None:
    problems += [{"udp4": "port is 1, not 2"}, {}]
    loader = FakeLoader({"udp_send_skb by kprobe": 2})
    made = prover("udp4", "udp6")
    climb(made, loader, hook="udp_send_skb")
    assert [hook.closed for hook in loader.hooks] == [True, False]
    assert made.paths["udp4"].tried[1:] == ["kprobe symbol0: port is 1, not 2"]
    assert made.paths["udp6"].tried[1:] == ["kprobe symbol0: shared with a path that it does not serve"]
    assert made.paths["udp4"].place == "kprobe symbol1"


@pytest.mark.usefixtures("problems")
def test_without_a_hook_for_udp_the_start_fails() -> None:
    made = prover("udp4", "tcp4")
    reasons = f"fentry ip_send_skb: {NO_FENTRY}; kprobe ip_send_skb: {NO_KPROBES}"
    with pytest.raises(UserError, match=rf"^no hook could be verified\. udp4: {reasons}$"):
        climb(made, FakeLoader({"tcp_sendmsg by fentry": 1}), hook="ip_send_skb")
    assert made.served_paths == ["tcp4"]


@pytest.mark.usefixtures("problems")
def test_without_a_hook_for_tcp_udp_is_served() -> None:
    made = prover("udp4", "tcp4")
    climb(made, FakeLoader({"ip_send_skb by fentry": 1}), tcp_hook="tcp_tracepoint")
    assert made.served_paths == ["udp4"]
    assert made.unserved["tcp4"] == f"tracepoint tcp_sendmsg_locked: {NO_KPROBES}"


def test_later_rounds_change_whether_a_path_is_verified(problems: list[dict[str, str]]) -> None:
    made = prover("udp4", "udp6")
    climb(made, FakeLoader({"ip_send_skb by fentry": 1}))
    problems.append({"udp6": "the hook did not report the canary"})
    assert made.verify() == {"udp6": "the hook did not report the canary"}
    assert [made.paths[path].verified for path in made.served_paths] == [True, False]
    assert made.unproved["udp6"] == "the hook did not report the canary"
    assert made.verify() == {}
    assert [made.paths[path].verified for path in made.served_paths] == [True, True]


def test_canaries_that_cannot_be_sent_are_sent_again(problems: list[dict[str, str]]) -> None:
    problems += [{"udp4": UNSENT}, {"udp4": UNSENT}, {}]
    loader = FakeLoader({"ip_send_skb by fentry": 1})
    made = prover("udp4", "udp6")
    climb(made, loader)
    assert [hook.closed for hook in loader.hooks] == [False], "it says nothing about the hook"
    assert made.unsent == frozenset()
    assert not problems
    problems += [{"udp4": UNSENT, "udp6": ""}] * 3
    assert made.verify() == {"udp4": UNSENT}
    assert made.unsent == {"udp4"}
    assert not problems


def test_a_sender_that_cannot_start_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = prover("udp4")
    made.paths["udp4"] = PathState("cgroup_skb", "cgroup", "egress", True)
    monkeypatch.setattr(canary_rounds, "Canaries", Mock(side_effect=OSError(errno.EAGAIN, "no process")))
    assert made.verify() == {"udp4": "the canary could not be sent: no process"}
    assert made.unsent == {"udp4"}
    assert not made.paths["udp4"].verified
    with pytest.raises(UserError, match="no process"):
        climb(made, FakeLoader({}))


@pytest.mark.usefixtures("problems")
def test_there_is_no_proof_after_an_interruption() -> None:
    made = prover("udp4")
    climb(made, FakeLoader({"ip_send_skb by fentry": 1}))
    made.interrupt()
    assert made.verify() == {}
    assert made.unproved.keys() == {"parts4"}, "what was known stays"
    with pytest.raises(UserError, match="interrupted"):
        climb(made, FakeLoader({"ip_send_skb by fentry": 1}))


@pytest.mark.usefixtures("problems")
def test_the_runs_that_a_detached_hook_missed_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHook, "missed_runs", lambda _: 7)
    made = prover("udp4", "tcp4")
    climb(made, FakeLoader({"ip_send_skb by fentry": 1, "tcp_sendmsg by fentry": 1}))
    assert made.missed_runs() == 14
    made.detach(made.hooks[:1])
    assert made.missed_runs() == 14
    assert made.served_paths == ["tcp4"]
    made.close()
    assert made.missed_runs() == 14


@pytest.mark.parametrize(("attach", "left"), [("cgroup", []), ("fentry", ["parts4"])])
@pytest.mark.usefixtures("problems")
def test_parts_lose_their_hook_with_the_one_at_egress_that_serves_the_rest(attach: str, left: list[str]) -> None:
    made = prover("udp4")
    rung = "cgroup_skb" if attach == "cgroup" else "ip_send_skb by fentry"
    with_parts(made, FakeLoader({rung: 1, "cgroup_skb": 1}))
    assert made.served_paths == ["udp4", "parts4"]
    made.detach([hook for hook in made.hooks if "udp4" in hook.paths])
    assert made.served_paths == left
