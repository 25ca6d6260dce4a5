"""Compiled BPF programs, whose maps and canary port are filled in when they are loaded.

A program compiles to the same instructions at each start, except for the descriptors of the maps and the port of the
canaries. The BPF sources put marks in their place (``MAP`` and ``CANARY_PORT``), which :meth:`Program.bound` replaces.
So a compiled program can be cached.
"""

from __future__ import annotations

import base64
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: ``struct bpf_insn`` of include/uapi/linux/bpf.h: opcode, both registers in an octet, offset, immediate value.
INSTRUCTION = struct.Struct("=BBhi")
#: BPF_LD | BPF_DW | BPF_IMM: loads 64 bits and takes two instructions. Its source register gives the kind of the value.
_LOAD_64 = 0x18
#: ``return 0``: BPF_ALU64 | BPF_MOV | BPF_K with register 0, then BPF_JMP | BPF_EXIT.
EMPTY_PROGRAM = INSTRUCTION.pack(0xB7, 0, 0, 0) + INSTRUCTION.pack(0x95, 0, 0, 0)
#: BPF_PSEUDO_MAP_FD: the value is a map. The kernel expects its descriptor; the compiler puts its number there.
_MAP = 1
#: BPF_JMP | BPF_CALL: calls a helper, or a kernel function if the source register is BPF_PSEUDO_KFUNC_CALL.
_CALL, _KERNEL_FUNCTION = 0x85, 2
#: The numbers of helpers are below this, the BTF ids of kernel functions above.
_HELPERS = 1000
#: The value is the port of the canaries. The kernel does not know this kind, so it refuses a mark that was overlooked.
CANARY_MARK = 9


def _source(registers: int) -> int:
    return registers >> 4 if sys.byteorder == "little" else registers & 15


def _with_source(registers: int, source: int) -> int:
    return registers & 15 | source << 4 if sys.byteorder == "little" else registers & 0xF0 | source


@dataclass(frozen=True, slots=True)
class Program:
    """The instructions of a program, and the positions of the marks in it, counted in instructions from 0."""

    instructions: bytes
    maps: tuple[int, ...]
    ports: tuple[int, ...]

    @classmethod
    def of(cls, instructions: bytes) -> Program:
        """Find the marks in the instructions that the compiler emitted, and return the program.

        A call of a function in the BPF source whose address is a BTF id becomes a call of that kernel function.
        """
        marks: dict[int, list[int]] = {_MAP: [], CANARY_MARK: []}
        complete = bytearray(instructions)
        for at, (opcode, registers, offset, value) in enumerate(INSTRUCTION.iter_unpack(instructions)):
            if opcode == _LOAD_64 and _source(registers) in marks:
                marks[_source(registers)].append(at)
            elif opcode == _CALL and value >= _HELPERS:
                call = _with_source(registers, _KERNEL_FUNCTION)
                INSTRUCTION.pack_into(complete, at * INSTRUCTION.size, opcode, call, offset, value)
        return cls(bytes(complete), tuple(marks[_MAP]), tuple(marks[CANARY_MARK]))

    def bound(self, maps: Sequence[int], canary_port: int) -> bytes:
        """Return the instructions for the kernel. ``maps`` has the descriptor of each map at the map's number."""
        bound = bytearray(self.instructions)
        for at in self.maps:
            opcode, registers, offset, number = INSTRUCTION.unpack_from(bound, at * INSTRUCTION.size)
            INSTRUCTION.pack_into(bound, at * INSTRUCTION.size, opcode, registers, offset, maps[number])
        for at in self.ports:
            opcode, registers, offset, _number = INSTRUCTION.unpack_from(bound, at * INSTRUCTION.size)
            constant = _with_source(registers, 0)
            INSTRUCTION.pack_into(bound, at * INSTRUCTION.size, opcode, constant, offset, canary_port)
        return bytes(bound)

    def to_json(self) -> list[Any]:
        """Return a value that JSON can represent."""
        return [base64.b64encode(self.instructions).decode(), list(self.maps), list(self.ports)]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Program:
        """Return the program that :meth:`to_json` was called on."""
        instructions, maps, ports = value
        return cls(base64.b64decode(instructions), tuple(maps), tuple(ports))
