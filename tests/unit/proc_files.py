"""Made-up files of /proc."""

import os
from pathlib import Path

from dnsprobe.kernel.clock import TICK_NS
from dnsprobe.model import Process

#: When made-up processes started, in clock ticks since boot.
START = 91990


def stat_line(
    comm: bytes = b"dig", state: str = "S", threads: int = 1, start: int = START, pid: int = 4242, parent: int = 1
) -> bytes:
    """Return the content of a /proc/PID/stat."""
    numbers = f"1 1 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 {threads} 0 {start} 3133440 386 18446744073709551615"
    return f"{pid} (".encode() + comm + f") {state} {parent} {numbers}".encode() + b" 0" * 27 + b"\n"


def make(
    root: Path,
    stat: bytes | None = None,
    cmdline: bytes = b"dig\0www.example.test\0",
    cgroup: bytes = b"0::/system.slice/nginx.service\n",
    exe: bytes | None = b"/usr/bin/dig",
    pid: int = 4242,
) -> None:
    """Write the files of a process, which is :func:`process` if nothing else is given."""
    folder = root / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_bytes(stat_line() if stat is None else stat)
    (folder / "cmdline").write_bytes(cmdline)
    (folder / "cgroup").write_bytes(cgroup)
    if exe is not None:
        os.symlink(exe, bytes(folder / "exe"))


def process(start_ns: int = START * TICK_NS + 1234) -> Process:
    """Return the process that :func:`make` writes files for."""
    return Process(tgid=4242, start_ns=start_ns, comm=b"dig")
