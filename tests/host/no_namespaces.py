"""Runs a command that cannot make namespaces, as in many containers: ``no_namespaces.py COMMAND…``.

A filter of system calls (seccomp(2)) refuses unshare(2), also to all processes that the command starts.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 38, 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
EPERM = 1
UNSHARE = {"x86_64": 272, "aarch64": 97}
#: BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, and BPF_RET | BPF_K of the classic BPF.
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06


def instruction(code: int, value: int, skip_if_true: int = 0, skip_if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, skip_if_true, skip_if_false, value)


def refuse_unshare() -> None:
    code = b"".join(
        (
            instruction(LOAD, 0),  # the number of the system call
            instruction(JUMP_IF_EQUAL, UNSHARE[platform.machine()], 0, 1),
            instruction(RETURN, SECCOMP_RET_ERRNO | EPERM),
            instruction(RETURN, SECCOMP_RET_ALLOW),
        )
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None)
    none = ctypes.c_ulong(0)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), none, none, none) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, none, none) == 0


if __name__ == "__main__":
    refuse_unshare()
    os.execvp(sys.argv[1], sys.argv[1:])
