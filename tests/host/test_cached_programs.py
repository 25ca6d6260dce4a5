"""Compiled programs are cached: the next start needs no compiler, unless something has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ALL_PATHS, Program, Service

Start = Callable[..., Service]
Scene = Callable[..., Any]

RULES = "domains: [kept.test]"
#: Replaces LLVM, and BCC with it, by an empty file.
WITHOUT_COMPILER = 'for file in /usr/lib/*/libbcc.so.0; do mount --bind /dev/null "$file"; done; exec "$@"'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the empty folder that caches programs from now on."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("CACHE_DIRECTORY", str(folder))
    return folder


def contents(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def kinds(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.iterdir())


def without_compiler() -> list[str]:
    return ["unshare", "--mount", "sh", "-ec", WITHOUT_COMPILER, "sh"]


def test_the_next_start_needs_no_compiler(start: Start, scene: Scene, folder: Path) -> None:
    start(RULES).stop()
    cached = contents(folder)
    assert kinds(folder) == ["layout", "programs"]
    service = start(RULES, without_compiler())
    assert contents(folder) == cached
    scene("send", "www.kept.test", 101)
    assert service.by("dnsprobe_queries_total", "domain") == {"kept.test": 101}
    assert "cannot cache" not in service.err.read_text("utf-8")


def test_without_a_cached_program_the_start_needs_the_compiler(tmp_path: Path, folder: Path) -> None:
    program = Program(["watch", "kept.test"], tmp_path, without_compiler())
    assert program.process.wait(60) == 1
    assert "do not compile" in program.err.read_text("utf-8")
    assert kinds(folder) == ["layout"]


def test_damaged_files_are_replaced(start: Start, folder: Path) -> None:
    start(RULES).stop()
    before = contents(folder)
    for path in folder.iterdir():
        os.truncate(path, path.stat().st_size // 2)
    start(RULES).stop()
    after = contents(folder)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())


def test_other_ports_are_compiled_for(start: Start, scene: Scene, folder: Path) -> None:
    start(RULES).stop()
    service = start(f"{RULES}\nprobe: {{ports: [53, 5353]}}")
    assert kinds(folder) == ["layout", "programs", "programs"]
    assert service.by("dnsprobe_path_verified", "path") == dict.fromkeys(ALL_PATHS, 1)


def test_a_folder_that_cannot_be_written_is_no_obstacle(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", "/proc/1")
    service = start(RULES)
    assert service.get("/-/ready") == "ready\n"
    assert "cannot cache the compiled BPF programs: " in service.err.read_text("utf-8")
