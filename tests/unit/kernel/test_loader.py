"""The programs of a hook: which ones are loaded, and which ones they call. With a libbpf that loads nothing."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel import fentry, libbpf, loader
from dnsprobe.kernel.compiler import Compilation
from dnsprobe.kernel.hooks import Hook
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
