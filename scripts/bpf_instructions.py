"""Print the instructions that the compiler emits for each BPF program, for every way in which dnsprobe compiles them.

Usage, as root: .venv/bin/python scripts/bpf_instructions.py [--full] [--btf FILE]

A line has the macros of the compilation, the program, its number of instructions and their digest. ``--full`` prints
each instruction as well. Two trees whose output is the same load the same programs: compare them with diff(1). The
offsets of kernel structs come from the BTF, so both outputs have to be of the same BTF.
"""

from __future__ import annotations

import argparse
import os
import struct
from collections.abc import Iterator, Sequence

from dnsprobe.kernel import loader
from dnsprobe.kernel.hooks import STREAM_FUNCTION, STREAM_TRACEPOINT, STREAM_TWICE, UDP_LADDER
from dnsprobe.kernel.programs import digest

_MAPS = [
    "SETTINGS",
    "SCRATCH",
    "STATISTICS",
    "RULES",
    "COUNTS",
    "OVERFLOW",
    "PROCESSES",
    "IDENTITIES",
    "NAMES",
    "PENDING",
    "SEEN",
    "LINEAGE",
    "DEFERRED",
    "STREAMS",
    "EVENTS",
    "CANARIES",
]
#: struct bpf_insn, include/uapi/linux/bpf.h: code, both registers in an octet, offset, immediate value.
_INSTRUCTION = struct.Struct("=BBhi")


def _compilations() -> Iterator[Sequence[str]]:
    for rung in UDP_LADDER:
        if rung.kind == "raw_tracepoint":
            for families in ("(family)==4", "(family)==6", "(family)==4||(family)==6"):
                yield rung.macro, f"SERVED_FAMILY(family)=({families})", STREAM_TRACEPOINT
            yield rung.macro, STREAM_TRACEPOINT, STREAM_TWICE
        elif rung.name == "udp_send_skb":
            for register, in_flow in loader._PORT_SOURCES:
                yield rung.macro, f"PORT_ARGUMENT={register}", f"PORT_IN_FLOW={int(in_flow)}", STREAM_FUNCTION
        else:
            yield rung.macro, STREAM_FUNCTION
            yield (rung.macro,)


def main() -> None:
    """Compile everything and print it."""
    parser = argparse.ArgumentParser(description="Print the instructions of each BPF program.")
    parser.add_argument("--full", action="store_true", help="print each instruction")
    parser.add_argument("--btf", default="/sys/kernel/btf/vmlinux", metavar="FILE", help="BTF of the kernel")
    arguments = parser.parse_args()
    os.environ.pop("CACHE_DIRECTORY", None)
    request = {
        "ports": [53],
        "encrypted_ports": [853],
        "canary_port": 1,
        "btf": arguments.btf,
        "maps": _MAPS,
    }
    made = loader.Loader(request, [])
    for macros in _compilations():
        for name, program in sorted(made._build(macros[0], macros).programs.items()):
            code = program.instructions
            print(" ".join(macros), name, len(code) // _INSTRUCTION.size, digest(code))
            if arguments.full:
                for at, (opcode, registers, offset, value) in enumerate(_INSTRUCTION.iter_unpack(code)):
                    print(f"  {at:5} {opcode:02x} {registers:02x} {offset:6} {value}")


if __name__ == "__main__":
    main()
