"""Attach a program to the ingress of the root of the control groups so that no other program can be attached there.

Waits until that is possible, prints a line, and detaches when standard input ends. So nothing stays if the test dies.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time

from dnsprobe.kernel import libbpf
from dnsprobe.kernel.cgroup_root import open_root
from dnsprobe.kernel.program import INSTRUCTION

BPF = {"x86_64": 321, "aarch64": 280}
#: include/uapi/linux/bpf.h
PROG_ATTACH, PROG_DETACH = 8, 9
#: return 1: let the packet pass
PASS = INSTRUCTION.pack(0xB7, 0, 0, 1) + INSTRUCTION.pack(0x95, 0, 0, 0)


def bpf(command: int, *numbers: int) -> int:
    """Call bpf(2). Return 0 or the error."""
    attribute = ctypes.create_string_buffer(struct.pack(f"={len(numbers)}I", *numbers), 64)
    failed = ctypes.CDLL(None, use_errno=True).syscall(BPF[os.uname().machine], command, attribute, 64)
    return ctypes.get_errno() if failed else 0


def main() -> None:
    """Attach, wait, detach."""
    kind = libbpf.ProgramKind(libbpf.CGROUP_SKB, libbpf.CGROUP_INET_INGRESS)
    root, program = open_root(), libbpf.load_program(kind, "pass", PASS)
    # Without BPF_F_ALLOW_MULTI.
    while bpf(PROG_ATTACH, root, program, libbpf.CGROUP_INET_INGRESS, 0):
        time.sleep(0.05)
    print("attached", flush=True)
    try:
        sys.stdin.read()
    finally:
        bpf(PROG_DETACH, root, program, libbpf.CGROUP_INET_INGRESS)


if __name__ == "__main__":
    main()
