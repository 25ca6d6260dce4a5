"""Where the root of the control groups is mounted, and when it is not the real one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel import cgroup_root
from dnsprobe.kernel.cgroup_root import find_mounts, open_root

HYBRID = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:10 master:2 - cgroup2 cgroup2 rw
42 31 259:300 /../.. /mnt/with\\040space rw - cgroup2 none rw
"""


def refuse() -> int:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.fixture
def no_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_root, "_private_mount", refuse)


def table(tmp_path: Path, folder: Path, device: int) -> str:
    """Write a table of mounts that has cgroup2 at a folder, and return its path."""
    file = tmp_path / "mountinfo"
    line = f"41 31 {os.major(device)}:{os.minor(device)} / {folder} rw,relatime shared:10 - cgroup2 cgroup2 rw"
    file.write_text(f"{line}\n")
    return str(file)


def test_every_mount_of_version_2_is_found() -> None:
    assert list(find_mounts(HYBRID)) == [
        ("/sys/fs/cgroup/unified", os.makedev(0, 38)),
        ("/mnt/with space", os.makedev(259, 300)),
    ]


def test_the_folder_with_the_first_inode_is_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path.stat()
    monkeypatch.setattr(cgroup_root, "_ROOT_INODE", status.st_ino)
    root = open_root(table(tmp_path, tmp_path, status.st_dev))
    try:
        assert os.path.samestat(os.fstat(root), status)
        assert not os.get_inheritable(root)
    finally:
        os.close(root)


@pytest.mark.usefixtures("no_mount")
@pytest.mark.parametrize(
    ("device", "reason"), [(0, "not the root, but a group below it"), (1, "covered by another mount")]
)
def test_another_folder_is_refused(device: int, reason: str, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    folder = tmp_path / "below"
    with pytest.raises(UserError, match=reason) as error:
        open_root(table(tmp_path, folder, folder.stat().st_dev + device))
    assert str(folder) in error.value.message
    assert "it cannot be mounted: Operation not permitted" in error.value.message


def test_a_namespace_shows_another_root_even_to_a_new_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_root, "_private_mount", lambda: os.open(tmp_path, os.O_RDONLY))
    mounts = tmp_path / "mountinfo"
    mounts.touch()
    with pytest.raises(UserError, match="this process is in a control group namespace"):
        open_root(str(mounts))
