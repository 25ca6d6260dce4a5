"""The lineage of processes: which process started which, even if the starter has ended.

User space adds the processes that run when dnsprobe starts. Then the kernel side follows forks, changes of name and
exits by itself (``bpf/process/lineage.h``), and removes most processes when they end. A sweep removes the others: those
that had children before dnsprobe started, and those whose exit was missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from dnsprobe.kernel.abi import Ancestor, AncestorKey, Statistic
from dnsprobe.kernel.clock import TICK_NS
from dnsprobe.model import Process
from dnsprobe.process.procfs import ProcFS, Stat

_SWEEP_SECONDS = 10.0
#: A sweep is due earlier if, since the last one, processes that ended before their children kept this share of the map.
_SWEEP_FILL = 1 / 8
#: Entries that are looked at in one step of a sweep.
_AT_ONCE = 256


class Table(Protocol):
    """The kernel's table of lineages: :class:`dnsprobe.kernel.lineage_table.LineageTable`."""

    def ancestors(self) -> Iterator[tuple[AncestorKey, Ancestor]]:
        """Yield all entries."""

    def add_ancestors(self, ancestors: Iterable[tuple[AncestorKey, Ancestor]]) -> None:
        """Add entries, unless they exist."""

    def set_ancestors(self, ancestors: Iterable[tuple[AncestorKey, Ancestor]]) -> None:
        """Change entries, if they exist."""

    def forget_ancestors(self, keys: Iterable[AncestorKey]) -> None:
        """Remove entries."""


def _key(stat: Stat) -> AncestorKey:
    return AncestorKey(stat.start_ticks, stat.tgid)


def _seeded(stat: Stat, parent: Stat | None, *, has_children: bool) -> Ancestor:
    return Ancestor(
        start_ns=0,
        parent=_key(parent) if parent else AncestorKey(0, 0),
        children=0,
        exited=False,
        has_others=has_children,
        counted_by_parent=False,
        # The parent ended while /proc was read.
        parent_lost=parent is None and stat.parent != 0,
        comm=stat.comm,
    )


class Lineage:
    """Fills a table of ``size`` entries at the start, and removes entries that the kernel side leaves behind.

    ``clock`` returns seconds and never goes back.
    """

    def __init__(self, table: Table, size: int, procfs: ProcFS, clock: Callable[[], float] = time.monotonic) -> None:
        self._table, self._procfs, self._clock = table, procfs, clock
        self._sweep_early = size * _SWEEP_FILL
        self._last_sweep = clock()
        self._added_before, self._left_before = 0, 0
        self._unneeded: set[AncestorKey] = set()

    def seed(self) -> None:
        """Add all processes, each as a child of its parent at this moment. The kernel side follows forks already."""
        running = {stat.tgid: stat for stat in self._procfs.processes()}
        parents = {stat.parent for stat in running.values()}
        self._table.add_ancestors(
            (_key(stat), _seeded(stat, running.get(stat.parent), has_children=stat.tgid in parents))
            for stat in running.values()
        )

    def is_sweep_due(self, statistics: Mapping[Statistic, int]) -> bool:
        """Return whether it is time for a sweep, which has to follow. Call about once a second."""
        added, left = statistics[Statistic.LINEAGE_ADDED], statistics[Statistic.LINEAGE_LEFT]
        crowded = left - self._left_before > self._sweep_early
        # If nothing was added or left since the last sweep, only the entries that it did not remove yet need another.
        waiting = added != self._added_before or left != self._left_before or self._unneeded
        if not crowded and not (waiting and self._clock() - self._last_sweep > _SWEEP_SECONDS):
            return False
        self._last_sweep, self._added_before, self._left_before = self._clock(), added, left
        return True

    def sweeping(self) -> Iterator[None]:
        """Do what :meth:`sweep` does, and yield after each step."""
        table: dict[AncestorKey, Ancestor] = {}
        for at, (key, ancestor) in enumerate(self._table.ancestors()):
            table[key] = ancestor
            if at % _AT_ONCE == 0:
                yield
        yield from self._marking_missed_exits(table)
        needed: set[AncestorKey] = set()
        for at, ancestor in enumerate(table.values()):
            key = ancestor.parent
            while not ancestor.exited and key in table and key not in needed:
                needed.add(key)
                key = table[key].parent
            if at % _AT_ONCE == 0:
                yield
        unneeded = {key for key, ancestor in table.items() if ancestor.exited} - needed
        removed = unneeded & self._unneeded
        self._table.forget_ancestors(removed)
        self._unneeded = unneeded - removed

    def sweep(self) -> None:
        """Remove processes that have ended and have no running descendants.

        A descendant can be added while the table is read. So an entry is removed only if two sweeps in a row find that
        it is not needed.
        """
        for _ in self.sweeping():
            pass

    def _marking_missed_exits(self, table: dict[AncestorKey, Ancestor]) -> Iterator[None]:
        """Mark the processes whose exit the kernel side missed: their pid is free or reused."""
        present = set(self._procfs.pids())
        latest: dict[int, int] = {}
        for key in table:
            latest[key.tgid] = max(latest.get(key.tgid, 0), key.start_ticks)
        yield
        for at, (key, ancestor) in enumerate(table.items()):
            if at % _AT_ONCE == 0:
                yield
            if ancestor.exited or (key.tgid in present and key.start_ticks == latest[key.tgid]):
                continue
            if not self._procfs.alive(Process(key.tgid, key.start_ticks * TICK_NS, ancestor.comm)):
                # The kernel side may change the number of children at this moment, so nothing relies on it any more.
                table[key] = replace(ancestor, exited=True, has_others=True)
                self._table.set_ancestors([(key, table[key])])
