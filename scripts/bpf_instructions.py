"""Print the instructions that the compiler emits for each BPF program, for all combinations of macros in use.

Usage, as root: .venv/bin/python scripts/bpf_instructions.py [--full] [--btf FILE]

Each line has the macros of the compilation, the program, its number of instructions and their digest. ``--full`` prints
each instruction as well. Two source trees with the same output load the same programs: compare them with diff(1). The
offsets of kernel structs come from the BTF, so both outputs have to be of the same BTF.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from dnsprobe.hook_names import Attach, UdpHook
from dnsprobe.kernel.compiler import Compiler
from dnsprobe.kernel.hooks import (
    ATTACH_FENTRY,
    PORT_SOURCES,
    STREAM_FUNCTION,
    STREAM_TRACEPOINT,
    STREAM_TWICE,
    UDP_LADDER,
    family_macro,
    port_macros,
)
from dnsprobe.kernel.layout import read_layout
from dnsprobe.kernel.loader import SELF_CALLS
from dnsprobe.kernel.maps import Maps, Sizes
from dnsprobe.kernel.program import INSTRUCTION
from dnsprobe.kernel.program_cache import ProgramCache, digest


def _compilations() -> Iterator[tuple[str, ...]]:
    for rung in UDP_LADDER:
        if rung.attach in {Attach.CGROUP, Attach.TRACEPOINT}:
            for versions in ("4", "6", "46"):
                yield rung.macro, family_macro(versions), STREAM_TRACEPOINT
            yield rung.macro, STREAM_TRACEPOINT, STREAM_TWICE
        elif rung.attach == Attach.FENTRY:
            yield rung.macro, ATTACH_FENTRY, STREAM_FUNCTION
        elif rung.name == UdpHook.UDP_SEND_SKB:
            for register, in_flow in PORT_SOURCES:
                yield rung.macro, *port_macros(register, in_flow=in_flow), STREAM_FUNCTION
        else:
            yield rung.macro, STREAM_FUNCTION
            yield (rung.macro,)


def main() -> None:
    """Compile everything and print it."""
    parser = argparse.ArgumentParser(description="Print the instructions of each BPF program.")
    parser.add_argument("--full", action="store_true", help="print each instruction")
    parser.add_argument("--btf", default="/sys/kernel/btf/vmlinux", metavar="FILE", help="BTF of the kernel")
    arguments = parser.parse_args()
    maps = Maps(Sizes(ring=4096, processes=1, counters=1, names=1, recent=1))
    no_cache = ProgramCache("")
    layout = read_layout(arguments.btf, no_cache)
    compiler = Compiler(layout, [53], [853], [*maps.descriptors, SELF_CALLS], no_cache)
    for macros in _compilations():
        for name, program in sorted(compiler.compile(macros).programs.items()):
            code = program.instructions
            print(" ".join(macros), name, len(code) // INSTRUCTION.size, digest(code))
            if arguments.full:
                for at, (opcode, registers, offset, value) in enumerate(INSTRUCTION.iter_unpack(code)):
                    print(f"  {at:5} {opcode:02x} {registers:02x} {offset:6} {value}")


if __name__ == "__main__":
    main()
