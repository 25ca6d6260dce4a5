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
    CAST_TO_KERNEL,
    CAST_TO_KERNEL_MACRO,
    CORK_MACRO,
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

#: A hook that sees both versions of IP serves both, or one if another hook serves the other.
_FAMILIES: tuple[tuple[str, ...], ...] = ((), (family_macro("4"),), (family_macro("6"),))


def compilations(cast: int | None) -> Iterator[tuple[str, ...]]:
    """Yield the macros that change a program, once for each variant that the loader can load.

    ``cast`` is the BTF id of CAST_TO_KERNEL, None if the kernel has none.
    """
    for rung in UDP_LADDER:
        if rung.attach == Attach.CGROUP:
            for direct_loads in ((f"{CAST_TO_KERNEL_MACRO}={cast}",), ()) if cast is not None else ((),):
                for family in _FAMILIES:
                    yield rung.macro, *family, *direct_loads
        elif rung.attach == Attach.FENTRY:
            yield rung.macro, ATTACH_FENTRY
        elif rung.name == UdpHook.UDP_SEND_SKB:
            for register, in_flow in PORT_SOURCES:
                yield rung.macro, *port_macros(register, in_flow=in_flow)
            register, in_flow = PORT_SOURCES[0]
            yield rung.macro, *port_macros(register, in_flow=in_flow), CORK_MACRO
        else:
            yield (rung.macro,)
    yield ATTACH_FENTRY, STREAM_FUNCTION
    yield (STREAM_FUNCTION,)
    for family in _FAMILIES:
        yield *family, STREAM_TRACEPOINT, STREAM_TWICE


def main() -> None:
    """Compile everything and print it."""
    parser = argparse.ArgumentParser(description="Print the instructions of each BPF program.")
    parser.add_argument("--full", action="store_true", help="print each instruction")
    parser.add_argument("--btf", default="/sys/kernel/btf/vmlinux", metavar="FILE", help="BTF of the kernel")
    parser.add_argument("--answers", action="store_true", help="print the programs that track answers")
    parser.add_argument("--servers", action="store_true", help="print the programs that tell servers apart")
    arguments = parser.parse_args()
    maps = Maps(Sizes(ring=4096, processes=1, counters=1, names=1, recent=1))
    no_cache = ProgramCache("")
    layout = read_layout(arguments.btf, no_cache)
    options = {"answers": arguments.answers, "servers": arguments.servers}
    compiler = Compiler(layout, [53], [853], [*maps.descriptors, SELF_CALLS], no_cache, **options)
    for macros in compilations(layout.functions.get(CAST_TO_KERNEL)):
        for name, program in sorted(compiler.compile(macros).programs.items()):
            code = program.instructions
            print(" ".join(macros), name, len(code) // INSTRUCTION.size, digest(code))
            if arguments.full:
                for at, (opcode, registers, offset, value) in enumerate(INSTRUCTION.iter_unpack(code)):
                    print(f"  {at:5} {opcode:02x} {registers:02x} {offset:6} {value}")


if __name__ == "__main__":
    main()
