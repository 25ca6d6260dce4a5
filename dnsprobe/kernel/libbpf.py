"""BPF maps and ring buffers through libbpf, which libbpfcc depends on: no LLVM in this process.

Every function raises OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from dnsprobe.errors import UserError

# enum bpf_map_type, include/uapi/linux/bpf.h
HASH = 1
ARRAY = 2
PROG_ARRAY = 3
PERCPU_ARRAY = 6
LRU_HASH = 9
LPM_TRIE = 11
ARRAY_OF_MAPS = 12
RINGBUF = 27

# enum bpf_prog_type, there too
KPROBE = 2
RAW_TRACEPOINT = 17

NO_PREALLOC = 1  # BPF_F_NO_PREALLOC
ANY, NOEXIST, EXIST = 0, 1, 2

_BATCH = 4096


class _CreateOptions(ctypes.Structure):
    """``struct bpf_map_create_opts`` of libbpf 1.0, up to what is used."""

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
    """``struct bpf_prog_load_opts`` of libbpf 1.0, up to what is used."""

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
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


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
    library.bpf_map_lookup_batch.argtypes = [number, pointer, pointer, pointer, pointer, pointer, pointer]
    library.bpf_prog_load.argtypes = [number, ctypes.c_char_p, ctypes.c_char_p, pointer, ctypes.c_size_t, pointer]
    library.bpf_raw_tracepoint_open.argtypes = [ctypes.c_char_p, number]
    library.bpf_obj_get_info_by_fd.argtypes = [number, pointer, pointer]
    library.ring_buffer__new.argtypes = [number, _SAMPLE, pointer, pointer]
    library.ring_buffer__new.restype = pointer
    library.ring_buffer__consume.argtypes = [pointer]
    library.ring_buffer__epoll_fd.argtypes = [pointer]
    library.ring_buffer__free.argtypes = [pointer]
    library.ring_buffer__free.restype = None
    # What goes wrong is raised here with errno; libbpf's own lines on standard error would be a second message.
    library.libbpf_set_print(None)
    return library


_lib: ctypes.CDLL | None = None


def _libbpf() -> ctypes.CDLL:
    global _lib  # noqa: PLW0603 - loaded once, and only where a map is touched
    if _lib is None:
        _lib = _load()
    return _lib


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno() or -result
        raise OSError(code, os.strerror(code))
    return result


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
#: Map calls in a row at real-time priority: tens of microseconds. To change the scheduler costs more than most calls.
_SLICE = 32


class _RealTime:
    """Prevents that another process takes the CPU while this thread is inside the kernel's map functions.

    While user space reads or changes a map, the kernel skips the kprobe programs on that CPU (bpf_prog_active,
    kernel/bpf/syscall.c). A call takes less than a microsecond, unless the thread is preempted in the middle, as full
    and lazy preemption allow. Then the queries of whoever runs instead are missed, for as long as its time slice lasts.
    Ordinary processes do not preempt a real-time process.

    Only map calls belong inside: a thread at real-time priority keeps its CPU from all ordinary processes.
    """

    def __init__(self) -> None:
        self._allowed = True
        self._before = (os.SCHED_OTHER, os.sched_param(0))

    def __enter__(self) -> None:
        if not self._allowed:
            return
        self._before = (os.sched_getscheduler(0), os.sched_getparam(0))
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError:  # without CAP_SYS_NICE; newer kernels count the runs that are missed then: ProgramRuns.missed
            self._allowed = False

    def __exit__(self, *_: object) -> None:
        if self._allowed:
            os.sched_setscheduler(0, *self._before)


#: For the one thread that works with the maps.
_real_time = _RealTime()


def _call_in_slices(call: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield the results of ``call``, which runs at real-time priority for :data:`_SLICE` items at a time.

    Both the source of the items and the consumer of the results run at ordinary priority.
    """
    left = iter(items)
    while some := list(islice(left, _SLICE)):
        with _real_time:
            results = [call(item) for item in some]
        yield from results


class Map:
    """A BPF map: keys and values are bytes of fixed sizes. Closed with its descriptor."""

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
        if inner is not None:
            options.inner_map_fd = inner.fd
        self.name, self.key_size, self.value_size, self.entries = name, key_size, value_size, entries
        # A slot a CPU, each rounded up to eight octets: kernel/bpf/syscall.c, bpf_map_value_size().
        self._cpus = possible_cpus() if kind == PERCPU_ARRAY else 1
        self._value = ctypes.create_string_buffer(
            max(value_size, 8) * self._cpus if kind == PERCPU_ARRAY else value_size
        )
        self.fd: int = _check(
            _libbpf().bpf_map_create(
                kind, f"dnsprobe_{name}"[:15].encode(), key_size, value_size, entries, ctypes.byref(options)
            )
        )

    def get(self, key: bytes) -> bytes | None:
        """Return the value, None if there is none; of a per-CPU map the values of all CPUs, one after the other."""
        with _real_time:
            return self._get(key)

    def get_many(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield each key with its value, None if there is none."""
        return _call_in_slices(lambda key: (key, self._get(key)), keys)

    def take_many(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield each key with its last value, None if there was none; the entries are deleted.

        The caller consumes all results: deletion runs ahead of them.
        """
        return _call_in_slices(lambda key: (key, self._take(key)), keys)

    def set(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Store a value."""
        with _real_time:
            _check(self._set(key, value, flags))

    def set_many(self, items: Iterable[tuple[bytes, bytes]], flags: int = ANY) -> dict[bytes, int]:
        """Store values. Return the errno of each key that the kernel refused, in the order of the items."""

        def store(item: tuple[bytes, bytes]) -> tuple[bytes, int]:
            refused = self._set(*item, flags) < 0
            return item[0], ctypes.get_errno() if refused else 0

        return {key: code for key, code in _call_in_slices(store, items) if code}

    def delete(self, key: bytes) -> bool:
        """Delete an entry; False if there was none."""
        with _real_time:
            return self._delete(key)

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Delete entries; those that do not exist are ignored."""
        for _ in _call_in_slices(self._delete, keys):
            pass

    def _get(self, key: bytes) -> bytes | None:
        if _libbpf().bpf_map_lookup_elem(self.fd, key, self._value) < 0:
            if ctypes.get_errno() == errno.ENOENT:
                return None
            _check(-1)
        return self._value.raw

    def _set(self, key: bytes, value: bytes, flags: int) -> int:
        result: int = _libbpf().bpf_map_update_elem(self.fd, key, value, flags)
        return result

    def _delete(self, key: bytes) -> bool:
        if _libbpf().bpf_map_delete_elem(self.fd, key) < 0:
            if ctypes.get_errno() == errno.ENOENT:
                return False
            _check(-1)
        return True

    def _take(self, key: bytes) -> bytes | None:
        value = self._get(key)
        self._delete(key)
        return value

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries of a hash map. Those that come or go meanwhile may be in it or not, no other is missed."""
        size = min(_BATCH, self.entries)
        cursor = ctypes.create_string_buffer(max(self.key_size, 8))
        started = False
        while True:
            keys = ctypes.create_string_buffer(self.key_size * size)
            values = ctypes.create_string_buffer(self.value_size * size)
            count = ctypes.c_uint32(size)
            with _real_time:
                result = _libbpf().bpf_map_lookup_batch(
                    self.fd, cursor if started else None, cursor, keys, values, ctypes.byref(count), None
                )
            code = ctypes.get_errno() if result < 0 else 0
            if code == errno.ENOSPC:  # one bucket alone has more entries: kernel/bpf/hashtab.c
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
        """Give up the map; the kernel frees it when the last program that uses it is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def possible_cpus() -> int:
    """Return how many CPUs a per-CPU map has slots for."""
    return _check(_libbpf().libbpf_num_possible_cpus())


class Ring:
    """Reads a ring buffer, at most ``batch`` records at a time, so that a flood starves nobody."""

    def __init__(self, ring: Map, batch: int = 512) -> None:
        self._records: list[bytes] = []
        self._batch = batch
        self._sample = _SAMPLE(self._keep)
        self._ring = _libbpf().ring_buffer__new(ring.fd, self._sample, None, None)
        if not self._ring:
            _check(-1)

    def _keep(self, _context: object, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        # A negative answer ends this round; the record itself is consumed.
        return -errno.EAGAIN if len(self._records) >= self._batch else 0

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


#: More than the verifier writes of a program that it accepts; of one that it does not, the end is what tells.
_LOG_SIZE = 16 << 20


class RefusedError(OSError):
    """The kernel does not take a program. ``log`` is what the verifier says of it, where it came as far as that."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(code, os.strerror(code))
        self.log = log


def load_program(kind: int, name: str, instructions: bytes) -> int:
    """Load a program and return its descriptor; RefusedError where the kernel does not take it."""
    library, count = _libbpf(), len(instructions) // 8
    arguments = kind, name[:15].encode(), b"Dual MIT/GPL", instructions, count
    found: int = library.bpf_prog_load(*arguments, None)
    if found >= 0:
        return found
    # What the verifier has to say takes it long: it is asked only now.
    log = ctypes.create_string_buffer(_LOG_SIZE)
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions), log_level=1, log_size=_LOG_SIZE, log_buf=ctypes.addressof(log)
    )
    again: int = library.bpf_prog_load(*arguments, ctypes.byref(options))
    if again >= 0:  # it was out of memory, say
        return again
    raise RefusedError(-found, log.value.decode("utf-8", "replace"))


def open_raw_tracepoint(name: str, program: int) -> int:
    """Attach a program to a raw tracepoint, and return the descriptor that keeps it attached."""
    return _check(_libbpf().bpf_raw_tracepoint_open(name.encode(), program))


class _ProgramInfo(ctypes.Structure):
    """``struct bpf_prog_info``, include/uapi/linux/bpf.h; older kernels fill in the first part only."""

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
    """What the kernel measured of a program. Time and runs are 0 unless ``kernel.bpf_stats_enabled`` is 1.

    ``missed`` are runs that were left out because another BPF program was running on that CPU. The kernel counts them
    for kprobes since 6.7 (kernel commit dd8657894c11), for raw tracepoints since 6.1 (05b24ff9b2cf); 0 before.
    ``verified`` is how many instructions the verifier went through (since 5.16); its limit is a million.
    """

    time_ns: int
    runs: int
    missed: int
    verified: int


def program_runs(fd: int) -> ProgramRuns:
    """Return how long and how often a loaded program ran."""
    info = _ProgramInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(_libbpf().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
    return ProgramRuns(info.run_time_ns, info.run_cnt, info.recursion_misses, info.verified_insns)
