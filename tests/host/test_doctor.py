"""``dnsprobe doctor`` reports what this kernel offers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ALL_PATHS, PATIENCE, PROGRAM
from test_lifecycle import NO_NAMESPACES

from dnsprobe.kernel.cgroup_root import find_mounts
from dnsprobe.kernel.hooks import RUNGS, kprobes_available


def test_doctor_reports_each_path_as_proved() -> None:
    done = subprocess.run([str(PROGRAM), "doctor"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    done = subprocess.run([str(PROGRAM), "doctor", "--json"], stdout=subprocess.PIPE, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    paths = {entry["path"]: entry for entry in found if "path" in entry}
    assert {path: entry["proved"] for path, entry in paths.items()} == dict.fromkeys(ALL_PATHS, True)
    for path, entry in paths.items():
        place = RUNGS[entry["hook"], entry["attach"]].place(entry["symbol"])
        assert f"{entry['hook']} ({place}), proved" in next(line for line in lines if line.startswith(f"ok  {path}"))
    checks = {entry["check"]: entry["good"] for entry in found if "check" in entry}
    assert (checks["lineage"], checks["control groups"]) == (True, True)
    # None: this kernel has none, which is no fault.
    assert checks["kprobes"] is (kprobes_available() or None)
    assert checks["fentry"] in {True, None}


def test_doctor_reports_paths_that_are_not_proved() -> None:
    # Loopback is down, and there can be no other one.
    command = ["unshare", "--net", *NO_NAMESPACES, str(PROGRAM), "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "NOT PROVED" in done.stdout
    assert "the canary could not be sent" in done.stdout


@pytest.fixture
def group() -> Iterator[Path]:
    """Yield a control group below the root."""
    mounts = list(find_mounts(Path("/proc/self/mountinfo").read_text("utf-8")))
    if not mounts:
        pytest.skip("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
    folder = Path(mounts[0][0], "dnsprobe-test")
    folder.mkdir()
    yield folder
    folder.rmdir()


IN_GROUP = """\
echo $$ >"$1/dnsprobe-test/cgroup.procs"
exec unshare --cgroup --mount sh -ec 'umount --lazy "$1"; mount -t cgroup2 none "$1"; shift; exec "$@"' sh "$@"
"""


def test_a_container_does_not_show_the_root_of_the_control_groups(group: Path) -> None:
    """A program there would see what this group sends, and miss the rest of the host."""
    command = ["sh", "-ec", IN_GROUP, "sh", str(group.parent), str(PROGRAM), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    (finding,) = [entry for entry in found if entry.get("check") == "control groups"]
    assert finding["good"] is None
    assert f"{group.parent} is not the root, but a group below it" in finding["detail"]
    assert "this process is in a control group namespace" in finding["detail"]
    hooks = {entry["path"]: entry["hook"] for entry in found if "path" in entry}
    assert "cgroup_skb" not in hooks.values()
