"""A kernel side without a kernel: its maps are dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Generic, TypeVar

from dnsprobe.kernel import abi
from dnsprobe.kernel.maps import CountKey, NameVerdict, PendingKey
from dnsprobe.model import DECIDE, Process
from dnsprobe.names.ruleset import TrieEntry

DIG = Process((1 << 22) + 1, 1_000, b"dig")


def chain_of(process: Process, execs: int = 0, share: int = 0) -> abi.Chain:
    """Return the ancestry of a process that has no parents."""
    return abi.Chain((process,), complete=True, execs=execs, lineage=(process,), lineage_complete=True, share=share)


#: A query of ``dig`` for ``test``, which the kernel matched with a rule.
EVENT = abi.Event(
    time_ns=1,
    name_hash=0,
    repeats=0,
    rule=1,
    generation=1,
    uid=0,
    gid=0,
    net_ns=0,
    qtype=1,
    qclass=1,
    port=53,
    kind=abi.Kind.QUERY,
    transport=0,
    query_id=0,
    server=bytes([127, 0, 0, 1]),
    name=b"\4test\0",
    chain=chain_of(DIG),
)

K = TypeVar("K")
V = TypeVar("V")


class FakeMap(Generic[K, V]):
    """A map; ``entries`` are its content."""

    def __init__(self) -> None:
        self.entries: dict[K, V] = {}

    def items(self) -> Iterator[tuple[K, V]]:
        yield from list(self.entries.items())

    def keys(self) -> Iterator[K]:
        yield from list(self.entries)

    def get_many(self, keys: Iterable[K]) -> Iterator[tuple[K, V | None]]:
        for key in keys:
            yield key, self.entries.get(key)

    def take_many(self, keys: Iterable[K]) -> Iterator[tuple[K, V]]:
        for key in keys:
            if key in self.entries:
                yield key, self.entries.pop(key)

    def delete_many(self, keys: Iterable[K]) -> None:
        for key in keys:
            self.entries.pop(key, None)


class FakeKernel:
    """A probe whose maps a test fills. Without an entry in ``overflow``, the overflow of a rule is 0."""

    def __init__(self) -> None:
        self.generation = 0
        self.lineage_table = SimpleNamespace(hook=None)
        self.counters: FakeMap[CountKey, int] = FakeMap()
        self.pending: FakeMap[PendingKey, int] = FakeMap()
        self.ancestries: FakeMap[tuple[int, int], abi.Chain] = FakeMap()
        self.facts: FakeMap[tuple[int, int, int], abi.Facts] = FakeMap()
        self.names: FakeMap[int, NameVerdict] = FakeMap()
        self.overflow: dict[int, int] = {}
        self.counted = dict.fromkeys(abi.Statistic, 0)
        self.maps = SimpleNamespace(
            counters=self.counters,
            pending=self.pending,
            ancestries=self.ancestries,
            facts=self.facts,
            names=self.names,
            tells_servers=False,
            overflow=SimpleNamespace(read=lambda rules: [(rule, self.overflow.get(rule, 0)) for rule in rules]),
            take_overflow=lambda rules: {rule: self.overflow.pop(rule) for rule in rules if rule in self.overflow},
        )

    def set_rules(self, _entries: Sequence[TrieEntry]) -> None:
        self.generation += 1

    def setting_rules(self, entries: Sequence[TrieEntry]) -> Iterator[Callable[[], None] | None]:
        yield None
        yield lambda: self.set_rules(entries)

    def statistics(self) -> dict[abi.Statistic, int]:
        return self.counted

    def decide(self, decisions: Iterable[tuple[int, bytes, int]]) -> list[int]:
        decided = {
            name_hash: NameVerdict(verdict, self.generation, name)
            for name_hash, name, verdict in decisions
            if name_hash in self.names.entries
        }
        self.names.entries.update(decided)
        return list(decided)

    def count(self, process: Process, rule: int, queries: int = 1, transport: int = 0, server: int = 0) -> None:
        """Count A queries, by default over UDP, and keep the ancestry of the process, as a BPF program does."""
        key = (process.start_ns, process.tgid, rule, 1, transport, server)
        self.counters.entries[key] = self.counters.entries.get(key, 0) + queries
        self._keep(process)

    def count_pending(self, process: Process, name: bytes, queries: int = 1) -> None:
        """Count queries for a name that user space has to decide. The hash of a name is that of Python."""
        self.names.entries.setdefault(hash(name), NameVerdict(DECIDE, self.generation, name))
        key = (process.start_ns, hash(name), process.tgid, self.generation, 1, 0, 0)
        self.pending.entries[key] = self.pending.entries.get(key, 0) + queries
        self._keep(process)

    def _keep(self, process: Process) -> None:
        self.ancestries.entries.setdefault((process.start_ns, process.tgid), chain_of(process))
