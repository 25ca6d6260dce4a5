"""From a process to its executable, command line, user, unit and cgroup.

What the kernel side told of the moment of the send comes first. What it could not tell is read from ``/proc``
(proc(5)), and checked against what it did: against the start time, so that a reused pid never lends its name to a
process that is gone, and against the rest, so that a program that ran later does not either.
"""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dnsprobe.kernel.abi import CMDLINE_SIZE, Facts, PathNames
from dnsprobe.kernel.abi import COMM_SIZE as _COMM_SIZE
from dnsprobe.model import Ancestry, Identity, Process
from dnsprobe.process.cgroup import container_of, slice_of

#: ``/proc/PID/stat`` counts in these; the kernel rounds down (nsec_to_clock_t(), kernel/time/time.c).
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_CMDLINE_BYTES = 4096
#: Paths of cgroups have no limit of their own; hierarchies of version 1 have a line each.
_CGROUP_BYTES = 65536
#: One line of 52 numbers and a comm of at most 64 bytes.
_STAT_BYTES = 1024

#: The ids of systemd's DynamicUser= are handed to another service soon after they are free: a name is not kept long.
_USER_SECONDS = 60.0
_USERS = 256

#: A unit's name, neither too long nor a template (unit_name_is_valid(), systemd's src/basic/unit-name.c).
_UNIT = re.compile(
    r"(?=.{1,255}\Z)[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?"
    r"\.(service|scope|slice|socket|target|device|mount|automount|swap|timer|path)"
)


def _read(path: str, limit: int) -> bytes:
    # seq_file hands out what fits its buffer, so one read is not always the whole file.
    content = b""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while len(content) < limit and (more := os.read(fd, limit - len(content))):
            content += more
    finally:
        os.close(fd)
    return content


def _started(stat: bytes) -> int | None:
    """Return the start time in ``/proc/PID/stat``, in clock ticks since boot; None where only a zombie is left."""
    # The comm is in parentheses and may have some itself, and spaces; behind the last one there are only numbers.
    fields = stat[stat.rfind(b")") + 2 :].split(b" ", 20)
    try:
        state, threads, start = fields[0], int(fields[17]), int(fields[19])
    except (IndexError, ValueError):
        return None
    # A leader that is gone before its threads is a zombie, too, but its threads may still ask.
    if state in {b"Z", b"X"} and threads <= 1:
        return None
    return start


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return pid > 0  # 0, the idle task, would mean our own process group


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
    # Where systemd keeps to version 1, version 2 may be mounted all the same, with every process in its root.
    path = named if named and unified in {None, b"/"} else unified or b""
    return os.fsdecode(path.removesuffix(b" (deleted)")) or None


def unit_of(cgroup: str) -> str | None:
    """Return the systemd unit that a cgroup belongs to, as sd_pid_get_unit(3) does: the first component below slices.

    What is further down was delegated to that unit, which may name it as it likes.
    """
    for component in cgroup.split("/"):
        name = component.removeprefix("_")  # systemd's escape where the kernel has a file of that name
        unit = name if _UNIT.fullmatch(name) else None
        if component and not (unit and unit.endswith(".slice")):
            return unit
    return None


#: Of a process that the kernel side told nothing of.
_NOTHING = Facts(None, 0, 0, PathNames((), whole=False), PathNames((), whole=False), b"")

#: In front of a path whose first names are not known.
_CUT = "..."


def _path(path: PathNames) -> str | None:
    if not path.names and not path.whole:
        return None
    return "/".join(["" if path.whole else _CUT, *map(os.fsdecode, path.names)]) or "/"


def _ends_as(path: str, told: PathNames) -> bool:
    return not told.names or os.fsencode(os.path.basename(path)) == told.names[-1]


def _is_whole(cmdline: bytes) -> bool:
    # What setproctitle(3) has no room for among the arguments goes on behind them, without a NUL where they end
    # (get_mm_cmdline(), fs/proc/base.c).
    return 0 < len(cmdline) < CMDLINE_SIZE and cmdline.endswith(b"\0")


def _complete(told: Identity, read: Identity, facts: Facts) -> Identity:
    """Return what the kernel side told with what was read of it afterwards, where the one goes on from the other."""
    added: dict[str, Any] = {}
    same_program = read.exe is None or _ends_as(read.exe.removesuffix(" (deleted)"), facts.exe)
    if read.exe and not facts.exe.whole and same_program:
        added["exe"] = read.exe
    goes_on = not _is_whole(facts.cmdline) and (read.cmdline or b"").startswith(facts.cmdline)
    if read.cmdline and goes_on and same_program:
        added["cmdline"] = read.cmdline
    if read.cgroup and not (facts.cgroup.whole and facts.cgroup.names) and _ends_as(read.cgroup, facts.cgroup):
        added["cgroup"] = read.cgroup
    return replace(told, **added, from_procfs=frozenset(added))


def _located(identity: Identity) -> Identity:
    """Return an identity with what its control group says."""
    cgroup = identity.cgroup
    if not cgroup or cgroup.startswith(_CUT):
        return identity
    return replace(identity, unit=unit_of(cgroup), slice=slice_of(cgroup), container=container_of(cgroup))


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


class ProcFS:
    """What ``/proc`` tells about processes.

    ``root`` is where it is mounted; it has to be that of the initial pid and time namespace. ``user_name`` gives a
    user id its name or None, and is asked again after a minute of ``clock`` (seconds).
    """

    def __init__(
        self,
        root: str = "/proc",
        user_name: Callable[[int], str | None] = _user_name,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._user_name = user_name
        self._clock = clock
        self._users: dict[int, tuple[float, str | None]] = {}

    def alive(self, process: Process) -> bool:
        """Tell whether the process can still ask: its pid is not gone, not reused, and not a zombie's.

        Where that cannot be told (no permission, no descriptor left), it counts as alive.
        """
        try:
            fd = os.open(f"{self._root}/{process.tgid}/stat", os.O_RDONLY | os.O_CLOEXEC)
            try:
                stat = os.read(fd, _STAT_BYTES)
            finally:
                os.close(fd)
        except ProcessLookupError:
            return False
        except FileNotFoundError:
            # Gone, or hidden from us: without CAP_SYS_PTRACE by hidepid= (proc(5)), or because this is no procfs.
            return _exists(process.tgid)
        except OSError:
            return True
        return _started(stat) == process.start_ns // _TICK_NS

    def identify(self, process: Process, facts: Facts | None) -> Identity:
        """Return what is known about a process, but not its user: what the kernel side told, completed from ``/proc``.

        Without ``facts``, all is of the moment of reading: a process that has called execve(2) since its query shows
        its new executable, and of one that is gone, nothing is known.
        """
        facts = facts or _NOTHING
        told = Identity(
            exe=_path(facts.exe),
            cmdline=facts.cmdline or None,
            # Without names it may be the root, or a host that keeps to version 1 of cgroups.
            cgroup=_path(facts.cgroup) if facts.cgroup.names else None,
            loginuid=facts.loginuid,
            pid_ns=facts.pid_ns or None,
            mnt_ns=facts.mnt_ns or None,
        )
        if not (facts.exe.whole and facts.cgroup.whole and told.cgroup and _is_whole(facts.cmdline)):
            told = _complete(told, self._read_all(process), facts)
        return _located(told)

    def _read_all(self, process: Process) -> Identity:
        folder = f"{self._root}/{process.tgid}"
        try:
            cgroup = cgroup_path(_read(f"{folder}/cgroup", _CGROUP_BYTES))
        except (FileNotFoundError, ProcessLookupError):
            return Identity()
        except OSError:
            cgroup = None
        exe = self._exe(folder)
        try:
            cmdline = _read(f"{folder}/cmdline", _CMDLINE_BYTES) or None
        except OSError:
            cmdline = None
        # Last, for it vouches for all that was read before: who holds the pid now has held it since its start.
        if not self.alive(process):
            return Identity()
        return Identity(exe=exe, cmdline=cmdline, cgroup=cgroup)

    def ancestry(self, process: Process) -> Ancestry | None:
        """Return a process and its ancestors as they are now, None if it is gone; start times of ancestors are 0.

        For a process whose tree the kernel side had no room for: what it tells is better, for it is of the moment of
        the send.
        """
        import psutil  # noqa: PLC0415 - a megabyte that most runs never need

        chain = []
        try:
            asker = psutil.Process(process.tgid)
            for step in (asker, *asker.parents()):
                with step.oneshot():
                    # psutil completes a name that the kernel cut off; a tree has the kernel's.
                    name = os.fsencode(step.name())[: _COMM_SIZE - 1]
                chain.append(Process(step.pid, process.start_ns if step is asker else 0, name))
        except psutil.Error:
            return None
        # Last, as in identify(): the pid was not reused meanwhile.
        return Ancestry(tuple(chain)) if self.alive(process) else None

    @staticmethod
    def _exe(folder: str) -> str | None:
        try:
            return os.readlink(f"{folder}/exe")
        except OSError:  # a kernel thread, or no permission
            return None

    def user(self, uid: int) -> str | None:
        """Return the name of a user id, None if it has none."""
        now = self._clock()
        until, name = self._users.get(uid, (now, None))
        if until <= now:
            if len(self._users) >= _USERS:
                self._users.clear()
            name = self._user_name(uid)
            self._users[uid] = now + _USER_SECONDS, name
        return name
