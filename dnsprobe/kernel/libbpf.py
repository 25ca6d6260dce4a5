"""The binding of libbpf: maps as octets, ring buffers, and programs.

libbpfcc depends on libbpf, so it is installed wherever BCC is; it does not load LLVM. All functions raise OSError with
the kernel's errno. Map calls run at real-time priority (:mod:`dnsprobe.kernel.real_time`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dnsprobe.errors import UserError
from dnsprobe.kernel.real_time import call_in_slices, real_time

# enum bpf_map_type, include/uapi/linux/bpf.h
HASH = 1
ARRAY = 2
PROG_ARRAY = 3
PERCPU_ARRAY = 6
LRU_HASH = 9
LPM_TRIE = 11
ARRAY_OF_MAPS = 12
STACK = 23
SK_STORAGE = 24
RINGBUF = 27

# enum bpf_prog_type, in the same file
KPROBE = 2
CGROUP_SKB = 8
CGROUP_SOCK = 9
RAW_TRACEPOINT = 17
TRACING = 26

# enum bpf_attach_type, in the same file
CGROUP_INET_INGRESS = 0
CGROUP_INET_EGRESS = 1
CGROUP_INET_SOCK_CREATE = 2
TRACE_FENTRY = 24
CGROUP_INET_SOCK_RELEASE = 34

NO_PREALLOC = 1  # BPF_F_NO_PREALLOC
ANY, NOEXIST, EXIST = 0, 1, 2

#: Entries that one call reads from a hash map.
_BATCH = 1024


class _CreateOptions(ctypes.Structure):
    """``struct bpf_map_create_opts`` of libbpf 1.0, up to the last member in use."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _LoadOptions(ctypes.Structure):
    """``struct bpf_prog_load_opts`` of libbpf 1.0, up to the last member in use."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise UserError(f"cannot load libbpf: {error}", "it comes with BCC: apt-get install python3-bpfcc") from error
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.bpf_map_create.argtypes = [
        number,
        ctypes.c_char_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_uint32,
        pointer,
    ]
    library.bpf_map_lookup_elem.argtypes = [number, pointer, pointer]
    library.bpf_map_update_elem.argtypes = [number, pointer, pointer, ctypes.c_uint64]
    library.bpf_map_delete_elem.argtypes = [number, pointer]
    library.bpf_map_lookup_and_delete_elem.argtypes = [number, pointer, pointer]
    library.bpf_map_lookup_batch.argtypes = [number, pointer, pointer, pointer, pointer, pointer, pointer]
    library.bpf_prog_load.argtypes = [number, ctypes.c_char_p, ctypes.c_char_p, pointer, ctypes.c_size_t, pointer]
    library.bpf_raw_tracepoint_open.argtypes = [ctypes.c_char_p, number]
    library.bpf_btf_load.argtypes = [ctypes.c_char_p, ctypes.c_size_t, pointer]
    library.bpf_link_create.argtypes = [number, number, number, pointer]
    library.bpf_obj_get_info_by_fd.argtypes = [number, pointer, pointer]
    library.ring_buffer__new.argtypes = [number, _SAMPLE, pointer, pointer]
    library.ring_buffer__new.restype = pointer
    library.ring_buffer__consume.argtypes = [pointer]
    library.ring_buffer__epoll_fd.argtypes = [pointer]
    library.ring_buffer__free.argtypes = [pointer]
    library.ring_buffer__free.restype = None
    # Errors are raised with errno. libbpf's own lines on standard error would be a second message.
    library.libbpf_set_print(None)
    return library


_lib: ctypes.CDLL | None = None
_quick_lib: ctypes.PyDLL | None = None


def _libbpf() -> ctypes.CDLL:
    global _lib  # noqa: PLW0603 - loaded once, and only by commands that use BPF
    if _lib is None:
        _lib = _load()
    return _lib


def _quick_libbpf() -> ctypes.PyDLL:
    """Return the library for calls that take microseconds: they keep Python's lock.

    A call that releases the lock may wait for another thread to give it back: 5 ms (sys.getswitchinterval()), for each
    of thousands of calls, while the thread of the journal has much to write.
    """
    global _quick_lib  # noqa: PLW0603 - as above
    if _quick_lib is None:
        library = _libbpf()
        _quick_lib = ctypes.PyDLL("libbpf.so.1", use_errno=True)
        calls = ("lookup_elem", "update_elem", "delete_elem", "lookup_and_delete_elem", "lookup_batch")
        for name in (f"bpf_map_{call}" for call in calls):
            getattr(_quick_lib, name).argtypes = getattr(library, name).argtypes
    return _quick_lib


#: Not in the errno module, because user space should not see it: include/linux/errno.h.
_ENOTSUPP = 524


def reason(error: OSError) -> str:
    """Return the text for an error of bpf(2)."""
    if error.errno == _ENOTSUPP:
        return "this kernel does not support it"
    return error.strerror or str(error)


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno() or -result
        raise OSError(code, os.strerror(code))
    return result


#: The types in the BTF of an SK_STORAGE map: its key, and its value.
_KEY_TYPE, _VALUE_TYPE = 1, 3


def _types_of_storage(value_size: int) -> bytes:
    """Return BTF (Documentation/bpf/btf.rst) with a number of 32 bits and an array of ``value_size`` octets."""
    names = b"\0u32\0u64\0"
    kind_int, kind_array = 1 << 24, 3 << 24
    types = struct.pack("=IIII", 1, kind_int, 4, 32)
    types += struct.pack("=IIII", 5, kind_int, 8, 64)
    types += struct.pack("=IIIIII", 0, kind_array, 0, 2, 1, value_size // 8)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names


class Map:
    """A BPF map with keys and values of fixed sizes, in octets. Of a per-CPU map, a value has a slot for each CPU.

    ``kind`` is one of the types above, ``inner`` the pattern for the maps in an ARRAY_OF_MAPS.
    """

    def __init__(
        self,
        kind: int,
        name: str,
        key_size: int,
        value_size: int,
        entries: int,
        flags: int = 0,
        inner: Map | None = None,
    ) -> None:
        options = _CreateOptions(sz=ctypes.sizeof(_CreateOptions), map_flags=flags)
        types = -1
        if kind == SK_STORAGE:
            # The kernel takes such a map only with the types of its key and value.
            blob = _types_of_storage(value_size)
            types = _check(_libbpf().bpf_btf_load(blob, len(blob), None))
            options.map_flags, options.btf_fd = NO_PREALLOC, types
            options.btf_key_type_id, options.btf_value_type_id = _KEY_TYPE, _VALUE_TYPE
        if inner is not None:
            options.inner_map_fd = inner.fd
        self.name, self.key_size, self.value_size, self.entries = name, key_size, value_size, entries
        # The slot of a CPU is rounded up to eight octets: kernel/bpf/syscall.c, bpf_map_value_size().
        self._cpus = possible_cpus() if kind == PERCPU_ARRAY else 1
        # An update of a map of maps waits until no program uses the old one.
        self._library = _libbpf() if kind == ARRAY_OF_MAPS else _quick_libbpf()
        self._value = ctypes.create_string_buffer(
            max(value_size, 8) * self._cpus if kind == PERCPU_ARRAY else value_size
        )
        try:
            self.fd: int = _check(
                _libbpf().bpf_map_create(
                    kind, f"dnsprobe_{name}"[:15].encode(), key_size, value_size, entries, ctypes.byref(options)
                )
            )
        finally:
            if types >= 0:
                os.close(types)

    def get_many(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield each key with its value, None if there is none."""
        return call_in_slices(lambda key: (key, self._get(key)), keys)

    def take_many(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield each key with its last value, None if there was none; the entries are deleted.

        An entry for which the kernel has no memory at the moment stays, and its value is None as well. The caller
        consumes all results: deletion runs ahead of them.
        """
        return call_in_slices(lambda key: (key, self._take(key)), keys)

    def set(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Store a value."""
        with real_time:
            _check(self._set(key, value, flags))

    def push(self, value: bytes) -> None:
        """Put a value on a STACK."""
        _check(_libbpf().bpf_map_update_elem(self.fd, None, value, ANY))

    def set_many(self, items: Iterable[tuple[bytes, bytes]], flags: int = ANY) -> dict[bytes, int]:
        """Store values. Return the errno of each key that the kernel refused, in the order of the items."""

        def store(item: tuple[bytes, bytes]) -> tuple[bytes, int]:
            refused = self._set(*item, flags) < 0
            return item[0], ctypes.get_errno() if refused else 0

        return {key: code for key, code in call_in_slices(store, items) if code}

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Delete entries; those that do not exist are ignored."""
        for _ in call_in_slices(self._delete, keys):
            pass

    def take_own(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Delete entries; yield those that were deleted here, and not by a BPF program, with their values.

        The value is that of the entry that was deleted. Before Linux 5.14, a BPF program may put another one in its
        place between the two calls. The caller consumes all results: deletion runs ahead of them.
        """
        taken = call_in_slices(lambda key: (key, self._take_own(key)), keys)
        return ((key, value) for key, value in taken if value is not None)

    def _get(self, key: bytes) -> bytes | None:
        if self._library.bpf_map_lookup_elem(self.fd, key, self._value) < 0:
            if ctypes.get_errno() == errno.ENOENT:
                return None
            _check(-1)
        return self._value.raw

    def _set(self, key: bytes, value: bytes, flags: int) -> int:
        result: int = self._library.bpf_map_update_elem(self.fd, key, value, flags)
        return result

    def _delete(self, key: bytes) -> bool:
        if self._library.bpf_map_delete_elem(self.fd, key) < 0:
            if ctypes.get_errno() == errno.ENOENT:
                return False
            _check(-1)
        return True

    def _take_own(self, key: bytes) -> bytes | None:
        if self._library.bpf_map_lookup_and_delete_elem(self.fd, key, self._value) >= 0:
            return self._value.raw
        code = ctypes.get_errno()
        if code == errno.ENOENT:
            return None
        if code != _ENOTSUPP:
            raise OSError(code, os.strerror(code))
        # Before kernel commit 3e87f192b405 ("bpf: Add lookup_and_delete_elem support to hashtab").
        value = self._get(key)
        return value if value is not None and self._delete(key) else None

    def _take(self, key: bytes) -> bytes | None:
        try:
            value = self._get(key)
            self._delete(key)
        except OSError:
            # What stays in the map is taken the next time. To raise would lose what was taken before.
            return None
        return value

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries of a hash map.

        Entries that are added or deleted meanwhile may be among them or not; no other is missed.
        """
        size = min(_BATCH, self.entries)
        cursor = ctypes.create_string_buffer(max(self.key_size, 8))
        started = False
        while True:
            keys = ctypes.create_string_buffer(self.key_size * size)
            values = ctypes.create_string_buffer(self.value_size * size)
            count = ctypes.c_uint32(size)
            with real_time:
                result = self._library.bpf_map_lookup_batch(
                    self.fd, cursor if started else None, cursor, keys, values, ctypes.byref(count), None
                )
            code = ctypes.get_errno() if result < 0 else 0
            if code == errno.ENOSPC:  # a single bucket has more entries: kernel/bpf/hashtab.c
                size *= 2
                continue
            if code not in (0, errno.ENOENT):
                _check(result)
            all_keys, all_values = keys.raw, values.raw
            for index in range(count.value):
                key_at, value_at = index * self.key_size, index * self.value_size
                yield all_keys[key_at : key_at + self.key_size], all_values[value_at : value_at + self.value_size]
            if code == errno.ENOENT:
                return
            started = True

    def close(self) -> None:
        """Close the descriptor. The kernel frees the map when no program uses it any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def possible_cpus() -> int:
    """Return the number of CPUs that the kernel may ever use: a value of a per-CPU map has a slot for each."""
    return _check(_libbpf().libbpf_num_possible_cpus())


class Ring:
    """Reads the records of a ring buffer, at most ``at_once`` in one call."""

    def __init__(self, ring: Map, at_once: int) -> None:
        self._records: list[bytes] = []
        self._at_once = at_once
        self._sample = _SAMPLE(self._keep)
        self._ring = _libbpf().ring_buffer__new(ring.fd, self._sample, None, None)
        if not self._ring:
            _check(-1)

    def _keep(self, _context: object, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        # A negative result ends the call; the record is consumed all the same.
        return -errno.EAGAIN if len(self._records) >= self._at_once else 0

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are records."""
        return int(_libbpf().ring_buffer__epoll_fd(self._ring))

    def consume(self) -> list[bytes]:
        """Return the next records, none if there are none."""
        self._records = []
        result = _libbpf().ring_buffer__consume(self._ring)
        if result < 0 and not self._records:
            _check(result)
        return self._records

    def close(self) -> None:
        """Stop reading."""
        if self._ring:
            _libbpf().ring_buffer__free(self._ring)
            self._ring = None


#: Octets: more than the verifier writes about a program that it accepts. If it refuses one, the end has the reason.
_LOG_SIZE = 16 << 20


class RefusedError(OSError):
    """The kernel refuses a program. ``log`` is the verifier's log, empty if the verifier did not run."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(code, os.strerror(code))
        self.log = log


@dataclass(frozen=True, slots=True)
class ProgramKind:
    """What a program is loaded as: a type, the attach type if there are several, and the function that it attaches to.

    ``type`` is a number of enum bpf_prog_type, ``attach_type`` of enum bpf_attach_type; ``function`` is a BTF id.
    """

    type: int
    attach_type: int = 0
    function: int = 0


def load_program(kind: ProgramKind, name: str, instructions: bytes) -> int:
    """Load a program and return its descriptor; RefusedError if the kernel refuses it."""
    library, count = _libbpf(), len(instructions) // 8
    arguments = kind.type, name[:15].encode(), b"Dual MIT/GPL", instructions, count
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions), expected_attach_type=kind.attach_type, attach_btf_id=kind.function
    )
    found: int = library.bpf_prog_load(*arguments, ctypes.byref(options))
    if found >= 0:
        return found
    # A log slows the verifier down, so the first attempt is without one.
    log = ctypes.create_string_buffer(_LOG_SIZE)
    options.log_level, options.log_size, options.log_buf = 1, _LOG_SIZE, ctypes.addressof(log)
    again: int = library.bpf_prog_load(*arguments, ctypes.byref(options))
    if again >= 0:  # the first failure was temporary, such as a lack of memory
        return again
    raise RefusedError(-found, log.value.decode("utf-8", "replace"))


def open_raw_tracepoint(name: str, program: int) -> int:
    """Attach a program to a raw tracepoint, and return the descriptor that keeps it attached."""
    return _check(_libbpf().bpf_raw_tracepoint_open(name.encode(), program))


def open_fentry(program: int) -> int:
    """Attach a program to the function that it was loaded for, and return the descriptor that keeps it attached."""
    # Without a name, BPF_RAW_TRACEPOINT_OPEN attaches fentry programs, on all kernels that have them.
    return _check(_libbpf().bpf_raw_tracepoint_open(None, program))


def create_link(program: int, target: int, attach_type: int) -> int:
    """Attach a program to an object, such as a control group; return the descriptor that keeps it attached."""
    return _check(_libbpf().bpf_link_create(program, target, attach_type, None))


class _ProgramInfo(ctypes.Structure):
    """``struct bpf_prog_info`` of include/uapi/linux/bpf.h. Older kernels fill in only its first part."""

    _fields_ = (
        ("before_run_time", ctypes.c_uint8 * 192),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
        ("after", ctypes.c_uint32 * 3),
    )


@dataclass(frozen=True, slots=True)
class ProgramRuns:
    """The kernel's measurements of a program.

    ``time_ns`` and ``runs`` are 0 unless ``kernel.bpf_stats_enabled`` is 1. ``missed`` are runs that the kernel skipped
    because they interrupted a BPF program on that CPU: any program, or map call of user space, for kprobes; a run of
    the same program for fentry and raw tracepoints. The kernel counts them for kprobes since 6.7 (kernel commit
    dd8657894c11, "bpf: Count missed stats in trace_call_bpf"), for raw tracepoints since 6.1 (05b24ff9b2cf, "bpf:
    Prevent bpf program recursion for raw tracepoint probes"), and for fentry since 5.12 (9ed9e9ba2337, "bpf: Count the
    number of times recursion was prevented"); before, it is 0. No kernel skips runs of programs at control groups.
    ``verified`` is how many instructions the verifier went through (since 5.16); its limit is a million.
    """

    time_ns: int
    runs: int
    missed: int
    verified: int


def _program_info(fd: int) -> tuple[_ProgramInfo, int]:
    """Return what the kernel knows about a loaded program, and how many octets of it the kernel has filled in."""
    info = _ProgramInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(_libbpf().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
    return info, size.value


def program_runs(fd: int) -> ProgramRuns:
    """Return the kernel's measurements of a loaded program."""
    info, _ = _program_info(fd)
    return ProgramRuns(info.run_time_ns, info.run_cnt, info.recursion_misses, info.verified_insns)


def guards_fentry(fd: int) -> bool:
    """Return whether the kernel skips a run at fentry that interrupts a run of the same program. ``fd`` is any program.

    It does since Linux 5.12: kernel commit ca06f55b9002 ("bpf: Add per-program recursion prevention mechanism"). The
    same release added the counter of these runs to ``struct bpf_prog_info``.
    """
    _, size = _program_info(fd)
    return size >= _ProgramInfo.recursion_misses.offset + _ProgramInfo.recursion_misses.size
