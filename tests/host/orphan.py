"""Starts a command in a control group, as a child of pid 1, and waits for its end: ``orphan.py CGROUP COMMAND...``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scenes import lineage

_PATIENCE = 60.0


def start_orphan(run: Callable[[], object]) -> int:
    """Run a function in a process whose parent has ended; return a pipe that has its standard output."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        parent = os.getpid()
        if os.fork() == 0:
            os.dup2(writer, 1)
            os.close(writer)
            os.close(reader)
            while os.getppid() == parent:
                time.sleep(0.001)
            run()
        os._exit(0)
    os.close(writer)
    os.waitpid(middle, 0)
    return reader


def adopters() -> list[str]:
    """Return the comms between pid 1 and an orphan, oldest first: none, unless a subreaper adopts orphans here."""

    def print_ancestors() -> None:
        os.write(1, "\n".join(comm for pid, comm in lineage()[1:] if pid != 1).encode())

    with os.fdopen(start_orphan(print_ancestors)) as output:
        return list(reversed(output.read().splitlines()))


def _remove(group: Path) -> None:
    """Remove a control group, which its last process may be about to leave."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def main(path: str, *command: str) -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    (root,) = (Path(mount[1]) for mount in mounts if mount[2] == "cgroup2")
    group = root / path
    made = [folder for folder in (*reversed(group.parents), group) if not folder.exists()]
    for folder in made:
        folder.mkdir()

    def run() -> None:
        (group / "cgroup.procs").write_text("0")
        os.execvp(command[0], command)

    with os.fdopen(start_orphan(run)) as output:
        output.read()
    for folder in reversed(made):
        _remove(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
