"""The names of shares: a user, or the unit of a control group (``bpf/process/share.h``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dnsprobe.kernel.abi import SHARE_OF_CGROUP, SHARE_OF_OTHERS, SHARE_OF_USER
from dnsprobe.kernel.cgroup_root import find_mounts
from dnsprobe.model import OTHER, UNKNOWN
from dnsprobe.process.cgroup import unit_of

#: Control groups that are looked at for one name, at most.
_GROUPS = 5000
#: Names of control groups that are kept. An id is never given to another group.
_UNITS = 64


class ShareName(NamedTuple):
    """The name of a share: a user or a unit; the other one is empty."""

    user: str = ""
    unit: str = ""

    def __str__(self) -> str:
        """Return it for a message."""
        return f"user {self.user}" if self.user else f"unit {self.unit}"


def find_cgroup_folder() -> Path | None:
    """Return where the control groups of version 2 are, None if they are nowhere."""
    mounts = find_mounts(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))
    return next((Path(folder) for folder, _device in mounts), None)


class ShareNames:
    """Looks up names. ``user_name`` returns the name of a user id, None if it has none."""

    def __init__(
        self,
        user_name: Callable[[int], str | None],
        cgroup_folder: Callable[[], Path | None] = find_cgroup_folder,
    ) -> None:
        self._user_name, self._cgroup_folder = user_name, cgroup_folder
        self._units: dict[int, str] = {}

    def name(self, share: int) -> ShareName:
        """Return the name of a share. This may take some milliseconds."""
        if share >= SHARE_OF_CGROUP:
            return ShareName(unit=self._unit(share - SHARE_OF_CGROUP))
        if share >= SHARE_OF_USER:
            uid = share - SHARE_OF_USER
            return ShareName(user=self._user_name(uid) or str(uid))
        return ShareName(user=OTHER if share == SHARE_OF_OTHERS else UNKNOWN)

    def user(self, share: int) -> str:
        """Return the user of a share: that of a control group is root. Empty if it is not known."""
        if share >= SHARE_OF_CGROUP:
            return self.name(SHARE_OF_USER).user
        return self.name(share).user if share >= SHARE_OF_USER else ""

    def _unit(self, number: int) -> str:
        unit = self._units.get(number)
        if unit is None:
            if len(self._units) >= _UNITS:
                self._units.clear()
            unit = self._units[number] = self._find_unit(number)
        return unit

    def _find_unit(self, number: int) -> str:
        """Return the unit of a control group by its id, which is the number of its inode; otherwise its path."""
        folder = self._cgroup_folder()
        if folder is None:
            return UNKNOWN
        for count, (path, inode) in enumerate(_groups(folder)):
            if inode == number:
                return unit_of(path) or path
            if count >= _GROUPS:
                break
        return UNKNOWN


def _groups(root: Path) -> Iterator[tuple[str, int]]:
    """Yield path and inode of each control group, those near the root first."""
    try:
        yield "/", root.stat().st_ino
    except OSError:
        return
    level = [root]
    while level:
        following = []
        for folder in level:
            try:
                entries = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
            except OSError:  # it was removed meanwhile
                continue
            for entry in entries:
                following.append(Path(entry.path))
                yield f"/{following[-1].relative_to(root)}", entry.inode()
        level = following
