"""``dnsprobe doctor`` reports what this kernel offers."""

from __future__ import annotations

import json
import subprocess

from conftest import ALL_PATHS, PATIENCE, PROGRAM

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
    done = subprocess.run(
        ["unshare", "--net", str(PROGRAM), "doctor"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert "NOT PROVED" in done.stdout
    assert "the canary could not be sent" in done.stdout
