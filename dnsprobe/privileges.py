"""Giving up what only the start needs (capabilities(7))."""

from __future__ import annotations

import ctypes
import os

#: include/uapi/linux/capability.h
CAP_SYS_ADMIN = 21
CAP_SYSLOG = 34
CAP_PERFMON = 38
CAP_BPF = 39

#: Attaching to kprobes takes these, and reading addresses in /proc/kallsyms; maps that are there take CAP_BPF alone.
ONLY_AT_START = (CAP_SYS_ADMIN, CAP_SYSLOG, CAP_PERFMON)

_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """``struct __user_cap_data_struct``: 32 capabilities; there are two of them, the second for 32 and up."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def give_up(capabilities: tuple[int, ...] = ONLY_AT_START) -> None:
    """Give up capabilities for good, in this thread and in those it starts; OSError where the kernel refuses.

    A child of a process that is not root's does not get them either: without being permitted and inheritable, a
    capability is not ambient. Nothing is given up where CAP_BPF is missing: there, CAP_SYS_ADMIN stands in for it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(_VERSION_3, 0)
    sets = (_Sets * 2)()
    _check(libc.capget(ctypes.byref(header), sets))
    if not sets[CAP_BPF // 32].permitted >> CAP_BPF % 32 & 1:
        return
    for capability in capabilities:
        half, kept = sets[capability // 32], ~(1 << capability % 32)
        half.effective &= kept
        half.permitted &= kept
        half.inheritable &= kept
    _check(libc.capset(ctypes.byref(header), sets))


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
