"""The programs of a hook: which ones are loaded, and which ones they call. With a libbpf that loads nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel import attach, fentry, libbpf, loader
from dnsprobe.kernel.compiler import Compilation
from dnsprobe.kernel.hooks import RUNGS, Hook
from dnsprobe.kernel.kallsyms import Symbol
from dnsprobe.kernel.program import EMPTY_PROGRAM, Program

KIND = libbpf.ProgramKind(libbpf.TRACING, libbpf.TRACE_FENTRY, 7)


class FakeMap:
    """A map of programs: ``calls`` has the name of the program at each index."""

    made: list[FakeMap]

    def __init__(self, kind: int, name: str, key_size: int, value_size: int, entries: int) -> None:
        assert (kind, name, key_size, value_size) == (libbpf.PROG_ARRAY, "self_calls", 4, 4)
        self.entries = entries
        self.fd = os.open("/dev/null", os.O_RDONLY)
        self.calls: dict[int, str] = {}
        self.made.append(self)

    def set(self, key: bytes, value: bytes) -> None:
        (index,), (program,) = struct.unpack("=I", key), struct.unpack("=I", value)
        assert index < self.entries
        self.calls[index] = LOADED[program]

    def close(self) -> None:
        os.close(self.fd)


#: The names of loaded programs by their descriptors.
LOADED: dict[int, str] = {}


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeMap]]:
    """Return the maps that are made."""

    def load(kind: libbpf.ProgramKind, name: str, _instructions: bytes) -> int:
        assert kind == KIND
        fd = os.open("/dev/null", os.O_RDONLY)
        LOADED[fd] = name
        return fd

    monkeypatch.setattr(FakeMap, "made", [], raising=False)
    monkeypatch.setattr(libbpf, "Map", FakeMap)
    monkeypatch.setattr(libbpf, "load_program", load)
    yield FakeMap.made
    LOADED.clear()


def loaded(*programs: str, entries: tuple[str, ...], repeats: bool = False) -> Hook:
    """Load the entry programs of a hook, from a compilation with these programs."""
    hook = Hook("rung", "fentry", ("udp4",), "symbol", [], [])
    compilation = Compilation((), dict.fromkeys(programs, Program(EMPTY_PROGRAM, (), ())))
    made = loader._HookLoader(compilation, KIND, [], 53, repeats=repeats)
    for entry in entries:
        made.load(hook, entry)
    made.close()
    return hook


def names(hook: Hook) -> list[str]:
    return [LOADED[program] for program in hook.programs]


def test_an_entry_program_calls_its_slow_program(maps: list[FakeMap]) -> None:
    hook = loaded("x_entry", "x_slow", "y_slow", entries=("x_entry",))
    assert maps[0].calls == {0: "x_slow"}
    # The kernel calls only the entry program, and skips and counts only runs of that.
    assert names(hook) == ["x_entry"]
    # The kernel empties the map when its last descriptor is closed.
    assert len(hook.links) == 1
    hook.close()


def test_programs_for_tcp_call_themselves(maps: list[FakeMap]) -> None:
    hook = loaded("x_entry", "x_again_entry", entries=("x_entry", "x_again_entry"), repeats=True)
    assert maps[0].calls == {0: "x_entry", 1: "x_again_entry"}
    assert (names(hook), len(hook.links)) == (["x_entry", "x_again_entry"], 1)
    hook.close()


def test_a_program_that_calls_none_keeps_no_map(maps: list[FakeMap]) -> None:
    hook = loaded("x_entry", entries=("x_entry",))
    assert (maps[0].calls, hook.links) == ({}, [])
    hook.close()


def test_each_hook_has_a_map_of_its_own(maps: list[FakeMap]) -> None:
    hooks = [loaded("x_entry", "x_slow", entries=("x_entry",)) for _ in range(2)]
    assert len(maps) == 2
    for hook in hooks:
        hook.close()


@pytest.mark.usefixtures("maps")
def test_a_program_that_the_sources_lack_is_an_error() -> None:
    with pytest.raises(UserError, match="have no program egress_entry"):
        loaded("x_entry", entries=("egress_entry",))


def test_fentry_is_tried_once_for_each_function(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[libbpf.ProgramKind] = []

    def load(kind: libbpf.ProgramKind, _name: str, instructions: bytes) -> int:
        tried.append(kind)
        assert instructions == EMPTY_PROGRAM
        return os.open("/dev/null", os.O_RDONLY)

    def attach(_program: int) -> int:
        raise OSError(524, "Unknown error 524")

    monkeypatch.setattr(fentry, "attach_fentry", attach)
    monkeypatch.setattr(libbpf, "load_program", load)
    monkeypatch.setattr(libbpf, "guards_fentry", lambda _program: True)
    made = fentry.Fentry({"ip_send_skb": 7})
    for _ in range(2):
        assert made.problem("ip_send_skb") == "cannot attach even an empty program: this kernel does not support it"
    assert tried == [KIND]
    assert made.problem("udp_send_skb") == "BTF has no function udp_send_skb"
    assert tried == [KIND]


#: perf_event_open(2) lists these, and what the kernel returns for want of descriptors or memory.
PERF_ERRORS = (
    *(errno.E2BIG, errno.EACCES, errno.EBADF, errno.EBUSY, errno.EFAULT, errno.EINTR, errno.EINVAL, errno.EMFILE),
    *(errno.ENODEV, errno.ENOENT, errno.ENOSPC, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW, errno.EPERM),
    *(errno.ESRCH, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
)


class KprobeLoader(loader.Loader):
    """Attaches kprobes for both IP versions to a kernel whose compiler has made two copies of each function."""

    def __init__(self) -> None:
        copies = ("udp_send_skb.constprop.0", "udp_send_skb.constprop.1", "udp_v6_send_skb")
        self._kallsyms = "".join(f"{number:016x} t {name}\n" for number, name in enumerate(copies, 1)).encode()
        self._map_fds, self._canary_port, self._egress_ways = [], 53, [()]
        programs = {f"{name}_entry": Program(EMPTY_PROGRAM, (), ()) for name in ("udp_send_skb", "udp_v6_send_skb")}
        compilation = Compilation((), programs)
        self._compiler = SimpleNamespace(compile_rung=lambda *_, **__: compilation)  # type: ignore[assignment]


@pytest.mark.parametrize("code", PERF_ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("good", [0, 1])
def test_a_kprobe_that_perf_event_open_refuses_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, code: int, good: int
) -> None:
    """The call fails for the first copy of a function, or for the second one; for the other IP version it succeeds."""
    opened: list[int] = []

    def open_event(attributes: bytes) -> int:
        # config2 has the address.
        (address,) = struct.unpack_from("=Q", attributes, 64)
        if address == 1 + good:
            raise OSError(code, os.strerror(code))
        opened.append(address)
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(loader, "kprobes_available", lambda: True)
    monkeypatch.setattr(attach, "kprobe_type", lambda: 6)
    monkeypatch.setattr(attach, "_perf_event_open", open_event)
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: 0)
    monkeypatch.setattr(libbpf, "load_program", lambda *_: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr(libbpf, "Map", FakeMap)
    monkeypatch.setattr(FakeMap, "made", [], raising=False)
    before = len(list(Path("/proc/self/fd").iterdir()))
    hooks, refused = KprobeLoader().attach(RUNGS["udp_send_skb", "kprobe"], ["udp4", "udp6"], 0)
    name = f"udp_send_skb.constprop.{good}"
    assert refused == {"udp4": f"cannot attach to {name} by a kprobe: {os.strerror(code)}"}
    assert [hook.paths for hook in hooks] == [("udp6",)]
    assert opened == [*([1] if good else []), 3]
    for hook in hooks:
        hook.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_kprobe_whose_program_is_refused_leaves_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event is opened, and the ioctl fails: /dev/null has none."""
    monkeypatch.setattr(attach, "kprobe_type", lambda: 6)
    monkeypatch.setattr(attach, "_perf_event_open", lambda _attributes: os.open("/dev/null", os.O_RDONLY))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
        attach.attach_kprobe(0, Symbol("udp_send_skb", 1))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
