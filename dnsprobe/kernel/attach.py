"""Attaching a loaded program to a function, a control group or a tracepoint.

Each attachment lives as long as its descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

from dnsprobe.kernel import libbpf
from dnsprobe.kernel.hooks import kprobe_type
from dnsprobe.kernel.kallsyms import Symbol

# libc has no function for perf_event_open(2), and libbpf's attaches only to programs that libbpf itself loaded.
# The numbers are in arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE = 0x2400
_PERF_EVENT_IOC_SET_BPF = 0x40042408

# struct perf_event_attr up to config2 (PERF_ATTR_SIZE_VER1): type, size, config, sample_period, sample_type,
# read_format, flags, wakeup_events, bp_type, config1 (kprobe_func), config2 (kprobe_addr or probe_offset)
_PERF_ATTR = struct.Struct("=IIQQQQQIIQQ")


def attach_kprobe(program: int, symbol: Symbol) -> int:
    """Attach a program to the entry of a function and return the descriptor; OSError if the kernel refuses.

    A name can stand for several functions, so the address is used unless it is hidden.
    """
    name = ctypes.create_string_buffer(symbol.name.encode())
    function, address = (0, symbol.address) if symbol.address else (ctypes.addressof(name), 0)
    event = _perf_event_open(_PERF_ATTR.pack(kprobe_type(), _PERF_ATTR.size, 0, 0, 0, 0, 0, 0, 0, function, address))
    try:
        fcntl.ioctl(event, _PERF_EVENT_IOC_SET_BPF, program)
        fcntl.ioctl(event, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return event


def _perf_event_open(attributes: bytes) -> int:
    """Open a perf event for all processes on CPU 0. A kprobe is hit on every CPU all the same."""
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of perf_event_open(2) on {platform.machine()} is unknown")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    long = ctypes.c_long
    result = libc.syscall(long(number), attributes, long(-1), long(0), long(-1), ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def attach_fentry(program: int) -> int:
    """Attach a program to the function that it was loaded for, and return the descriptor; OSError if refused."""
    return libbpf.open_fentry(program)


def attach_cgroup(program: int, group: int, attach_type: int) -> int:
    """Attach a program to all sockets in a control group, and return the descriptor; OSError if refused.

    The link allows other programs at the same place, before and after it.
    """
    return libbpf.create_link(program, group, attach_type)


def attach_tracepoint(program: int, name: str) -> int:
    """Attach a program to a tracepoint and return the descriptor; OSError if the kernel refuses.

    It is attached as a raw tracepoint, which needs no tracefs.
    """
    return libbpf.open_raw_tracepoint(name, program)
