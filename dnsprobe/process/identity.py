"""The identity of a process: executable, command line, cgroup with its unit, slice and container.

Facts from the kernel side come first, because it reads them at the moment of the send. Facts that it could not read
whole are completed from ``/proc``, but only if both agree, so that a program that the process runs later adds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dnsprobe.kernel.abi import CMDLINE_SIZE, Facts, PathNames
from dnsprobe.model import Identity, Process
from dnsprobe.process.cgroup import container_of, slice_of, unit_of

#: For a process whose facts the kernel side did not keep.
_NOTHING = Facts(None, 0, 0, 0, 0, PathNames((), whole=False), PathNames((), whole=False), b"")

#: The start of a path whose first names are not known.
_CUT = "..."


def identify(
    process: Process, facts: Facts | None, read: Callable[[Process], Identity], own_user_ns: int = 0
) -> Identity:
    """Return the identity of a process without its user: the kernel side's facts, completed from ``/proc``.

    ``read`` reads ``/proc``: executable, command line and cgroup as they are now. Without ``facts``, everything comes
    from there: a process that has called execve(2) since its query has its new executable, and nothing is known of a
    process that has ended. ``own_user_ns`` is the inode number of dnsprobe's user namespace.
    """
    facts = facts or _NOTHING
    identity = Identity(
        exe=_path(facts.exe),
        cmdline=facts.cmdline or None,
        # A path without names is the root, or that of a host that uses cgroups of version 1.
        cgroup=_path(facts.cgroup) if facts.cgroup.names else None,
        loginuid=facts.loginuid,
        pid_ns=facts.pid_ns or None,
        mnt_ns=facts.mnt_ns or None,
        user_ns=next((ns for ns in (facts.user_ns, facts.exe_user_ns) if ns not in {0, own_user_ns}), None),
    )
    if not (facts.exe.whole and facts.cgroup.whole and identity.cgroup and _is_whole(facts.cmdline)):
        identity = _completed(identity, facts, read(process))
    return _located(identity)


def _path(path: PathNames) -> str | None:
    if not path.names and not path.whole:
        return None
    return "/".join(["" if path.whole else _CUT, *map(os.fsdecode, path.names)]) or "/"


def _ends_as(path: str, known: PathNames) -> bool:
    return not known.names or os.fsencode(os.path.basename(path)) == known.names[-1]


def _is_whole(cmdline: bytes) -> bool:
    # A title of setproctitle(3) that is longer than the arguments continues behind them. The arguments then do not end
    # with a NUL (get_mm_cmdline(), fs/proc/base.c).
    return 0 < len(cmdline) < CMDLINE_SIZE and cmdline.endswith(b"\0")


def _completed(identity: Identity, facts: Facts, read: Identity) -> Identity:
    """Return an identity with those values from ``/proc`` that continue what the kernel side knows."""
    added: dict[str, Any] = {}
    same_program = read.exe is None or _ends_as(read.exe.removesuffix(" (deleted)"), facts.exe)
    if read.exe and not facts.exe.whole and same_program:
        added["exe"] = read.exe
    continues = not _is_whole(facts.cmdline) and (read.cmdline or b"").startswith(facts.cmdline)
    if read.cmdline and continues and same_program:
        added["cmdline"] = read.cmdline
    if read.cgroup and not (facts.cgroup.whole and facts.cgroup.names) and _ends_as(read.cgroup, facts.cgroup):
        added["cgroup"] = read.cgroup
    if read.user_ns and not facts.user_ns:
        added["user_ns"] = read.user_ns
    return replace(identity, **added, from_procfs=frozenset(added))


def _located(identity: Identity) -> Identity:
    """Return an identity with the unit, slice and container that its cgroup shows."""
    cgroup = identity.cgroup
    if not cgroup or cgroup.startswith(_CUT):
        return identity
    return replace(identity, unit=unit_of(cgroup), slice=slice_of(cgroup), container=container_of(cgroup))
