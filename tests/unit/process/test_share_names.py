"""Names of shares: users and units."""

from __future__ import annotations

from pathlib import Path

from dnsprobe.kernel.abi import SHARE_OF_CGROUP, SHARE_OF_NOBODY, SHARE_OF_OTHERS, SHARE_OF_USER
from dnsprobe.process.share_names import ShareName, ShareNames, find_cgroup_folder


def names(folder: Path | None = None) -> ShareNames:
    return ShareNames({1000: "ada"}.get, lambda: folder)


def test_a_user_has_a_name_or_a_number() -> None:
    assert names().name(SHARE_OF_USER | 1000) == ShareName(user="ada")
    assert names().name(SHARE_OF_USER | 1001) == ShareName(user="1001")
    assert str(ShareName(user="ada")) == "user ada"


def test_the_user_of_a_control_group_is_root() -> None:
    users = ShareNames({0: "root", 1000: "ada"}.get, lambda: None)
    assert users.user(SHARE_OF_USER | 1000) == "ada"
    assert users.user(SHARE_OF_USER | 1001) == "1001"
    assert users.user(SHARE_OF_CGROUP | 1) == users.user(SHARE_OF_USER) == "root"
    assert users.user(SHARE_OF_NOBODY) == users.user(SHARE_OF_OTHERS) == ""


def test_a_control_group_has_its_unit_or_its_path(tmp_path: Path) -> None:
    unit = tmp_path / "system.slice" / "nightly.service" / "inner"
    other = tmp_path / "mine" / "yours"
    unit.mkdir(parents=True)
    other.mkdir(parents=True)
    found = [names(tmp_path).name(SHARE_OF_CGROUP | each.stat().st_ino) for each in (unit, other, tmp_path)]
    assert found == [ShareName(unit="nightly.service"), ShareName(unit="/mine/yours"), ShareName(unit="/")]
    assert str(found[0]) == "unit nightly.service"


def test_a_control_group_is_looked_for_once(tmp_path: Path) -> None:
    looked_up = []

    def folder() -> Path:
        looked_up.append(tmp_path)
        return tmp_path

    share = SHARE_OF_CGROUP | tmp_path.stat().st_ino
    found = ShareNames(lambda _: None, folder)
    assert [found.name(share) for _ in range(3)] == [ShareName(unit="/")] * 3
    assert len(looked_up) == 1


def test_what_is_gone_is_unknown(tmp_path: Path) -> None:
    assert names(tmp_path).name(SHARE_OF_CGROUP | 1) == ShareName(unit="(unknown)")
    assert names(tmp_path / "none").name(SHARE_OF_CGROUP | 1) == ShareName(unit="(unknown)")
    assert names().name(SHARE_OF_CGROUP | 1) == ShareName(unit="(unknown)")


def test_shares_of_several() -> None:
    assert names().name(SHARE_OF_NOBODY) == ShareName(user="(unknown)")
    assert names().name(SHARE_OF_OTHERS) == ShareName(user="(other)")


def test_the_folder_is_a_mount_of_cgroup2() -> None:
    folder = find_cgroup_folder()
    assert folder is None or (folder / "cgroup.procs").exists()
