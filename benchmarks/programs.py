"""BPF programs for benchmarks: the kernel's measurements of those of any process, and empty ones to compare them with.

This calls bpf(2) itself, so that it also works with the programs of another version of dnsprobe.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# enum bpf_prog_type, enum bpf_cmd and enum bpf_attach_type of include/uapi/linux/bpf.h
KPROBE, CGROUP_SKB, RAW_TRACEPOINT, TRACING = 2, 8, 17, 26
_PROG_LOAD, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _RAW_TRACEPOINT_OPEN, _LINK_CREATE = 5, 13, 15, 17, 28
_CGROUP_INET_INGRESS, _CGROUP_INET_EGRESS, _TRACE_FENTRY = 0, 1, 24
#: The name of a place at which CGROUP_SKB sees packets that arrive.
INGRESS = "ingress"

_NR_BPF, _NR_PERF_EVENT_OPEN = 321, 298  # of x86_64
_PERF_EVENT_IOC_ENABLE, _PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408
_BTF_KIND_FUNC = 12

_STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _syscall(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _bpf(command: int, attributes: bytes) -> int:
    # What a kernel does not know has to be zero, so a longer union does no harm.
    return _syscall(_NR_BPF, ctypes.c_long(command), ctypes.create_string_buffer(attributes, 144), ctypes.c_long(144))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program is attached: its type, and the name of a function or tracepoint.

    For CGROUP_SKB, the name is INGRESS, or none at egress.
    """

    kind: int
    name: str

    def __str__(self) -> str:
        """Return the words for a table."""
        at_group = "cgroup_skb" if self.name else "cgroup_skb egress"
        kind = {KPROBE: "kprobe", CGROUP_SKB: at_group, RAW_TRACEPOINT: "tracepoint", TRACING: "fentry"}
        return f"{kind[self.kind]} {self.name}".strip()


@dataclass(frozen=True, slots=True)
class Runs:
    """How often a program has run, and for how long, since kernel.bpf_stats_enabled is 1."""

    runs: int
    time_ns: int

    def __add__(self, other: Runs) -> Runs:
        return Runs(self.runs + other.runs, self.time_ns + other.time_ns)

    def __sub__(self, before: Runs) -> Runs:
        return Runs(self.runs - before.runs, self.time_ns - before.time_ns)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded program: its type, its name (up to 15 octets) and how many instructions the verifier followed."""

    kind: int
    name: str
    verified: int


@contextlib.contextmanager
def statistics() -> Iterator[None]:
    """Have the kernel measure all programs."""
    before = _STATISTICS.read_text()
    _STATISTICS.write_text("1")
    try:
        yield
    finally:
        _STATISTICS.write_text(before)


def programs_of(pid: int) -> dict[int, tuple[Loaded, Runs]]:
    """Return the programs of which a process has a descriptor, by their ids."""
    found = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            facts = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            if "prog_id" in facts and "run_cnt" in facts:
                number, kind = int(facts["prog_id"]), int(facts["prog_type"])
                loaded = Loaded(kind, _name(number), int(facts.get("verified_insns", 0)))
                found[number] = loaded, Runs(int(facts["run_cnt"]), int(facts["run_time_ns"]))
    return found


def _name(number: int) -> str:
    """Return the name of a program, of which the kernel keeps 15 octets."""
    descriptor = _bpf(_PROG_GET_FD_BY_ID, struct.pack("=I", number))
    try:
        # struct bpf_prog_info: the name stands at octet 64.
        info = ctypes.create_string_buffer(80)
        _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
        return info.raw[64:80].partition(b"\0")[0].decode()
    finally:
        os.close(descriptor)


class EmptyProgram:
    """A program of two instructions, attached at a place. OSError if the kernel refuses it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._descriptors: list[int] = []
        try:
            self._attach()
        except OSError:
            self.close()
            raise

    @property
    def runs(self) -> Runs:
        """The kernel's measurements so far."""
        facts = dict(line.split(":", 1) for line in self._fdinfo().splitlines())
        return Runs(int(facts["run_cnt"]), int(facts["run_time_ns"]))

    def _fdinfo(self) -> str:
        return Path(f"/proc/self/fdinfo/{self._descriptors[0]}").read_text()

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def _attach(self) -> None:
        kind, name = self.place.kind, self.place.name
        target = _btf_id(name) if kind == TRACING else 0
        direction = _CGROUP_INET_INGRESS if name == INGRESS else _CGROUP_INET_EGRESS
        expected = {TRACING: _TRACE_FENTRY, CGROUP_SKB: direction}.get(kind, 0)
        program = self._keep(_load(kind, expected, target))
        if kind == CGROUP_SKB:
            with _cgroup_root() as root:
                self._keep(_bpf(_LINK_CREATE, struct.pack("=IIII", program, root, direction, 0)))
        elif kind == KPROBE:
            event = self._keep(_perf_event(name))
            fcntl.ioctl(event, _PERF_EVENT_IOC_SET_BPF, program)
            fcntl.ioctl(event, _PERF_EVENT_IOC_ENABLE, 0)
        else:
            text = ctypes.create_string_buffer(name.encode())
            address = ctypes.addressof(text) if kind == RAW_TRACEPOINT else 0
            self._keep(_bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QI", address, program)))

    def close(self) -> None:
        """Detach."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def _load(kind: int, expected: int, target: int) -> int:
    # r0 = 1 (the packet passes) for CGROUP_SKB, else 0; exit
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, kind == CGROUP_SKB, 0x95, 0, 0, 0), 16)
    text = ctypes.create_string_buffer(b"GPL")
    # union bpf_attr for BPF_PROG_LOAD: prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version,
    # prog_flags, prog_name, prog_ifindex, expected_attach_type, and attach_btf_id at octet 108
    attributes = struct.pack(
        "=IIQQIIQII16sII", kind, 2, ctypes.addressof(code), ctypes.addressof(text), *(0,) * 5, b"empty", 0, expected
    )
    return _bpf(_PROG_LOAD, attributes.ljust(108, b"\0") + struct.pack("=I", target))


@contextlib.contextmanager
def _cgroup_root() -> Iterator[int]:
    """Open the root of cgroup2, wherever it is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2" and Path(mount[1]).stat().st_ino == 1]
    if not roots:
        raise FileNotFoundError("the root of cgroup2 is not mounted")
    descriptor = os.open(roots[0], os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _perf_event(function: str) -> int:
    kind = int(Path("/sys/bus/event_source/devices/kprobe/type").read_text())
    name = ctypes.create_string_buffer(function.encode())
    # struct perf_event_attr: type, size, ..., config1 (kprobe_func), config2
    attributes = struct.pack("=IIQQQQQIIQQ", kind, 72, 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(name), 0)
    long = ctypes.c_long
    return _syscall(_NR_PERF_EVENT_OPEN, attributes, long(-1), long(0), long(-1), ctypes.c_ulong(8))


def _btf_id(function: str) -> int:
    library = ctypes.CDLL("libbpf.so.1")
    library.btf__load_vmlinux_btf.restype = ctypes.c_void_p
    library.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
    found: int = library.btf__find_by_name_kind(library.btf__load_vmlinux_btf(), function.encode(), _BTF_KIND_FUNC)
    if found < 0:
        raise OSError(-found, f"the BTF has no function {function}")
    return found
