"""Which macros a rung is compiled with, and when the compiler runs: with a compiler that records its flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dnsprobe.errors import UserError
from dnsprobe.hook_names import Attach
from dnsprobe.kernel import compiler as compiler_module
from dnsprobe.kernel.compiler import Compiler
from dnsprobe.kernel.hooks import EGRESS, RUNGS, family_macro
from dnsprobe.kernel.layout import Layout
from dnsprobe.kernel.program import Program
from dnsprobe.kernel.program_cache import ProgramCache

PROGRAM = Program(bytes(8), (), ())


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the flags of each run of the compiler."""
    runs: list[list[str]] = []

    def run(flags: Sequence[str]) -> dict[str, Program]:
        runs.append(list(flags))
        return {"program": PROGRAM}

    monkeypatch.setattr(compiler_module, "_find_bcc", lambda: [b"bcc"])
    monkeypatch.setattr(compiler_module, "_run_compiler", run)
    return runs


def made(cache: str = "", *, tcp_problem: str = "", preemptible: bool = False) -> Compiler:
    layout = Layout({"SKB_HEAD": 200}, tcp_problem, "", preemptible, {})
    return Compiler(layout, [53, 5353], [853], ["SETTINGS", "COUNTS"], ProgramCache(cache))


FENTRY = ("ip_send_skb", "fentry")


@pytest.mark.parametrize(
    ("tcp_problem", "preemptible", "rung", "streams", "macros"),
    [
        ("", False, ("ip_send_skb", "kprobe"), "kprobe", ("HOOK_IP_SEND_SKB", "HOOK_EGRESS", "STREAM_FUNCTION")),
        ("", False, ("ip_send_skb", "kprobe"), "fentry", ("HOOK_IP_SEND_SKB", "HOOK_EGRESS", "STREAM_FUNCTION")),
        (
            "",
            False,
            ("ip_send_skb", "fentry"),
            "fentry",
            ("HOOK_IP_SEND_SKB", "ATTACH_FENTRY", "HOOK_EGRESS", "STREAM_FUNCTION"),
        ),
        ("", False, ("cgroup_skb", "cgroup"), "fentry", ("HOOK_EGRESS", "ATTACH_FENTRY", "STREAM_FUNCTION")),
        ("", False, ("cgroup_skb", "cgroup"), "kprobe", ("HOOK_EGRESS", "STREAM_FUNCTION")),
        ("", False, ("cgroup_skb", "cgroup"), "tracepoint", ("HOOK_EGRESS", "STREAM_TRACEPOINT")),
        ("", True, ("cgroup_skb", "cgroup"), "tracepoint", ("HOOK_EGRESS", "STREAM_TRACEPOINT", "STREAM_TWICE")),
        ("no tcp_sock.snd_una", False, ("ip_send_skb", "kprobe"), "kprobe", ("HOOK_IP_SEND_SKB", "HOOK_EGRESS")),
        (
            "no tcp_sock.snd_una",
            False,
            ("ip_send_skb", "fentry"),
            "fentry",
            ("HOOK_IP_SEND_SKB", "ATTACH_FENTRY", "HOOK_EGRESS"),
        ),
    ],
)
@pytest.mark.usefixtures("runs")
def test_a_udp_rung_comes_with_the_program_for_tcp(
    tcp_problem: str, preemptible: bool, rung: tuple[str, str], streams: Attach, macros: tuple[str, ...]
) -> None:
    compiler = made(tcp_problem=tcp_problem, preemptible=preemptible)
    assert compiler.compile_rung(RUNGS[rung], streams=streams).macros == macros


def test_a_tcp_rung_uses_what_is_compiled_already(runs: list[list[str]]) -> None:
    compiler = made()
    kprobe, fentry = Attach.KPROBE, Attach.FENTRY
    udp = compiler.compile_rung(RUNGS["udp_send_skb", kprobe], ("PORT_IN_FLOW=1",), streams=kprobe)
    assert compiler.compile_rung(RUNGS["tcp_sendmsg", kprobe], streams=kprobe) is udp
    assert len(runs) == 1
    # Programs for fentry find the arguments in another place.
    macros = compiler.compile_rung(RUNGS["tcp_sendmsg", fentry], streams=fentry).macros
    assert macros == ("ATTACH_FENTRY", "STREAM_FUNCTION")
    tracepoint = compiler.compile_rung(RUNGS["tcp_tracepoint", "tracepoint"], streams=kprobe)
    assert tracepoint.macros == ("STREAM_TRACEPOINT",)
    assert compiler.latest.macros == ("STREAM_TRACEPOINT",)


def test_the_program_at_egress_comes_with_those_at_functions(runs: list[list[str]]) -> None:
    compiler = made()
    udp = compiler.compile_rung(RUNGS["ip_send_skb", "fentry"], streams=Attach.FENTRY)
    assert compiler.compile_rung(EGRESS, streams=Attach.FENTRY) is udp
    assert len(runs) == 1
    restricted = compiler.compile_rung(EGRESS, (family_macro("6"),), streams=Attach.FENTRY)
    assert restricted is not udp
    assert compiler.compile_rung(EGRESS, streams=Attach.FENTRY) is udp


def test_programs_for_fentry_do_not_serve_a_kprobe(runs: list[list[str]]) -> None:
    compiler = made()
    fentry = compiler.compile_rung(RUNGS["ip_send_skb", "fentry"], streams=Attach.FENTRY)
    assert compiler.compile_rung(RUNGS["ip_send_skb", "kprobe"], streams=Attach.KPROBE) is not fentry
    assert len(runs) == 2


def test_another_way_to_read_at_egress_is_compiled_again(runs: list[list[str]]) -> None:
    compiler = made()
    first = compiler.compile_rung(RUNGS["ip_send_skb", "fentry"], ("CAST_TO_KERNEL=7",), streams=Attach.FENTRY)
    assert compiler.compile_rung(EGRESS, ("CAST_TO_KERNEL=7",), streams=Attach.FENTRY) is first
    assert compiler.compile_rung(EGRESS, streams=Attach.FENTRY) is not first
    assert len(runs) == 2


def test_tcp_takes_its_programs_from_the_compilation_for_egress(runs: list[list[str]]) -> None:
    compiler = made()
    first = compiler.compile_rung(EGRESS, ("CAST_TO_KERNEL=7",), streams=Attach.TRACEPOINT)
    tracepoint = RUNGS["tcp_tracepoint", "tracepoint"]
    assert compiler.compile_rung(tracepoint, streams=Attach.TRACEPOINT) is first


@pytest.mark.usefixtures("runs")
def test_the_program_at_egress_of_one_family_does_not_serve_both() -> None:
    compiler = made()
    restricted = compiler.compile_rung(EGRESS, (family_macro("6"),), streams=Attach.KPROBE)
    assert compiler.compile_rung(EGRESS, streams=Attach.KPROBE) is not restricted


def test_the_compiler_gets_ports_maps_and_layout(runs: list[list[str]]) -> None:
    made().compile(("HOOK_IP_SEND_SKB",))
    (flags,) = runs
    assert {
        "-DWATCHED_PORT(port)=((port)==53||(port)==5353||(port)==CANARY_PORT)",
        "-DENCRYPTED_PORT(port)=((port)==853)",
        "-DMAP_SETTINGS=0",
        "-DMAP_COUNTS=1",
        "-DSKB_HEAD=200",
        "-DHOOK_IP_SEND_SKB",
    } <= set(flags)


def test_cached_programs_need_no_compiler(runs: list[list[str]], tmp_path: Path) -> None:
    first = made(str(tmp_path)).compile(("HOOK_IP_SEND_SKB",))
    assert made(str(tmp_path)).compile(("HOOK_IP_SEND_SKB",)) == first
    assert len(runs) == 1
    made(str(tmp_path)).compile(("HOOK_IP_SEND_SKB", "STREAM_FUNCTION"))
    assert len(runs) == 2


def test_a_failure_of_the_compiler_names_the_macros(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_flags: Sequence[str]) -> dict[str, Program]:
        raise RuntimeError("Failed to compile")

    monkeypatch.setattr(compiler_module, "_find_bcc", list)
    monkeypatch.setattr(compiler_module, "_run_compiler", fail)
    expected = "the BPF programs do not compile with the macros A B: Failed to compile"
    with pytest.raises(UserError, match=f"^{expected}$"):
        made().compile(("A", "B"))
