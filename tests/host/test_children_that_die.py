"""The children of the daemon end at each step of their work: the daemon fails with the reason, and nothing stays."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, PATIENCE, PROGRAM, Service
from test_lifecycle import until
from test_proof_under_attack import BPF

Scene = Callable[..., Any]
Start = Callable[..., Service]

LOADER = "dnsprobe.kernel.loader"
#: include/uapi/linux/bpf.h
PROG_GET_NEXT_ID, LINK_GET_NEXT_ID = 11, 31


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


def set_step(step: Path, text: str) -> None:
    """Write the file with the step. A reader sees either no file or all of it."""
    new = step.with_suffix(".new")
    new.write_text(text, "ascii")
    new.rename(step)


def run(folder: Path, prefix: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to end by itself."""
    (folder / "c.yaml").write_text("domains: ['died*.test']")
    command = [str(PROGRAM), "run", "--config", str(folder / "c.yaml"), "--listen", "127.0.0.1:0"]
    command += ["--log-target", "console"]
    return subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=PATIENCE, check=False)


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
    set_step(step, f"{LOADER} {at}")
    done = run(tmp_path, dying(step))
    assert not step.exists(), "the loader died"
    assert done.returncode == 1
    assert "the loader process died" in done.stderr
    assert "ready" not in done.stderr
    assert "Traceback" not in done.stderr
