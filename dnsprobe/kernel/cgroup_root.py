"""The root of the control groups of version 2: each socket on the host belongs to it or to a group below it.

Documentation/admin-guide/cgroup-v2.rst explains the file system, proc_pid_mountinfo(5) the table of mounts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dnsprobe.errors import UserError

#: The inode of the real root: kernfs numbers its nodes from 1. In a control group namespace, the root has another.
_ROOT_INODE = 1

# Of the same number on all architectures: include/uapi/asm-generic/unistd.h.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
# include/uapi/linux/mount.h
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6


def open_root(mountinfo: str = "/proc/self/mountinfo") -> int:
    """Return a descriptor of the root; UserError if it cannot be opened, or if only a part of the tree is visible."""
    reasons = []
    for folder, device in find_mounts(Path(mountinfo).read_text("utf-8", "surrogateescape")):
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            continue
        status = os.fstat(fd)
        if status.st_dev == device and status.st_ino == _ROOT_INODE:
            return fd
        os.close(fd)
        what = "not the root, but a group below it" if status.st_dev == device else "covered by another mount"
        reasons.append(f"{folder} is {what}")
    try:
        if is_filtered():
            # The filter of the unit would end this process.
            raise PermissionError(errno.EPERM, "a filter of system calls is in force")
        fd = _private_mount()
    except OSError as error:
        reasons.append(f"it cannot be mounted: {error.strerror}")
    else:
        if os.fstat(fd).st_ino == _ROOT_INODE:
            return fd
        os.close(fd)
        reasons.append("this process is in a control group namespace")
    raise UserError(
        f"the root of the control groups (cgroup2) is not visible: {'; '.join(reasons)}",
        "run dnsprobe outside of containers, or with the control group namespace of the host",
    )


def find_mounts(mountinfo: str) -> Iterator[tuple[str, int]]:
    """Yield the folder and the device number of each mount of cgroup2 in a table of mounts."""
    for line in mountinfo.splitlines():
        mount, _, file_system = line.partition(" - ")
        if not file_system.startswith("cgroup2 "):
            continue
        _id, _parent, device, _root, folder, *_ = mount.split(" ")
        major, minor = map(int, device.split(":"))
        yield re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), folder), os.makedev(major, minor)


def is_filtered(status: str = "/proc/self/status") -> bool:
    """Return whether a filter decides which system calls this process may use (seccomp(2))."""
    return "\nSeccomp:\t0\n" not in Path(status).read_text("utf-8", "surrogateescape")


def _private_mount() -> int:
    """Mount cgroup2 for this process alone, at no folder, and return a descriptor of its root; OSError if refused."""
    context = _call(_FSOPEN, b"cgroup2", _FSOPEN_CLOEXEC)
    try:
        _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    passed = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        code = ctypes.get_errno() or errno.ENOSYS
        raise OSError(code, os.strerror(code))
    return result
