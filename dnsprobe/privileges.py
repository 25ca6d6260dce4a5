"""Capabilities (capabilities(7)): which ones this process has, and dropping those that only the start needs."""

from __future__ import annotations

import ctypes
import os
from enum import IntEnum

from dnsprobe.errors import UserError


class Capability(IntEnum):
    """The capabilities that dnsprobe uses, with their bits: include/uapi/linux/capability.h."""

    CAP_NET_ADMIN = 12
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_SYSLOG = 34
    CAP_PERFMON = 38
    CAP_BPF = 39


#: Needed to attach hooks and to read addresses in /proc/kallsyms. Maps that exist already need CAP_BPF only.
ONLY_AT_START = (Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN, Capability.CAP_SYSLOG, Capability.CAP_PERFMON)

#: The hint for a user whose process lacks capabilities.
HINT = "run it as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"

_VERSION_3 = 0x20080522
_PR_SET_NO_NEW_PRIVS = 38  # include/uapi/linux/prctl.h


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """``struct __user_cap_data_struct``, with 32 capabilities. There are two: the second is for bits 32 and above."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def held() -> frozenset[Capability]:
    """Return the capabilities that this process can use now."""
    sets = _get()
    return frozenset(each for each in Capability if sets[each // 32].effective >> each % 32 & 1)


def can_load(capabilities: frozenset[Capability]) -> bool:
    """Return whether these suffice to load and attach BPF programs. CAP_SYS_ADMIN includes the others."""
    return Capability.CAP_SYS_ADMIN in capabilities or {Capability.CAP_BPF, Capability.CAP_PERFMON} <= capabilities


def require() -> None:
    """Raise UserError for an ordinary user. If root lacks a capability, the step that needs it reports that."""
    if os.geteuid() != 0 and not can_load(held()):
        raise UserError("dnsprobe needs to load BPF programs, which an ordinary user may not", HINT)


def drop(capabilities: tuple[Capability, ...] = ONLY_AT_START) -> None:
    """Drop capabilities permanently, in this thread and in those that it starts; OSError if the kernel refuses.

    Unless the user is root, child processes do not get them either: only a capability that is permitted and inheritable
    can be ambient. Without CAP_BPF, nothing is dropped, because CAP_SYS_ADMIN is needed in its place.
    """
    if Capability.CAP_BPF not in held():
        return
    sets = _get()
    for capability in capabilities:
        half, others = sets[capability // 32], ~(1 << capability % 32)
        half.effective &= others
        half.permitted &= others
        half.inheritable &= others
    _check(_libc().capset(ctypes.byref(_Header(_VERSION_3, 0)), sets))


def drop_all() -> None:
    """Drop all capabilities for good, in this thread and for all programs that it executes; OSError if refused."""
    library = _libc()
    _check(library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(library.capset(ctypes.byref(_Header(_VERSION_3, 0)), (_Sets * 2)()))


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
