"""Lineages: which processes are added at the start, and which are removed. Table and /proc are made up."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from proc_files import stat_line

from dnsprobe.kernel.abi import Ancestor, AncestorKey, Statistic
from dnsprobe.kernel.clock import TICK_NS
from dnsprobe.model import Process
from dnsprobe.process.lineage import Lineage
from dnsprobe.process.procfs import ProcFS

NOBODY = AncestorKey(0, 0)


def key(pid: int, start: int = 100) -> AncestorKey:
    return AncestorKey(start, pid)


def ancestor(parent: AncestorKey = NOBODY, *, exited: bool = False, comm: bytes = b"sh") -> Ancestor:
    return Ancestor(0, parent, 0, exited, False, False, False, comm)


class Table:
    """A table like the kernel's. Entries that are ``hidden`` were added while the table was read."""

    def __init__(self, **entries: Ancestor) -> None:
        self.entries = {key(int(name[1:])): entry for name, entry in entries.items()}
        self.hidden: set[AncestorKey] = set()
        self.reads = 0

    def ancestors(self) -> Iterator[tuple[AncestorKey, Ancestor]]:
        self.reads += 1
        yield from [(at, entry) for at, entry in self.entries.items() if at not in self.hidden]

    def add_ancestors(self, ancestors: Iterable[tuple[AncestorKey, Ancestor]]) -> None:
        for at, entry in ancestors:
            self.entries.setdefault(at, entry)

    def set_ancestors(self, ancestors: Iterable[tuple[AncestorKey, Ancestor]]) -> None:
        self.entries.update((at, entry) for at, entry in ancestors if at in self.entries)

    def forget_ancestors(self, keys: Iterable[AncestorKey]) -> None:
        for at in keys:
            del self.entries[at]

    @property
    def pids(self) -> set[int]:
        return {at.tgid for at in self.entries}


def write(root: Path, *lines: bytes) -> None:
    for line in lines:
        folder = root / line.split()[0].decode()
        folder.mkdir()
        (folder / "stat").write_bytes(line)


def stat(pid: int, parent: int, comm: bytes = b"sh", start: int = 100) -> bytes:
    return stat_line(comm=comm, start=start, pid=pid, parent=parent)


class Files(ProcFS):
    """Made-up files: a process without a file is gone, even if a process of this host has its pid."""

    def alive(self, process: Process) -> bool:
        return process.tgid in self.pids() and super().alive(process)


def make(table: Table, root: Path, clock: list[float] | None = None, size: int = 80) -> Lineage:
    now = clock or [0.0]
    return Lineage(table, size, Files(str(root)), lambda: now[0])


def test_seed_adds_each_process_with_its_parent(tmp_path: Path) -> None:
    write(
        tmp_path, stat(1, 0, b"init", start=1), stat(20, 1, b"shell"), stat(30, 20, b"dig", start=300), b"40 (cut off"
    )
    (tmp_path / "50").mkdir()  # gone while it is read
    write(tmp_path, stat(60, 50, b"left"))
    (tmp_path / "self").mkdir()
    table = Table()
    make(table, tmp_path).seed()
    seeded = Ancestor(0, NOBODY, 0, False, False, False, False, b"")
    assert table.entries == {
        key(1, 1): replace(seeded, comm=b"init", has_others=True),
        key(20): replace(seeded, comm=b"shell", has_others=True, parent=key(1, 1)),
        key(30, 300): replace(seeded, comm=b"dig", parent=key(20)),
        # The parent has no entry: pid 50 has a child, but its start time is not known.
        key(60): replace(seeded, comm=b"left", parent_lost=True),
    }


def test_seed_keeps_entries_of_the_kernel_side(tmp_path: Path) -> None:
    write(tmp_path, stat(20, 1))
    forked = replace(ancestor(key(17)), start_ns=100 * TICK_NS + 1)
    table = Table(p20=forked)
    make(table, tmp_path).seed()
    assert table.entries == {key(20): forked}


def test_sweep_keeps_processes_with_running_descendants(tmp_path: Path) -> None:
    write(tmp_path, stat(5, 1))
    table = Table(
        p2=ancestor(exited=True),
        p3=ancestor(key(2), exited=True),
        p4=ancestor(key(3), exited=True),
        p5=ancestor(key(4)),
        p6=ancestor(key(2), exited=True),
        p7=ancestor(key(6), exited=True),
        p8=ancestor(key(9), exited=True),
        p9=ancestor(key(8), exited=True),
    )
    lineage = make(table, tmp_path)
    lineage.sweep()
    assert table.pids == {2, 3, 4, 5, 6, 7, 8, 9}
    lineage.sweep()
    assert table.pids == {2, 3, 4, 5}
    table.entries[key(5)] = ancestor(key(4), exited=True)
    lineage.sweep()
    assert table.pids == {2, 3, 4, 5}
    lineage.sweep()
    assert table.pids == set()


def test_a_descendant_that_is_added_while_the_table_is_read_keeps_its_ancestor(tmp_path: Path) -> None:
    write(tmp_path, stat(3, 1))
    table = Table(p2=ancestor(exited=True), p3=ancestor(key(2)))
    table.hidden = {key(3)}
    lineage = make(table, tmp_path)
    lineage.sweep()
    table.hidden = set()
    lineage.sweep()
    lineage.sweep()
    assert table.pids == {2, 3}


def test_a_missed_exit_is_marked(tmp_path: Path) -> None:
    write(tmp_path, stat(3, 1, start=300), stat(4, 1))
    table = Table(p2=ancestor(), p3=ancestor(), p4=ancestor(key(2)))
    table.entries[key(3, 300)] = ancestor()
    lineage = make(table, tmp_path)
    lineage.sweep()
    gone = {at for at, entry in table.entries.items() if entry.exited}
    # The pid of one is free, and that of the other belongs to another process.
    assert gone == {key(2), key(3)}
    assert all(table.entries[at].has_others for at in gone)
    lineage.sweep()
    assert set(table.entries) == {key(2), key(4), key(3, 300)}


class Hidden(ProcFS):
    def alive(self, process: Process) -> bool:
        return True


def test_a_hidden_process_is_not_gone(tmp_path: Path) -> None:
    table = Table(p2=ancestor())
    lineage = Lineage(table, 80, Hidden(str(tmp_path)))
    lineage.sweep()
    lineage.sweep()
    assert table.entries == {key(2): ancestor()}


def statistics(added: int, left: int) -> dict[Statistic, int]:
    return {**dict.fromkeys(Statistic, 0), Statistic.LINEAGE_ADDED: added, Statistic.LINEAGE_LEFT: left}


def sweep_if_due(lineage: Lineage, now: dict[Statistic, int]) -> bool:
    due = lineage.is_sweep_due(now)
    if due:
        lineage.sweep()
    return due


def test_a_sweep_is_due_after_a_time_or_if_the_map_fills(tmp_path: Path) -> None:
    table, clock = Table(), [0.0]
    lineage = make(table, tmp_path, clock)
    assert not sweep_if_due(lineage, statistics(0, 0))
    assert not sweep_if_due(lineage, statistics(1000, 10))
    assert sweep_if_due(lineage, statistics(1000, 11))  # more than an eighth of 80
    assert not sweep_if_due(lineage, statistics(1001, 11))
    clock[0] = 10.5
    assert sweep_if_due(lineage, statistics(1001, 11))
    clock[0] = 100.0
    assert not sweep_if_due(lineage, statistics(1001, 11))
    assert table.reads == 2


def test_entries_that_a_sweep_put_off_are_swept_again(tmp_path: Path) -> None:
    table, clock = Table(p2=ancestor(exited=True)), [11.0]
    lineage = make(table, tmp_path, clock)
    clock[0] = 22.0
    assert sweep_if_due(lineage, statistics(1, 1))
    clock[0] = 33.0
    assert sweep_if_due(lineage, statistics(1, 1))
    assert table.pids == set()
    clock[0] = 44.0
    assert not sweep_if_due(lineage, statistics(1, 1))
