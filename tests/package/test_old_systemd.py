"""The units work with systemd 247 of Debian 11, the oldest that they support. dnsprobe itself needs Debian 12."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from debian_tree import debian_tree, progress_printer

FOLDER = Path(__file__).parents[2] / "packaging" / "systemd"
UNITS = ("dnsprobe.service", "dnsprobe.socket")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for chroot: run scripts/test as root")

# systemd-analyze reads its control group, expects cgroup version 2 at the usual place, and moves all processes of the
# root group into another group. So it runs in a separate root group without other processes.
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


def test_systemd_247_knows_every_line_of_the_units(pytestconfig: pytest.Config) -> None:
    before = Path("/proc/1/cgroup").read_text("utf-8")
    with debian_tree("bullseye", progress_printer(pytestconfig)) as tree:
        assert tree.run("systemctl", "--version").startswith("systemd 247 ")
        tree.write("/usr/bin/dnsprobe", "#!/bin/sh\n", mode=0o755)
        tree.write("/bin/kill", "#!/bin/sh\n", mode=0o755)
        for unit in UNITS:
            tree.write(f"/etc/systemd/system/{unit}", (FOLDER / unit).read_text("utf-8"))
        assert tree.run("sh", "-ec", VERIFY, "sh", *UNITS) == ""
    assert Path("/proc/1/cgroup").read_text("utf-8") == before
