"""What the kernel refuses, and a daemon that does not run for a while. strace(1) makes bpf(2) fail."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Service
from running import PROGRAM

Scene = Callable[..., Any]
Start = Callable[..., Service]

if shutil.which("strace") is None:
    pytest.skip("takes strace: run scripts/test, which installs it", allow_module_level=True)


def strace(fault: str, output: Path) -> list[str]:
    return ["strace", "-f", "-qq", "-o", str(output), "-e", "trace=bpf", "-e", f"inject=bpf:{fault}"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]


@pytest.mark.parametrize(
    ("error", "when"),
    [("EPERM", 1), ("EPERM", 40), ("ENOMEM", 20), ("ENOMEM", 90), ("EINVAL", 60), ("E2BIG", 100), ("ENOSYS", 1)],
)
def test_a_start_with_one_failing_call_has_a_clear_end(tmp_path: Path, error: str, when: int) -> None:
    """Call number ``when`` fails in each process: the start fails with a reason and a hint, or works without it."""
    (tmp_path / "c.yaml").write_text("domains: [fault.test]")
    command = [str(PROGRAM), "run", "--config", str(tmp_path / "c.yaml"), "--listen", "127.0.0.1:0"]
    prefix = strace(f"error={error}:when={when}", tmp_path / "trace")
    with (tmp_path / "log").open("wb") as log:
        traced = subprocess.Popen([*prefix, *command, "--log-target", "console"], stdout=log, stderr=log)
    until = time.monotonic() + PATIENCE
    while traced.poll() is None and "ready after" not in (tmp_path / "log").read_text("utf-8"):
        assert time.monotonic() < until
        time.sleep(0.1)
    if traced.poll() is None:
        for pid in children(traced.pid):
            subprocess.run(["kill", "-TERM", str(pid)], check=False)
    status = traced.wait(PATIENCE)
    text = (tmp_path / "log").read_text("utf-8")
    assert "INJECTED" in (tmp_path / "trace").read_text("utf-8")
    assert "Traceback" not in text
    if status:
        assert status == 1
        assert "  hint: " in text
    else:
        assert "stopped: 0 queries counted" in text


@contextmanager
def failing(pid: int, fault: str, folder: Path) -> Iterator[None]:
    """Make each bpf(2) of a running process fail."""
    tracer = subprocess.Popen([*strace(fault, folder / "trace"), "-p", str(pid)])
    try:
        until = time.monotonic() + PATIENCE
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text("utf-8"):
            assert time.monotonic() < until
            time.sleep(0.02)
        yield
    finally:
        tracer.terminate()
        tracer.wait(PATIENCE)


def test_a_daemon_goes_on_after_the_kernel_had_no_memory(start: Start, scene: Scene, tmp_path: Path) -> None:
    service = start("domains: [watched.test]")
    scene("invented", 0, 20, "before", "watched.test")
    service.get("/metrics")
    with failing(service.process.pid, "error=ENOMEM:when=1+", tmp_path):
        scene("invented", 0, 20, "while", "watched.test")
        with pytest.raises(urllib.error.HTTPError) as refused:
            service.get("/metrics")
        assert refused.value.code == 500
        service.wait_for("cannot read the BPF maps, trying again: Cannot allocate memory")
        service.wait_for("n19.watched.test (A, udp) by")
    scene("invented", 0, 20, "after", "watched.test")
    counted = service.by("dnsprobe_queries_total", "process")
    assert counted == {f"{when}{number}": 1 for when in ("before", "while", "after") for number in range(20)}
    assert "Traceback" not in service.err.read_text("utf-8")


def test_a_daemon_that_stands_still_counts_all(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]")
    service.process.send_signal(signal.SIGSTOP)
    sent = scene("invented", 0, 300, "still", "watched.test")["sent"]
    service.process.send_signal(signal.SIGCONT)
    assert sum(service.by("dnsprobe_queries_total", "process").values()) == sent
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": sent}


def test_proc_that_hides_processes_does_not_disturb(start: Start, scene: Scene) -> None:
    mount = 'mount -t proc -o hidepid=2 proc /proc; exec "$@"'
    service = start("domains: [watched.test]", prefix=("unshare", "--mount", "sh", "-ec", mount, "sh"))
    scene("invented", 3_000_001, 5, "hidden", "watched.test")
    assert service.by("dnsprobe_queries_total", "process") == {f"hidden{number}": 1 for number in range(5)}
