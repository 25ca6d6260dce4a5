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


@pytest.mark.parametrize(
    ("rung", "preemptible", "macros"),
    [
        (("ip_send_skb", "kprobe"), False, ("HOOK_IP_SEND_SKB",)),
        (("ip_send_skb", "fentry"), False, ("HOOK_IP_SEND_SKB", "ATTACH_FENTRY")),
        (("cgroup_skb", "cgroup"), True, ("HOOK_EGRESS",)),
        (("tcp_sendmsg", "kprobe"), True, ("STREAM_FUNCTION",)),
        (("tcp_sendmsg", "fentry"), True, ("STREAM_FUNCTION", "ATTACH_FENTRY")),
        (("tcp_tracepoint", "tracepoint"), False, ("STREAM_TRACEPOINT",)),
        (("tcp_tracepoint", "tracepoint"), True, ("STREAM_TRACEPOINT", "STREAM_TWICE")),
    ],
)
@pytest.mark.usefixtures("runs")
def test_a_rung_is_compiled_with_its_macros(rung: tuple[str, str], preemptible: bool, macros: tuple[str, ...]) -> None:
    compiler = made(preemptible=preemptible)
    assert compiler.compile_rung(RUNGS[rung]).macros == macros
    assert compiler.compile_rung(RUNGS[rung], (family_macro("6"),)).macros == (*macros, family_macro("6"))


def test_a_rung_is_compiled_once_whatever_was_compiled_between(runs: list[list[str]]) -> None:
    compiler = made()
    egress = compiler.compile_rung(EGRESS, ("CAST_TO_KERNEL=7",))
    for attach in (Attach.FENTRY, Attach.KPROBE):
        assert compiler.compile_rung(RUNGS["ip_send_skb", attach]) is compiler.latest
    assert compiler.compile_rung(EGRESS, ("CAST_TO_KERNEL=7",)) is egress
    assert len(runs) == 3
    assert compiler.compile_rung(EGRESS) is not egress
    assert len(runs) == 4


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
