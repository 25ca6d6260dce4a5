"""The folder that caches compiled programs: what it returns, what it ignores, and what it removes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dnsprobe.kernel.program_cache import ProgramCache, digest


def test_a_digest_depends_on_where_a_part_ends() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc") != digest(b"abc")


def test_a_value_is_found_again(tmp_path: Path) -> None:
    cache = ProgramCache(str(tmp_path))
    assert cache.get("key") is None
    cache.put("key", [1, {"two": 3}])
    assert cache.problem == ""
    assert ProgramCache(str(tmp_path)).get("key") == [1, {"two": 3}]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_pipe_or_an_endless_file_is_ignored(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key")
    (tmp_path / "device").symlink_to("/dev/zero")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    cache = ProgramCache(str(tmp_path))
    assert [cache.get(key) for key in ("key", "device", "large")] == [None] * 3
    # Nor does it keep a value from being cached.
    os.mkfifo(tmp_path / f".new-{os.getpid()}")
    cache.put("key", 1)
    assert (cache.get("key"), cache.problem) == (1, "")


def test_without_a_folder_nothing_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = ProgramCache("")
    cache.put("key", 1)
    assert (cache.get("key"), cache.problem) == (None, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data.replace(b"17", b"18")])
def test_a_damaged_file_is_ignored(tmp_path: Path, damage: object) -> None:
    cache = ProgramCache(str(tmp_path))
    cache.put("key", {"number": 17})
    assert callable(damage)
    (tmp_path / "key").write_bytes(damage((tmp_path / "key").read_bytes()))
    assert cache.get("key") is None
    cache.put("key", {"number": 17})
    assert cache.get("key") == {"number": 17}


def test_a_file_that_others_can_write_is_ignored(tmp_path: Path) -> None:
    cache = ProgramCache(str(tmp_path))
    cache.put("key", 1)
    (tmp_path / "key").chmod(0o620)
    assert cache.get("key") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user: run scripts/test as root")
def test_a_file_of_another_user_is_ignored(tmp_path: Path) -> None:
    cache = ProgramCache(str(tmp_path))
    cache.put("key", 1)
    os.chown(tmp_path / "key", 65534, 65534)
    assert cache.get("key") is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    cache = ProgramCache(str(tmp_path))
    cache.put("other", 1)
    (tmp_path / "key").symlink_to("other")
    assert cache.get("key") is None


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    cache = ProgramCache(str(tmp_path))
    for number in range(40):
        cache.put(f"key{number}", number)
        os.utime(tmp_path / f"key{number}", (number, number))
    cache.put("last", 40)
    assert {path.name for path in tmp_path.iterdir()} == {"last", *(f"key{number}" for number in range(9, 40))}


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    cache = ProgramCache(str(tmp_path / "missing"))
    assert cache.get("key") is None
    cache.put("key", 1)
    assert "No such file or directory" in cache.problem
    assert str(tmp_path / "missing") in cache.problem


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    cache = ProgramCache(str(tmp_path))
    cache.put("key", 1)
    assert "Is a directory" in cache.problem
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
