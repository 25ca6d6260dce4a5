"""The output of doctor on a terminal and in a pipe."""

from __future__ import annotations

import json
import socket
import sys
from types import SimpleNamespace
from typing import cast

import pytest
from made_up_stream import Stream, set_terminal

from dnsprobe import privileges
from dnsprobe.commands import doctor
from dnsprobe.commands.hooks import describe_unseen
from dnsprobe.config.main import default
from dnsprobe.errors import UserError
from dnsprobe.kernel.prover import PathState, Prover
from dnsprobe.privileges import Capability


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_terminal(monkeypatch)


def test_a_long_detail_is_wrapped_below_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(*, terminal: bool) -> str:
        stream = Stream(terminal=terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        doctor._print_line(False, "check", "word " * 20 + "\x1b[2J")
        stream.flush()
        text = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert "\x1b[2J" not in text
        assert text.endswith("\\x1b[2J\n")
        return str(text)

    monkeypatch.setenv("NO_COLOR", "1")
    first, second = printed(terminal=True).splitlines()
    assert first == "NO  check          " + "word " * 11 + "word"
    assert second.startswith(" " * 19 + "word")
    assert len(printed(terminal=False).splitlines()) == 1
    monkeypatch.delenv("NO_COLOR")
    assert printed(terminal=True).startswith("\x1b[31mNO\x1b[0m  check")


def test_a_path_says_how_it_is_attached_and_what_it_does_not_see(capsys: pytest.CaptureFixture[str]) -> None:
    state = PathState("cgroup_skb", "cgroup", "egress", True, ["fentry ip_send_skb: no"])
    doctor._print_path("udp4", state, present=True, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "ok  udp4           cgroup_skb (cgroup egress), proved",
        "      does not see what the firewall of this host drops, and packet sockets",
        "      not fentry ip_send_skb: no",
    ]
    doctor._print_path("udp4", state, present=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "path": "udp4",
        "present": True,
        "hook": "cgroup_skb",
        "attach": "cgroup",
        "symbol": "egress",
        "unseen": "what the firewall of this host drops, and packet sockets",
        "proved": True,
        "tried": ["fentry ip_send_skb: no"],
    }


def test_the_log_has_what_the_hooks_do_not_see() -> None:
    paths = {
        "udp4": PathState("udp_send_skb", "kprobe", "udp_send_skb.isra.51", True),
        "udp6": PathState("udp_send_skb", "fentry", "udp_v6_send_skb", True),
        "tcp4": PathState("tcp_sendmsg", "fentry", "tcp_sendmsg", True),
    }
    prover = cast(Prover, SimpleNamespace(paths=paths, served_paths=list(paths)))
    assert describe_unseen(prover) == (
        "udp4 and udp6 do not see raw sockets and packet sockets; tcp4 does not see "
        "Multipath TCP, urgent octets, and what a program changes after its write"
    )


@pytest.mark.parametrize(
    ("problems", "good", "detail"),
    [
        ({"a": "", "b": ""}, True, "available"),
        ({"a": "", "b": "BTF has no function b"}, None, "for a; not for all: BTF has no function b"),
        ({"a": "not supported", "b": "not supported"}, None, "not available: not supported"),
    ],
)
def test_fentry_is_examined_for_each_function(
    problems: dict[str, str], good: bool | None, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "function_problems", lambda: problems)
    assert doctor._fentry() == doctor.Finding("fentry", good, detail)


def test_missing_capabilities_come_with_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {Capability.CAP_BPF, Capability.CAP_PERFMON}
    monkeypatch.setattr(privileges, "held", lambda: frozenset(held))
    monkeypatch.setattr(doctor, "kprobes_available", lambda: True)
    monkeypatch.setattr(doctor, "_perf_event_paranoid", lambda: 3)
    assert doctor._capabilities() == doctor.Finding(
        "capabilities",
        True,
        "CAP_PERFMON, CAP_BPF; without CAP_NET_ADMIN, the kernel may refuse the hook cgroup_skb; without "
        "CAP_SYS_PTRACE, not all of /proc is readable; without CAP_SYS_ADMIN, there are no kprobes "
        "(kernel.perf_event_paranoid is 3)",
    )
    held |= {Capability.CAP_NET_ADMIN, Capability.CAP_SYS_PTRACE}
    monkeypatch.setattr(doctor, "_perf_event_paranoid", lambda: 2)
    assert doctor._capabilities().detail == "CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF"


def test_a_container_does_not_show_the_root_of_the_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise UserError("the root is not visible")

    monkeypatch.setattr(doctor, "open_root", fail)
    findings = {finding.check: finding for finding in doctor._findings(default())}
    assert findings["control groups"] == doctor.Finding("control groups", None, "the root is not visible")


def test_who_has_the_address_of_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_uid_of_service", lambda: 61184)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        where = f"127.0.0.1:{port}"
        assert doctor._address(host, port).good is True
        for uid, good in ((61184, True), (0, True), (61185, False)):
            monkeypatch.setattr(doctor, "uid_of_listener", lambda *_, uid=uid: uid)
            assert doctor._address(host, port).good is good
        assert doctor._address(host, port).detail.endswith(
            f"listens on {where}, not dnsprobe: metrics from there may be forged"
        )
    monkeypatch.undo()
    assert doctor._address(host, port) == doctor.Finding("address", None, f"nobody listens on {where}")
    assert doctor._address("127.0.0.1", 0).good is None
