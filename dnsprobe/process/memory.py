"""The memory that the control group of this process may use, and how much of it is used.

Kernel documentation: Documentation/admin-guide/cgroup-v2.rst, and Documentation/admin-guide/cgroup-v1/memory.rst for
hosts whose memory controller is still that of version 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")
#: The files of both versions: what is used, and the limits.
_USED = ("memory.current", "memory.usage_in_bytes")
_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
#: Lines of ``memory.stat`` with what the kernel can take back at any time: the cache of files. Version 1 has numbers
#: with and without the groups below.
_CACHE = (("inactive_file", "active_file"), ("total_inactive_file", "total_active_file"))
#: Version 1 writes a number near this in place of "no limit".
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Memory:
    """Octets that a control group uses, without cached files, and the octets that it may use."""

    used: int
    limit: int


def read_memory(proc: Path = Path("/proc")) -> Memory | None:
    """Return the memory of the nearest control group that has a limit: ours, or one above it. None if none has one."""
    for folder in _groups(proc / "self"):
        memory = _read(folder)
        if memory is not None:
            return memory
    return None


def _groups(process: Path) -> Iterator[Path]:
    """Yield the folders of our control group and of those above it, as the memory controller sees them."""
    try:
        mounts = [line.split() for line in (process / "mounts").read_text("utf-8", "surrogateescape").splitlines()]
        groups = [
            line.split(":", 2) for line in (process / "cgroup").read_text("utf-8", "surrogateescape").splitlines()
        ]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        for _, at, kind, options, *_ in mounts:
            if kind == "cgroup2" if not controllers else kind == "cgroup" and "memory" in options.split(","):
                root = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), at))
                yield from _folders(root, path)
                break


def _folders(root: Path, path: str) -> Iterator[Path]:
    below = [part for part in path.split("/") if part]
    # In a control group namespace, a mount may begin below the root, and a path may lead above the namespace.
    while below and (".." in below or not root.joinpath(*below).is_dir()):
        below = below[1:]
    while below:
        yield root.joinpath(*below)
        below.pop()
    yield root


def _read(folder: Path) -> Memory | None:
    limits = [limit for limit in _numbers(folder, _LIMITS) if limit < _NO_LIMIT]
    used = _numbers(folder, _USED)
    if not limits or not used:
        return None
    limit = min(limits)
    # The kernel adds up the numbers of memory.stat anew, so they are read only if they may matter.
    cached = _cached(folder) if used[0] > limit // 2 else 0
    return Memory(max(used[0] - cached, 0), limit)


def _numbers(folder: Path, names: Sequence[str]) -> list[int]:
    numbers = []
    for name in names:
        try:
            text = (folder / name).read_text("ascii").strip()
        except OSError:
            continue
        # Without a limit, the text is "max".
        if text.isdigit():
            numbers.append(int(text))
    return numbers


def _cached(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
    except OSError:
        return 0
    numbers = {name: int(value) for name, value in (line.split() for line in lines) if value.isdigit()}
    return max(sum(numbers.get(name, 0) for name in names) for names in _CACHE)
