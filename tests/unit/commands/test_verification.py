"""The regular check of the hooks: what it logs, when it has other hooks tried, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import cast

import pytest

from dnsprobe.commands.hooks import describe_unproved
from dnsprobe.commands.verification import Verification
from dnsprobe.errors import UserError
from dnsprobe.kernel.probe import Probe
from dnsprobe.kernel.prover import PathState, Prover
from dnsprobe.sinks.journal import PATH_LOST_ID, PATH_PROVED_ID

NEVER = 1000.0


class FakeProver:
    """``problems`` are those of the next round; ``paths`` are the states."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self.paths = {path: PathState("cgroup_skb", "cgroup", "egress", True) for path in ("udp4", "udp6")}
        self.paths["tcp4"] = PathState(tried=["kprobe tcp_sendmsg: refused"])

    @property
    def served_paths(self) -> list[str]:
        return [path for path, state in self.paths.items() if state.rung]

    @property
    def unproved(self) -> dict[str, str]:
        return {path: state.reason for path, state in self.paths.items() if not state.verified}

    def verify(self) -> None:
        for path in self.served_paths:
            problem = self.problems.get(path, "")
            self.paths[path] = PathState("cgroup_skb", "cgroup", "egress", not problem, problem=problem)


class FakeAnswers:
    """``problem`` is that of answers4 in the next round."""

    def __init__(self) -> None:
        self.problem = ""
        self.paths = {"answers4": PathState("cgroup_skb", "cgroup", "ingress", True)}

    @property
    def of_answers(self) -> dict[str, PathState]:
        return self.paths

    @property
    def unproved(self) -> dict[str, str]:
        return {path: state.reason for path, state in self.paths.items() if not state.verified}

    def verify(self) -> None:
        self.paths = {"answers4": PathState("cgroup_skb", "cgroup", "ingress", not self.problem, problem=self.problem)}


class FakeProbe:
    def __init__(self, recover: Callable[[FakeProver], None] = lambda _: None) -> None:
        self.prover = FakeProver()
        self.answers = FakeAnswers()
        self._recover = recover
        self.recoveries = 0
        self.interrupted = threading.Event()

    def recover(self, _log: Callable[[str], None]) -> None:
        self.recoveries += 1
        self._recover(self.prover)

    def interrupt(self) -> None:
        self.interrupted.set()


def verify(probe: FakeProbe) -> int:
    """Verify once. Return how often the status changed."""
    changes: list[None] = []
    verification = Verification(cast(Probe, probe), NEVER, lambda: changes.append(None))
    asyncio.run(verification._verify())
    return len(changes)


def prove_all(prover: FakeProver) -> None:
    prover.paths = {path: PathState("ip_send_skb", "fentry", "symbol", True) for path in prover.paths}


def test_a_path_that_is_not_proved_is_tried_at_each_interval_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    probe = FakeProbe()
    caplog.set_level(logging.INFO)
    assert [verify(probe), verify(probe), probe.recoveries] == [0, 0, 2]
    assert caplog.records == []
    probe = FakeProbe(prove_all)
    assert verify(probe) == 1
    assert caplog.records[0].getMessage() == "tcp4 is proved again, at fentry symbol"
    assert caplog.records[0].message_id == PATH_PROVED_ID  # type: ignore[attr-defined]
    verify(probe)
    assert probe.recoveries == 1, "all paths are proved"


def test_a_path_that_fails_is_logged_and_recovers_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    probe = FakeProbe(prove_all)
    probe.prover.problems = {"udp6": "the hook did not report the canary"}
    assert verify(probe) == 2, "the status shows both"
    first, *rest = caplog.records
    assert first.getMessage() == "udp6 is not proved any more: the hook did not report the canary"
    assert first.message_id == PATH_LOST_ID  # type: ignore[attr-defined]
    assert [record.getMessage() for record in rest[:2]] == [
        "tcp4 is proved again, at fentry symbol",
        "udp6 is proved again, at fentry symbol",
    ]


def test_a_path_of_answers_is_logged_as_the_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    probe = FakeProbe()
    probe.prover.paths["tcp4"] = PathState("cgroup_skb", "cgroup", "egress_stream", True)
    probe.answers.problem = "answered: the hook did not report the result"
    assert [verify(probe), probe.recoveries] == [1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"answers4 is not proved any more: {probe.answers.problem}",
        f"no other hook could be verified for answers4: {probe.answers.problem}",
    ]
    caplog.clear()
    probe.answers.problem = ""
    assert verify(probe) == 1
    assert caplog.records[0].getMessage() == "answers4 is proved again, at cgroup ingress"
    assert caplog.records[1].getMessage().endswith("answers4 at cgroup ingress")


def test_the_daemon_goes_on_if_no_hook_can_be_tried(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: FakeProver) -> None:
        raise UserError("the loader process died")

    probe = FakeProbe(refuse)
    probe.prover.problems = {"udp4": "gone"}
    assert verify(probe) == 1
    assert "no other hook was tried: the loader process died" in caplog.text
    caplog.clear()
    assert verify(probe) == 0
    assert caplog.text == "", "the log has it once"


def test_a_stop_interrupts_the_work_and_waits_for_its_end() -> None:
    ended: list[bool] = []

    async def run() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait(_: FakeProver) -> None:
            loop.call_soon_threadsafe(begun.set)
            probe.interrupted.wait()
            ended.append(True)

        probe = FakeProbe(wait)
        verification = Verification(cast(Probe, probe), 0, lambda: None)
        task = verification.start()
        await begun.wait()
        await verification.stop()
        assert ended == [True]
        with pytest.raises(asyncio.CancelledError):
            await task
        assert probe.recoveries == 1

    asyncio.run(run())


def test_the_reason_names_each_path_that_is_not_proved() -> None:
    prover = FakeProver()
    prover.problems = {"udp6": "the hook did not report the canary"}
    prover.verify()
    assert describe_unproved(cast(Prover, prover)) == (
        "udp6: the hook did not report the canary | tcp4: kprobe tcp_sendmsg: refused"
    )
