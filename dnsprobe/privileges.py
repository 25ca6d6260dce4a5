"""Capabilities (capabilities(7)): which this process has, and giving up what only the start needs."""

from __future__ import annotations

import ctypes
import os
from enum import IntEnum

from dnsprobe.errors import UserError


class Capability(IntEnum):
    """The capabilities that dnsprobe has a use for, with their bits: include/uapi/linux/capability.h."""

    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_SYSLOG = 34
    CAP_PERFMON = 38
    CAP_BPF = 39


#: Attaching to kprobes takes these, and reading addresses in /proc/kallsyms; maps that are there take CAP_BPF alone.
ONLY_AT_START = (Capability.CAP_SYS_ADMIN, Capability.CAP_SYSLOG, Capability.CAP_PERFMON)

#: For a message to someone who lacks them.
HINT = "run it as root, or with CAP_BPF and CAP_PERFMON, and CAP_SYS_ADMIN where kernel.perf_event_paranoid is above 2"

_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """``struct __user_cap_data_struct``: 32 capabilities; there are two of them, the second for 32 and up."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def held() -> frozenset[Capability]:
    """Return which of them this process can use now."""
    sets = _get()
    return frozenset(each for each in Capability if sets[each // 32].effective >> each % 32 & 1)


def can_load(capabilities: frozenset[Capability]) -> bool:
    """Tell whether BPF programs can be loaded and attached with these; CAP_SYS_ADMIN stands in for the others."""
    return Capability.CAP_SYS_ADMIN in capabilities or {Capability.CAP_BPF, Capability.CAP_PERFMON} <= capabilities


def need() -> None:
    """Raise UserError for an ordinary user. What root lacks, it is told where it is missed."""
    if os.geteuid() != 0 and not can_load(held()):
        raise UserError("dnsprobe needs to load BPF programs, which an ordinary user may not", HINT)


def give_up(capabilities: tuple[Capability, ...] = ONLY_AT_START) -> None:
    """Give up capabilities for good, in this thread and in those it starts; OSError where the kernel refuses.

    A child of a process that is not root's does not get them either: without being permitted and inheritable, a
    capability is not ambient. Nothing is given up where CAP_BPF is missing: there, CAP_SYS_ADMIN stands in for it.
    """
    if Capability.CAP_BPF not in held():
        return
    sets = _get()
    for capability in capabilities:
        half, kept = sets[capability // 32], ~(1 << capability % 32)
        half.effective &= kept
        half.permitted &= kept
        half.inheritable &= kept
    _check(_libc().capset(ctypes.byref(_Header(_VERSION_3, 0)), sets))


def _get() -> ctypes.Array[_Sets]:
    sets = (_Sets * 2)()
    _check(_libc().capget(ctypes.byref(_Header(_VERSION_3, 0)), sets))
    return sets


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
