"""Compiled programs: the marks in their instructions."""

from __future__ import annotations

import struct

from dnsprobe.kernel.program import CANARY_MARK, Program

_LITTLE = struct.pack("=H", 1)[0] == 1


def instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    registers = source << 4 | destination if _LITTLE else destination << 4 | source
    return struct.pack("=BBhi", code, registers, offset, value)


def load(source: int, value: int, destination: int = 1) -> bytes:
    return instruction(0x18, destination, source, 0, value) + instruction(0)


OTHER = instruction(0xB7, 1, 0, 0, 9)
COMPILED = OTHER + load(1, 0) + load(CANARY_MARK, 0, 7) + load(0, 5) + load(1, 2, 3) + instruction(0x95)


def test_only_marks_are_replaced() -> None:
    bound = Program.of(COMPILED).bound([11, 12, 13], 4242)
    assert bound == OTHER + load(1, 11) + load(0, 4242, 7) + load(0, 5) + load(1, 13, 3) + instruction(0x95)


def test_json_keeps_a_program() -> None:
    program = Program.of(COMPILED)
    assert Program.from_json(program.to_json()) == program


def test_a_call_of_a_kernel_function_is_told_from_that_of_a_helper() -> None:
    helper, function = instruction(0x85, 0, 0, 0, 113), instruction(0x85, 0, 0, 0, 63537)
    bound = Program.of(helper + function).bound([], 0)
    assert bound == helper + instruction(0x85, 0, 2, 0, 63537)
