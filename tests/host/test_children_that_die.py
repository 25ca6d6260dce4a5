"""The children of the daemon end at each step of their work: the daemon fails with the reason, or recovers.

Nothing stays attached, and nothing is counted twice or lost.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ALL_PATHS, HERE, PATIENCE, PROGRAM, Service, until
from test_lifecycle import attached, children
from test_proof_under_attack import BPF, LINK_DETACH, LINK_GET_FD_BY_ID, bpf

Scene = Callable[..., Any]
Start = Callable[..., Service]

LOADER = "dnsprobe.kernel.loader"
MATCHING = "dnsprobe.pipeline.matching_process"
#: include/uapi/linux/bpf.h
PROG_GET_NEXT_ID, LINK_GET_NEXT_ID = 11, 31
#: TCP has a hook of another kind, so that it goes on while the one at egress is exchanged.
EXCHANGED = "domains: [streams.test, one.test]\nprobe: {verify_interval: 1s, tcp_hook: tcp_tracepoint}"


def ids(command: int) -> set[int]:
    """Return the ids of all BPF programs or links of this kernel."""
    found: set[int] = set()
    last = 0
    while True:
        attribute = ctypes.create_string_buffer(struct.pack("=I", last), 64)
        if ctypes.CDLL(None).syscall(BPF[os.uname().machine], command, attribute, 64) < 0:
            return found
        last = struct.unpack_from("=I", attribute, 4)[0]
        found.add(last)


@pytest.fixture
def _nothing_stays() -> Iterator[None]:
    """Check that all programs and links that are new have gone at the end of the test."""
    programs, links = ids(PROG_GET_NEXT_ID), ids(LINK_GET_NEXT_ID)
    yield
    # The kernel frees them a moment after their last descriptor was closed.
    until(lambda: ids(LINK_GET_NEXT_ID) <= links and ids(PROG_GET_NEXT_ID) <= programs)


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """Return the path of the file with the step at which a child dies."""
    return tmp_path / "step"


def dying(step: Path) -> list[str]:
    """Return a prefix for a dnsprobe whose child dies at the step in a file."""
    return ["env", f"PYTHONPATH={HERE / 'at_step'}", f"STEP={step}"]


def strace(fault: str, output: Path, call: str = "bpf") -> list[str]:
    """Return a command that traces processes, in which a system call has a fault (strace(1), ``inject``)."""
    return ["strace", "-f", "-qq", "-o", str(output), "-e", f"trace={call}", "-e", f"inject={call}:{fault}"]


@contextmanager
def injecting(pid: int, fault: str, folder: Path, call: str = "bpf") -> Iterator[None]:
    """Give a system call of a running process and its children a fault."""
    tracer = subprocess.Popen([*strace(fault, folder / "trace", call), "-p", str(pid)])
    try:
        until(lambda: "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text("utf-8"))
        yield
    finally:
        tracer.terminate()
        tracer.wait(PATIENCE)


def set_step(step: Path, text: str) -> None:
    """Write the file with the step. A reader sees either no file or all of it."""
    new = step.with_suffix(".new")
    new.write_text(text, "ascii")
    new.rename(step)


def log_of_start(folder: Path, step: Path, at: str) -> str:
    """Start a daemon whose child dies at a step, check that the start fails, and return its log."""
    (folder / "c.yaml").write_text("domains: ['died*.test']")
    set_step(step, at)
    command = [str(PROGRAM), "run", "--config", str(folder / "c.yaml"), "--listen", "127.0.0.1:0"]
    command += ["--log-target", "console"]
    done = subprocess.run([*dying(step), *command], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert not step.exists(), "the child died"
    assert done.returncode == 1
    assert "ready" not in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def detach_hooks(service: Service) -> None:
    """Detach the hooks at egress behind the back of the daemon."""
    for link in attached(str(service.process.pid)):
        descriptor = bpf(LINK_GET_FD_BY_ID, int(link))
        bpf(LINK_DETACH, descriptor)
        os.close(descriptor)


@pytest.mark.usefixtures("_nothing_stays")
@pytest.mark.parametrize(
    "at",
    [
        "call Loader.__init__ 1",
        "call Compiler.compile_rung 1",
        "return load_program 1",
        "return create_link 1",  # attached, and not handed over
        "return send 2",  # a hook is handed over, and the next is not there
        "call Loader.attach_lineage 1",
    ],
)
def test_a_start_whose_loader_dies_fails_with_the_reason(tmp_path: Path, step: Path, at: str) -> None:
    assert "the loader process died" in log_of_start(tmp_path, step, f"{LOADER} {at}")


@pytest.mark.usefixtures("_nothing_stays")
@pytest.mark.parametrize(
    "at",
    [
        "call Loader.__init__ 1",
        "return create_link 1",  # in the trial
        "return create_link 3",  # in the exchange that follows
    ],
)
def test_an_exchange_whose_loader_dies_is_made_at_the_next_proof(
    start: Start, scene: Scene, step: Path, at: str
) -> None:
    service = start(EXCHANGED, dying(step))
    links = attached(str(service.process.pid))
    scene("send", "www.one.test", 11)
    set_step(step, f"{LOADER} {at}")
    detach_hooks(service)
    service.wait_for("no other hook was tried: the loader process died")
    assert not step.exists(), "the loader died"
    scene("streams", "www.streams.test")
    service.wait_for("udp4 is proved again, at ")
    until(lambda: service.by("dnsprobe_path_verified", "path") == dict.fromkeys(ALL_PATHS, 1))
    scene("send", "www.one.test", 13)
    scene("streams", "www.streams.test")
    assert service.by("dnsprobe_queries_total", "transport") == {"udp": 24, "tcp": 2}
    assert len(attached(str(service.process.pid))) == len(links), "no trial stays attached"
    (keeper,) = children(service.process.pid, "loader_keeper")
    until(lambda: children(keeper) == [])
    assert service.stop() == 0
    assert "stopped: 26 queries counted" in service.err.read_text("utf-8")


@pytest.mark.usefixtures("_nothing_stays")
def test_a_start_whose_matching_process_dies_fails_with_the_reason(tmp_path: Path, step: Path) -> None:
    log = log_of_start(tmp_path, step, f"{MATCHING} call MatchingProcess._build 1")
    assert "the process that builds the rules has died" in log


def test_a_reload_whose_process_dies_leaves_the_old_rules(start: Start, scene: Scene, step: Path) -> None:
    service = start("domains: ['died*.test']", dying(step))
    service.configuration.write_text("domains: ['died*.test', 'new*.test']")
    set_step(step, f"{MATCHING} call MatchingProcess._set_rules 1")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("reload failed, the old rules stay in force: the process that builds the rules has died")
    assert not step.exists(), "the process died"
    scene("send", "died1.test", 7)
    scene("send", "new1.test", 8)
    assert service.by("dnsprobe_queries_total", "domain") == {"died*.test": 7}
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("reloaded: 2 rules")
    scene("send", "new2.test", 9)
    assert service.by("dnsprobe_queries_total", "domain") == {"died*.test": 7, "new*.test": 9}


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="takes strace: run scripts/test")


@needs_strace
@pytest.mark.usefixtures("_nothing_stays")
@pytest.mark.parametrize("call", ["unshare", "listen"])
def test_a_proof_whose_sender_dies_leaves_the_hooks(start: Start, scene: Scene, tmp_path: Path, call: str) -> None:
    """The sender dies before all canaries, or before those over TCP."""
    service = start("domains: [one.test, streams.test]\nprobe: {verify_interval: 1s}")
    links = attached(str(service.process.pid))
    with injecting(service.process.pid, "signal=SIGKILL:when=1", tmp_path, call):  # in each child
        line = service.wait_for("tcp4 is not proved any more: ")
        assert line.endswith("the canary could not be sent: their sender died (-9)")
        scene("send", "www.one.test", 11)
        scene("streams", "www.streams.test")
        assert service.by("dnsprobe_queries_total", "transport") == {"udp": 11, "tcp": 1}
    service.wait_for("tcp4 is proved again")
    until(lambda: service.by("dnsprobe_path_verified", "path") == dict.fromkeys(ALL_PATHS, 1))
    assert attached(str(service.process.pid)) == links
    scene("send", "www.one.test", 13)
    assert service.by("dnsprobe_queries_total", "transport") == {"udp": 24, "tcp": 1}
    assert service.stop() == 0
