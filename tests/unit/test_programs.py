"""Compiled programs: their marks, and the folder that keeps them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from dnsprobe.kernel.programs import CANARY_MARK, Program, Store, digest

_LITTLE = struct.pack("=H", 1)[0] == 1


def instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    registers = source << 4 | destination if _LITTLE else destination << 4 | source
    return struct.pack("=BBhi", code, registers, offset, value)


def load(source: int, value: int, destination: int = 1) -> bytes:
    return instruction(0x18, destination, source, 0, value) + instruction(0)


OTHER = instruction(0xB7, 1, 0, 0, 9)
MADE = OTHER + load(1, 0) + load(CANARY_MARK, 0, 7) + load(0, 5) + load(1, 2, 3) + instruction(0x95)


def test_marks_are_replaced_and_nothing_else() -> None:
    bound = Program.of(MADE).bound([11, 12, 13], 4242)
    assert bound == OTHER + load(1, 11) + load(0, 4242, 7) + load(0, 5) + load(1, 13, 3) + instruction(0x95)


def test_a_program_goes_through_json() -> None:
    program = Program.of(MADE)
    assert Program.from_json(program.to_json()) == program


def test_a_digest_tells_where_one_part_ends() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc") != digest(b"abc")


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.get("key") is None
    store.put("key", [1, {"two": 3}])
    assert Store(str(tmp_path)).get("key") == [1, {"two": 3}]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("")
    store.put("key", 1)
    assert store.get("key") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data.replace(b"17", b"18")])
def test_a_damaged_file_is_not_taken(tmp_path: Path, damage: object) -> None:
    store = Store(str(tmp_path))
    store.put("key", {"number": 17})
    assert callable(damage)
    (tmp_path / "key").write_bytes(damage((tmp_path / "key").read_bytes()))
    assert store.get("key") is None
    store.put("key", {"number": 17})
    assert store.get("key") == {"number": 17}


def test_a_file_that_others_can_write_is_not_taken(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("key", 1)
    (tmp_path / "key").chmod(0o620)
    assert store.get("key") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to somebody else: run scripts/test as root")
def test_a_file_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("key", 1)
    os.chown(tmp_path / "key", 65534, 65534)
    assert store.get("key") is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("other", 1)
    (tmp_path / "key").symlink_to("other")
    assert store.get("key") is None


def test_the_oldest_make_room(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for number in range(20):
        store.put(f"key{number}", number)
        os.utime(tmp_path / f"key{number}", (number, number))
    store.put("last", 20)
    assert {path.name for path in tmp_path.iterdir()} == {"last", *(f"key{number}" for number in range(5, 20))}


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "missing"))
    assert store.get("key") is None
    with pytest.raises(FileNotFoundError):
        store.put("key", 1)


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(IsADirectoryError):
        Store(str(tmp_path)).put("key", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
