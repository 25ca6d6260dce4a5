"""scripts/bpf_instructions.py prints every program that the loader can load."""

from __future__ import annotations

import re
from pathlib import Path

import bpf_instructions
import pytest

from dnsprobe.hook_names import Attach
from dnsprobe.kernel.hooks import (
    ATTACH_FENTRY,
    CAST_TO_KERNEL_MACRO,
    EGRESS,
    RUNGS,
    STREAM_TRACEPOINT,
    STREAM_TWICE,
    Rung,
    attempts,
    family_macro,
)
from dnsprobe.kernel.kallsyms import Symbol

SOURCE = Path(__file__).parents[2] / "bpf/dnsprobe.bpf.c"
DIRECT_LOADS = f"{CAST_TO_KERNEL_MACRO}=117"
PRINTED = [set(macros) for macros in bpf_instructions.compilations(117)]


def test_each_part_of_the_sources_is_compiled() -> None:
    parts = set(re.findall(r"^#ifdef ([A-Z_]+)$", SOURCE.read_text("utf-8"), re.MULTILINE))
    assert {EGRESS.macro, STREAM_TWICE} <= parts
    # --answers adds this one to all.
    assert parts - {"ANSWERS"} <= set().union(*PRINTED)


@pytest.mark.parametrize("rung", [rung for rung in RUNGS.values() if rung.attach == Attach.FENTRY], ids=str)
def test_each_function_is_printed_by_fentry(rung: Rung) -> None:
    assert {rung.macro, ATTACH_FENTRY} in PRINTED


@pytest.mark.parametrize("suffix", ["", ".isra.51"])
@pytest.mark.parametrize("rung", [rung for rung in RUNGS.values() if rung.attach == Attach.KPROBE], ids=str)
def test_each_attempt_at_a_kprobe_is_printed(rung: Rung, suffix: str) -> None:
    for function in rung.functions.values():
        for attempt in attempts(rung, [Symbol(function + suffix, 0)], function):
            assert {rung.macro, *attempt.macros} in PRINTED


@pytest.mark.parametrize("family", [(), (family_macro("4"),), (family_macro("6"),)])
def test_what_sees_both_families_is_printed_for_each(family: tuple[str, ...]) -> None:
    assert {EGRESS.macro, *family} in PRINTED
    assert {EGRESS.macro, DIRECT_LOADS, *family} in PRINTED
    assert {STREAM_TRACEPOINT, STREAM_TWICE, *family} in PRINTED


def test_a_kernel_without_direct_loads_has_none_printed() -> None:
    assert [set(macros) for macros in bpf_instructions.compilations(None)] == [
        macros for macros in PRINTED if DIRECT_LOADS not in macros
    ]
