"""The one parser of ``/proc`` (proc(5)).

All facts are those of the moment of reading. Each function checks the start time of the process, so that a process
never gets the facts of another one that has its pid now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dnsprobe.kernel.abi import CHAIN_SIZE, COMM_SIZE
from dnsprobe.kernel.clock import TICK_NS
from dnsprobe.model import Ancestry, Identity, Process
from dnsprobe.process.patience import Patience

_CMDLINE_BYTES = 4096
#: The path of a cgroup has no limit, and each hierarchy of version 1 has a line.
_CGROUP_BYTES = 65536
#: One line of 52 numbers and a comm of at most 64 bytes.
_STAT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Stat:
    """A process as ``/proc/PID/stat`` shows it.

    ``parent`` is a pid, 0 if there is none. ``start_ticks`` is the start in clock ticks (TICK_NS) since boot, rounded
    down (nsec_to_clock_t(), kernel/time/time.c).
    """

    tgid: int
    comm: bytes
    state: bytes
    parent: int
    threads: int
    start_ticks: int

    @property
    def can_send(self) -> bool:
        """False for a zombie. A group leader that ended is one too, but its other threads can still send."""
        return self.state not in {b"Z", b"X"} or self.threads > 1


def parse_stat(stat: bytes) -> Stat | None:
    """Return what a ``/proc/PID/stat`` shows, None if it is cut off or not such a file."""
    before, opening, rest = stat.partition(b" (")
    # The comm is in parentheses and can contain parentheses and spaces. Only numbers follow the last one.
    comm, closing, after = rest.rpartition(b") ")
    fields = after.split(b" ", 20)
    if not opening or not closing:
        return None
    try:
        return Stat(
            tgid=int(before),
            # The kernel appends the work of a kernel thread to its comm (proc_task_name(), fs/proc/array.c).
            comm=comm[: COMM_SIZE - 1],
            state=fields[0],
            parent=int(fields[1]),
            threads=int(fields[17]),
            start_ticks=int(fields[19]),
        )
    except (IndexError, ValueError):
        return None


def cgroup_path(cgroup: bytes) -> str | None:
    """Return the path in the unified hierarchy, or in systemd's own one, from ``/proc/PID/cgroup`` (cgroups(7))."""
    unified = named = None
    for line in cgroup.split(b"\n"):
        hierarchy, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if hierarchy == b"0" and not controllers:
            unified = path
        elif controllers == b"name=systemd":
            named = path
    # If systemd uses version 1, version 2 may be mounted as well, with every process in its root.
    path = named if named and unified in {None, b"/"} else unified or b""
    return os.fsdecode(path.removesuffix(b" (deleted)")) or None


def _read(path: str, limit: int) -> bytes:
    # A read returns at most what fits the buffer of seq_file, so it takes several for a long file.
    content = b""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while len(content) < limit and (more := os.read(fd, limit - len(content))):
            content += more
    finally:
        os.close(fd)
    return content


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return pid > 0  # 0, the idle task, would mean our own process group


class ProcFS:
    """Reads ``/proc``, mounted at ``root``, which has to be that of the initial pid and time namespaces.

    ``clock`` returns seconds and never goes back.
    """

    def __init__(self, root: str = "/proc", clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        # The kernel takes a command line from the memory of the process. A process can map a file of a file system in
        # user space there (FUSE), which answers when it likes.
        self._cmdlines: Patience[bytes] = Patience("cmdline", clock)
        #: The inode number of our own user namespace, 0 if it is not known.
        self.own_user_ns = self._user_ns("self")

    def pids(self) -> list[int]:
        """Return the pids of all processes."""
        return [int(name) for name in os.listdir(self._root) if name.isdecimal()]

    def processes(self) -> Iterator[Stat]:
        """Yield all processes, except those that end meanwhile or are hidden from us."""
        for pid in self.pids():
            if stat := self._stat(pid):
                yield stat

    def comm(self, pid: int) -> bytes | None:
        """Return the name of a process, None if it is gone or hidden from us."""
        stat = self._stat(pid)
        return None if stat is None else stat.comm

    def _stat(self, pid: int) -> Stat | None:
        try:
            return parse_stat(self._stat_line(pid))
        except OSError:  # gone, or hidden from us
            return None

    def _stat_line(self, pid: int) -> bytes:
        # One read is enough: the line fits the buffer of seq_file, which has at least a page.
        fd = os.open(f"{self._root}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _STAT_BYTES)
        finally:
            os.close(fd)

    def alive(self, process: Process) -> bool:
        """Return whether a process can still send: its pid is neither free nor reused nor that of a zombie.

        If this is not known (no permission, no descriptor left), the process counts as alive.
        """
        try:
            stat = parse_stat(self._stat_line(process.tgid))
        except ProcessLookupError:
            return False
        except FileNotFoundError:
            # Gone, or hidden: by hidepid= (proc(5)) without CAP_SYS_PTRACE, or because the root is no procfs.
            return _exists(process.tgid)
        except OSError:
            return True
        return stat is not None and stat.can_send and stat.start_ticks == process.start_ns // TICK_NS

    def ancestry(self, process: Process) -> Ancestry | None:
        """Return a process and its ancestors as they are now, None if it is gone. Start times of ancestors are 0.

        The kernel side keeps the ancestry of the moment of the send, which is better. This function is for processes
        for which the kernel side had no room: it reads one file for each ancestor.
        """
        chain: list[Process] = []
        complete = False
        stat = self._stat(process.tgid)
        while stat is not None and len(chain) < CHAIN_SIZE:
            chain.append(Process(stat.tgid, 0 if chain else process.start_ns, stat.comm))
            complete = stat.parent == 0
            parent = None if complete else self._stat(stat.parent)
            # A parent that started later has a pid that was reused.
            stat = parent if parent and parent.start_ticks <= stat.start_ticks else None
        # Checked last: if the process still has the pid, it had the pid during all reads.
        return Ancestry(tuple(chain), complete) if chain and self.alive(process) else None

    def identity(self, process: Process) -> Identity:
        """Return executable, command line and cgroup of a process as they are now; nothing of one that is gone."""
        folder = f"{self._root}/{process.tgid}"
        try:
            cgroup = cgroup_path(_read(f"{folder}/cgroup", _CGROUP_BYTES))
        except (FileNotFoundError, ProcessLookupError):
            return Identity()
        except OSError:
            cgroup = None
        exe = self._exe(folder)
        cmdline = self._cmdlines.call(lambda: _read(f"{folder}/cmdline", _CMDLINE_BYTES)) or None
        user_ns = self._user_ns(process.tgid)
        # Checked last: if the process still has the pid, it had the pid during all reads.
        if not self.alive(process):
            return Identity()
        other_user_ns = user_ns if user_ns not in {0, self.own_user_ns} else None
        return Identity(exe=exe, cmdline=cmdline, cgroup=cgroup, user_ns=other_user_ns)

    def _user_ns(self, pid: int | str) -> int:
        try:
            return os.stat(f"{self._root}/{pid}/ns/user").st_ino
        except OSError:  # a kernel without namespaces of users, or no permission
            return 0

    @staticmethod
    def _exe(folder: str) -> str | None:
        try:
            return os.readlink(f"{folder}/exe")
        except OSError:  # a kernel thread, or no permission
            return None
