"""Small BPF programs of control groups, as systemd and load balancers attach them."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import struct
from contextlib import suppress
from pathlib import Path

from ways_out.place import Absent

# include/uapi/linux/bpf.h
_PROG_LOAD, _PROG_ATTACH = 5, 8
_CGROUP_SKB, _CGROUP_SOCK_ADDR = 8, 18
_INET_EGRESS, _INET4_CONNECT, _UDP4_SENDMSG = 1, 10, 14
#: Offsets in struct bpf_sock_addr.
_USER_IP4, _USER_PORT = 4, 24
_SYS_BPF = {"x86_64": 321}.get(os.uname().machine, 280)


def allow_programs(pid: int = 0) -> None:
    """Let a process load any number of BPF programs: before Linux 5.11, they count as locked memory of root."""
    with suppress(PermissionError):  # in a container that has another limit
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _bpf(command: int, attributes: bytes) -> int:
    data = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = int(ctypes.CDLL(None, use_errno=True).syscall(_SYS_BPF, command, data, 128))
    if result < 0:
        number = ctypes.get_errno()
        if number in {errno.EINVAL, errno.EPERM}:
            raise Absent(f"bpf(2): {os.strerror(number)}")
        raise OSError(number, "bpf(2)")
    return result


def _instruction(code: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhI", code, registers, offset, immediate)


def _attach(group: Path, kind: int, place: int, instructions: bytes) -> None:
    """Load a program and attach it to a control group. It stays as long as the group."""
    allow_programs()
    license_ = ctypes.create_string_buffer(b"GPL")
    code = ctypes.create_string_buffer(instructions, len(instructions))
    head = struct.pack(
        "=IIQQIIQII16sII",
        *(kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license_)),
        *(0, 0, 0, 0, 0),
        *(b"", 0, place),
    )
    program = _bpf(_PROG_LOAD, head)
    folder = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _bpf(_PROG_ATTACH, struct.pack("=IIII", folder, program, place, 0))
    finally:
        os.close(folder)
        os.close(program)


_RETURN = _instruction(0x95)


def drop_everything(group: Path) -> None:
    """Drop what the processes of a control group send, as IPAddressDeny=any of systemd does."""
    _attach(group, _CGROUP_SKB, _INET_EGRESS, _instruction(0xB7) + _RETURN)


def replace_server(group: Path, address: str, port: int | None = None) -> None:
    """Replace the server that the processes of a control group ask, as the load balancers of Cilium do."""
    new = int.from_bytes(socket.inet_aton(address), "little")
    # r2 = address; *(u32 *)(r1 + user_ip4) = r2
    code = _instruction(0xB4, 2, 0, new) + _instruction(0x63, 0x21, _USER_IP4)
    if port is not None:
        code += _instruction(0xB4, 2, 0, socket.htons(port)) + _instruction(0x63, 0x21, _USER_PORT)
    code += _instruction(0xB7, 0, 0, 1) + _RETURN
    for place in (_INET4_CONNECT, _UDP4_SENDMSG):
        _attach(group, _CGROUP_SOCK_ADDR, place, code)
