"""Attaching a loaded program to a kprobe or a raw tracepoint: each attachment lives as long as its descriptor."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from pathlib import Path

from dnsprobe.kernel.hooks import KPROBE_TYPE
from dnsprobe.kernel.kallsyms import Symbol

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_SYSCALLS = {"x86_64": {"perf_event_open": 298, "bpf": 321}, "aarch64": {"perf_event_open": 241, "bpf": 280}}
_BPF_RAW_TRACEPOINT_OPEN = 17
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE = 0x2400
_PERF_EVENT_IOC_SET_BPF = 0x40042408

# struct perf_event_attr up to config2 (PERF_ATTR_SIZE_VER1): type, size, config, sample_period, sample_type,
# read_format, flags, wakeup_events, bp_type, config1 (kprobe_func), config2 (kprobe_addr or probe_offset)
_PERF_ATTR = struct.Struct("=IIQQQQQIIQQ")


def _syscall(name: str, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(_SYSCALLS[platform.machine()][name]), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def attach_kprobe(program: int, symbol: Symbol) -> int:
    """Attach at a function's entry: by address, since a name can stand for several functions, else by name."""
    name = ctypes.create_string_buffer(symbol.name.encode())
    function, address = (0, symbol.address) if symbol.address else (ctypes.addressof(name), 0)
    kprobe_type = int(Path(KPROBE_TYPE).read_text())
    attributes = _PERF_ATTR.pack(kprobe_type, _PERF_ATTR.size, 0, 0, 0, 0, 0, 0, 0, function, address)
    long = ctypes.c_long
    event = _syscall("perf_event_open", attributes, long(-1), long(0), long(-1), ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC))
    try:
        fcntl.ioctl(event, _PERF_EVENT_IOC_SET_BPF, program)
        fcntl.ioctl(event, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return event


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Attach to a tracepoint by its name, without tracefs."""
    text = ctypes.create_string_buffer(name.encode())
    attributes = struct.pack("=QI4x", ctypes.addressof(text), program)
    return _syscall("bpf", ctypes.c_long(_BPF_RAW_TRACEPOINT_OPEN), attributes, ctypes.c_long(len(attributes)))
