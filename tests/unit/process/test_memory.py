"""The memory of our control group, in files as the kernel has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dnsprobe.process.memory import Memory, read_memory

MIB = 1 << 20


def host(folder: Path, mounts: str, groups: str, files: Mapping[str, object]) -> Path:
    """Make a /proc whose mounts are in ``folder``, and the files of control groups; return the /proc."""
    process = folder / "proc/self"
    process.mkdir(parents=True)
    (process / "mounts").write_text(mounts.replace("@", str(folder)))
    (process / "cgroup").write_text(groups)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return folder / "proc"


UNIFIED = "proc /proc proc rw 0 0\ncgroup2 @/unified cgroup2 rw,nsdelegate 0 0\n"
SERVICE = "0::/system.slice/dnsprobe.service\n"
GROUP = "unified/system.slice/dnsprobe.service"


def test_the_own_group_has_a_limit(tmp_path: Path) -> None:
    files = {
        f"{GROUP}/memory.current": 100 * MIB,
        f"{GROUP}/memory.max": 512 * MIB,
        f"{GROUP}/memory.high": "max",
        "unified/system.slice/memory.current": 1,
        "unified/system.slice/memory.max": 2,
    }
    assert read_memory(host(tmp_path, UNIFIED, SERVICE, files)) == Memory(100 * MIB, 512 * MIB)


def test_the_lower_limit_counts(tmp_path: Path) -> None:
    files = {
        f"{GROUP}/memory.current": 100 * MIB,
        f"{GROUP}/memory.max": 512 * MIB,
        f"{GROUP}/memory.high": 256 * MIB,
    }
    assert read_memory(host(tmp_path, UNIFIED, SERVICE, files)) == Memory(100 * MIB, 256 * MIB)


def test_cached_files_do_not_count(tmp_path: Path) -> None:
    files = {
        f"{GROUP}/memory.current": 400 * MIB,
        f"{GROUP}/memory.max": 512 * MIB,
        f"{GROUP}/memory.stat": f"anon {90 * MIB}\ninactive_file {200 * MIB}\nactive_file {100 * MIB}",
    }
    assert read_memory(host(tmp_path, UNIFIED, SERVICE, files)) == Memory(100 * MIB, 512 * MIB)


def test_a_group_above_may_have_the_limit(tmp_path: Path) -> None:
    files = {
        f"{GROUP}/memory.current": 100 * MIB,
        f"{GROUP}/memory.max": "max",
        "unified/system.slice/memory.current": 300 * MIB,
        "unified/system.slice/memory.max": 900 * MIB,
    }
    assert read_memory(host(tmp_path, UNIFIED, SERVICE, files)) == Memory(300 * MIB, 900 * MIB)


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    files = {f"{GROUP}/memory.current": 100 * MIB, f"{GROUP}/memory.max": "max"}
    assert read_memory(host(tmp_path, UNIFIED, SERVICE, files)) is None


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    files = {"unified/memory.current": 100 * MIB, "unified/memory.max": 512 * MIB}
    assert read_memory(host(tmp_path, UNIFIED, "0::/../../else\n", files)) == Memory(100 * MIB, 512 * MIB)


def test_the_controller_of_version_1(tmp_path: Path) -> None:
    mounts = (
        "cgroup2 @/unified cgroup2 rw 0 0\n"
        "cgroup @/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup @/with\\040space cgroup rw,memory 0 0\n"
    )
    files = {
        "unified/dnsprobe/cgroup.procs": 1,
        "with space/dnsprobe/memory.usage_in_bytes": 400 * MIB,
        "with space/dnsprobe/memory.limit_in_bytes": 512 * MIB,
        "with space/dnsprobe/memory.stat": f"active_file {MIB}\ntotal_inactive_file {10 * MIB}\ntotal_active_file 0",
        "with space/memory.usage_in_bytes": 500 * MIB,
        "with space/memory.limit_in_bytes": 9223372036854771712,
    }
    groups = "4:memory:/dnsprobe\n3:cpu,cpuacct:/\n0::/dnsprobe\n"
    assert read_memory(host(tmp_path, mounts, groups, files)) == Memory(390 * MIB, 512 * MIB)


@pytest.mark.parametrize("folder", ["proc", "nothing"])
def test_a_host_without_control_groups_has_no_limit(tmp_path: Path, folder: str) -> None:
    host(tmp_path, "proc /proc proc rw 0 0\n", "", {})
    assert read_memory(tmp_path / folder) is None
