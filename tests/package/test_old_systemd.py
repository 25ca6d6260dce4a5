"""The oldest systemd that the units are for: 247, of Debian 11. dnsprobe itself needs Debian 12."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from debian_tree import debian_tree

FOLDER = Path(__file__).parents[2] / "packaging" / "systemd"
UNITS = ("dnsprobe.service", "dnsprobe.socket")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for chroot: run scripts/test as root")

# It wants to know its control group, takes version 2 at its usual place for an answer, and moves all processes of the
# root into a group of its own: it gets a root that has no others.
VERIFY = """\
umount --recursive --lazy /sys
mount -t sysfs sys /sys
mount -t cgroup2 none /sys/fs/cgroup
group=/sys/fs/cgroup/dnsprobe-verify-$$
mkdir "$group"
status=0
unshare --pid --fork --mount --propagation=unchanged sh -ec '
	echo 0 >"$1/cgroup.procs"
	shift
	exec unshare --cgroup sh -ec "$@"' sh "$group" '
	mount -t proc proc /proc
	umount /sys/fs/cgroup
	mount -t cgroup2 none /sys/fs/cgroup
	systemd-analyze verify --man=no "$@"
	exit $?' sh "$@" || status=$?
if [ -d "$group/init.scope" ]; then rmdir "$group/init.scope"; fi
rmdir "$group"
exit $status
"""


def test_it_knows_every_line_of_the_units(capsys: pytest.CaptureFixture[str]) -> None:
    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\npackage: {text}", end="", flush=True)

    before = Path("/proc/1/cgroup").read_text("utf-8")
    with debian_tree("bullseye", tell) as tree:
        assert tree.run("systemctl", "--version").startswith("systemd 247 ")
        tree.write("/usr/bin/dnsprobe", "#!/bin/sh\n", mode=0o755)
        tree.write("/bin/kill", "#!/bin/sh\n", mode=0o755)
        for unit in UNITS:
            tree.write(f"/etc/systemd/system/{unit}", (FOLDER / unit).read_text("utf-8"))
        assert tree.run("sh", "-ec", VERIFY, "sh", *UNITS) == ""
    assert Path("/proc/1/cgroup").read_text("utf-8") == before
