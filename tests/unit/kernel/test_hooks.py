"""The ladders, and the ways to attach a rung to the symbols of a kernel, in their order."""

from __future__ import annotations

import os

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel import libbpf
from dnsprobe.kernel.hooks import (
    CORK_MACRO,
    EGRESS,
    FUNCTIONS,
    PARTS,
    PATHS,
    RUNGS,
    TCP_LADDER,
    UDP_LADDER,
    Hook,
    attempts,
    whole_path,
)
from dnsprobe.kernel.kallsyms import Symbol


def symbols(*names: str) -> list[Symbol]:
    return [Symbol(name, 0x1000 + index) for index, name in enumerate(names)]


def ways(rung: str, *names: str) -> list[tuple[list[str], tuple[str, ...]]]:
    return [
        ([symbol.name for symbol in attempt.symbols], attempt.macros)
        for attempt in attempts(RUNGS[rung, "kprobe"], symbols(*names), "udp_send_skb")
    ]


FLOW = ("PORT_ARGUMENT=PT_REGS_PARM2", "PORT_IN_FLOW=1")


def test_every_rung_serves_every_path() -> None:
    for protocol, ladder in (("udp", UDP_LADDER), ("tcp", TCP_LADDER)):
        for rung in ladder:
            served = {path for path in rung.functions if path not in PARTS}
            expected = {path for path in PATHS if path.startswith(protocol)}
            assert expected <= served if rung is EGRESS else expected == served
    assert set(EGRESS.functions) == {*PATHS, *PARTS}
    assert EGRESS.functions["tcp4"] != EGRESS.functions["udp4"]
    assert [whole_path(path) for path in (*PATHS, *PARTS)] == [*PATHS, "udp4", "udp6"]


def test_both_ways_to_attach_to_a_function_have_the_same_programs() -> None:
    assert {"ip_send_skb", "udp_v6_send_skb", "tcp_sendmsg_locked", "tcp_sendmsg"} < FUNCTIONS
    for (name, attach), rung in RUNGS.items():
        if attach == "fentry":
            other = RUNGS[name, "kprobe"]
            assert (rung.functions, rung.macro) == (other.functions, other.macro)
            assert [rung.program(function) for function in rung.functions.values()] == [
                other.program(function) for function in other.functions.values()
            ]


def test_messages_say_how_a_hook_is_attached() -> None:
    assert [RUNGS[key].place("symbol") for key in (("ip_send_skb", "fentry"), ("tcp_tracepoint", "tracepoint"))] == [
        "fentry symbol",
        "tracepoint symbol",
    ]
    assert RUNGS["cgroup_skb", "cgroup"].place("egress") == "cgroup egress"
    assert RUNGS["cgroup_skb", "cgroup"].program("egress") == "egress_entry"


def test_runs_are_missed_only_if_all_programs_for_tcp_miss_them(monkeypatch: pytest.MonkeyPatch) -> None:
    missed = {1: 5, 2: 3}
    runs = libbpf.ProgramRuns
    monkeypatch.setattr(libbpf, "program_runs", lambda program: runs(0, 0, missed[program], 0))
    assert Hook("tcp_tracepoint", "tracepoint", ("tcp4",), "", [1, 2], []).missed_runs() == 3
    assert Hook("ip_send_skb", "fentry", ("udp4",), "", [1, 2], []).missed_runs() == 8
    assert Hook("ip_send_skb", "fentry", ("udp4",), "", [], []).missed_runs() == 0


def test_a_hook_is_detached_before_the_programs_that_it_calls_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(os, "close", closed.append)
    calls, program, first, second = 3, 4, 5, 6
    Hook("udp_send_skb", "kprobe", ("udp4",), "", [program], [calls, first, second]).close()
    assert closed == [second, first, calls, program]


def test_a_global_function_has_one_way() -> None:
    assert ways("ip_send_skb", "udp_send_skb") == [(["udp_send_skb"], ())]


def test_a_function_under_its_own_name_has_the_arguments_of_the_source() -> None:
    assert ways("udp_send_skb", "udp_send_skb") == [(["udp_send_skb"], (*FLOW, CORK_MACRO))]


def test_a_clone_may_have_other_arguments() -> None:
    found = ways("udp_send_skb", "udp_send_skb.isra.51")
    assert found[0] == (["udp_send_skb.isra.51"], FLOW)
    assert (["udp_send_skb.isra.51"], ("PORT_ARGUMENT=PT_REGS_PARM3", "PORT_IN_FLOW=0")) in found
    assert len(found) == len({(tuple(names), defines) for names, defines in found})


def test_clones_are_attached_together_and_parts_in_their_place() -> None:
    found = ways("udp_send_skb", "udp_send_skb.constprop.0", "udp_send_skb.isra.1", "udp_send_skb.part.2")
    whole, parts = ["udp_send_skb.constprop.0", "udp_send_skb.isra.1"], ["udp_send_skb.part.2"]
    assert [names for names, _ in found] == [whole] * (len(found) // 2) + [parts] * (len(found) // 2)


def test_without_a_symbol_there_is_no_way() -> None:
    with pytest.raises(UserError, match="has neither udp_send_skb nor a variant"):
        ways("udp_send_skb")
