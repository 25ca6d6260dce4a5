"""The kernel side of lineage tracking: the map of processes, and the hook whose programs keep it up to date."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from dnsprobe.kernel.abi import Ancestor, AncestorKey, Statistic
from dnsprobe.kernel.hooks import Hook
from dnsprobe.kernel.maps import Maps


class LineageTable:
    """Processes whose lineage is tracked, and which process forked each of them.

    ``hook`` is None as long as tracking is off. ``problem`` is the reason if the kernel does not allow it.
    """

    def __init__(self, maps: Maps) -> None:
        self._map, self._statistics = maps.ancestors, maps.statistics
        self.hook: Hook | None = None
        self.problem = ""
        self._refused = 0
        self._missed_before_close = 0

    def ancestors(self) -> Iterator[tuple[AncestorKey, Ancestor]]:
        """Yield all processes."""
        return self._map.items()

    def add_ancestors(self, ancestors: Iterable[tuple[AncestorKey, Ancestor]]) -> None:
        """Add processes that are not in the table yet. Those that find no room are counted in :meth:`full`."""
        self._refused += self._map.insert_many(ancestors)

    def set_ancestors(self, ancestors: Iterable[tuple[AncestorKey, Ancestor]]) -> None:
        """Change processes that are in the table. Others are ignored."""
        self._map.update_many(ancestors)

    def forget_ancestors(self, keys: Iterable[AncestorKey]) -> None:
        """Delete processes, to make room for others."""
        self._map.delete_many(keys)

    def full(self) -> int:
        """Return how many processes are not tracked, because the table was full."""
        ((_, refused_by_kernel),) = self._statistics.read([Statistic.LINEAGE_FULL])
        return refused_by_kernel + self._refused

    def missed_runs(self) -> int:
        """Return how many forks, renames and exits were missed, because another BPF program ran on that CPU."""
        return self._missed_before_close + (self.hook.missed_runs() if self.hook else 0)

    def close(self) -> None:
        """Detach. The table stays readable, and so do the numbers."""
        if self.hook is not None:
            with contextlib.suppress(OSError):
                self._missed_before_close = self.missed_runs()
            self.hook.close()
