"""Who started whom: who is there when dnsprobe starts, and who need not be remembered any more.

Between the two the kernel side follows forks, changes of name and exits by itself (``bpf/process/lineage.h``), and
forgets most processes as they end. What it cannot settle is left to a sweep: a process that had children before
dnsprobe started, and one whose end was missed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from dnsprobe.kernel.abi import COMM_SIZE, TICK_NS, Ancestor, AncestorKey, Statistic
from dnsprobe.model import Process

_SWEEP_SECONDS = 10.0
#: A sweep is due earlier when this share of the map was left to it since the last one.
_SWEEP_FILL = 1 / 8


class Table(Protocol):
    """Where the kernel side keeps lineages: :class:`dnsprobe.kernel.probe.Probe`."""

    def ancestors(self) -> Iterator[tuple[AncestorKey, Ancestor]]:
        """Yield all that are there."""

    def add_ancestors(self, ancestors: Iterable[tuple[AncestorKey, Ancestor]]) -> None:
        """Add those that are not there."""

    def set_ancestors(self, ancestors: Iterable[tuple[AncestorKey, Ancestor]]) -> None:
        """Change those that are there."""

    def forget_ancestors(self, keys: Iterable[AncestorKey]) -> None:
        """Remove some."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process as ``/proc/PID/stat`` has it; ``parent`` is a pid, 0 where there is none."""

    key: AncestorKey
    parent: int
    comm: bytes


def parse_stat(stat: bytes) -> Running | None:
    """Return the process that a ``/proc/PID/stat`` tells of (proc(5)); None where it is cut off or no such file."""
    before, opening, rest = stat.partition(b" (")
    # The comm is in parentheses and may have some itself, and spaces; behind the last one there are only numbers.
    comm, closing, after = rest.rpartition(b") ")
    fields = after.split(b" ", 20)
    try:
        key = AncestorKey(start_ticks=int(fields[19]), tgid=int(before))
        # A kernel thread's has more than a comm can hold: its work is added to it (proc_task_name(), fs/proc/array.c).
        return Running(key, int(fields[1]), comm[: COMM_SIZE - 1]) if opening and closing else None
    except (IndexError, ValueError):
        return None


class Lineage:
    """What user space has to do with the lineages in a table of ``size`` entries.

    ``root`` is where procfs is mounted; ``alive`` tells whether a process is there still; ``clock`` gives seconds that
    never go back.
    """

    def __init__(
        self,
        table: Table,
        size: int,
        alive: Callable[[Process], bool],
        root: str = "/proc",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table, self._alive, self._root, self._clock = table, alive, root, clock
        self._room = size * _SWEEP_FILL
        self._last_sweep = clock()
        self._added, self._left = 0, 0
        self._unneeded: set[AncestorKey] = set()

    def seed(self) -> None:
        """Add who is there, each as a child of the parent that it has now. The kernel follows already."""
        running = {process.key.tgid: process for process in self._running()}
        parents = {process.parent for process in running.values()}
        self._table.add_ancestors(
            (process.key, self._seeded(process, running.get(process.parent), has_children=pid in parents))
            for pid, process in running.items()
        )

    @staticmethod
    def _seeded(process: Running, parent: Running | None, *, has_children: bool) -> Ancestor:
        return Ancestor(
            start_ns=0,
            parent=parent.key if parent else AncestorKey(0, 0),
            children=0,
            exited=False,
            has_others=has_children,
            counted_by_parent=False,
            # It ended while this was read.
            parent_lost=parent is None and process.parent != 0,
            comm=process.comm,
        )

    def _running(self) -> Iterator[Running]:
        for pid in self._pids():
            try:
                process = parse_stat(Path(self._root, str(pid), "stat").read_bytes())
            except OSError:  # gone, or hidden from us
                continue
            if process is not None:
                yield process

    def _pids(self) -> list[int]:
        return [int(name) for name in os.listdir(self._root) if name.isdecimal()]

    def sweep_if_due(self, statistics: Mapping[Statistic, int]) -> bool:
        """Sweep if it is time. Call about once a second. Return whether it was time."""
        added, left = statistics[Statistic.LINEAGE_ADDED], statistics[Statistic.LINEAGE_LEFT]
        crowded = left - self._left > self._room
        # Without new processes since, the last sweep has seen them all, but may have put off what it found.
        waiting = added != self._added or left != self._left or self._unneeded
        if not crowded and not (waiting and self._clock() - self._last_sweep > _SWEEP_SECONDS):
            return False
        self._last_sweep, self._added, self._left = self._clock(), added, left
        self.sweep()
        return True

    def sweep(self) -> None:
        """Forget processes that are gone and from which none that is there descends.

        A descendant may be added while the table is read: what is not needed is forgotten when the next sweep finds the
        same.
        """
        table = dict(self._table.ancestors())
        self._table.set_ancestors(self._mark_missed(table))
        needed: set[AncestorKey] = set()
        for ancestor in table.values():
            key = ancestor.parent
            while not ancestor.exited and key in table and key not in needed:
                needed.add(key)
                key = table[key].parent
        unneeded = {key for key, ancestor in table.items() if ancestor.exited} - needed
        forgotten = unneeded & self._unneeded
        self._table.forget_ancestors(forgotten)
        self._unneeded = unneeded - forgotten

    def _mark_missed(self, table: dict[AncestorKey, Ancestor]) -> Iterator[tuple[AncestorKey, Ancestor]]:
        """Mark those as exited whose exit was missed: nobody has their pid, or somebody else. Yield them."""
        present = set(self._pids())
        latest: dict[int, int] = {}
        for key in table:
            latest[key.tgid] = max(latest.get(key.tgid, 0), key.start_ticks)
        for key, ancestor in table.items():
            if ancestor.exited or (key.tgid in present and key.start_ticks == latest[key.tgid]):
                continue
            if not self._alive(Process(key.tgid, key.start_ticks * TICK_NS, ancestor.comm)):
                # Its children may change in number at this moment: from now on they are not to be relied on.
                table[key] = replace(ancestor, exited=True, has_others=True)
                yield key, table[key]
