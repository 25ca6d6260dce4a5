"""``dnsprobe doctor`` reports what this kernel offers."""

from __future__ import annotations

import json
import subprocess

from conftest import PATIENCE, PROGRAM

from dnsprobe.kernel.hooks import PATHS


def test_doctor_reports_each_path_as_proved() -> None:
    done = subprocess.run([str(PROGRAM), "doctor"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for path in ("udp4", "udp6", "tcp4", "tcp6"):
        assert any(line.startswith(f"ok  {path}") and "proved" in line for line in done.stdout.splitlines())
    done = subprocess.run([str(PROGRAM), "doctor", "--json"], stdout=subprocess.PIPE, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {entry["path"]: entry["proved"] for entry in found if "path" in entry} == dict.fromkeys(PATHS, True)
    assert {entry["check"]: entry["good"] for entry in found if "check" in entry}["lineage"] is True


def test_doctor_reports_paths_that_are_not_proved() -> None:
    done = subprocess.run(
        ["unshare", "--net", str(PROGRAM), "doctor"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert "NOT PROVED" in done.stdout
    assert "the canary could not be sent" in done.stdout
