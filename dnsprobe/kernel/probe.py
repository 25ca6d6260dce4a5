"""The kernel side as one thing: its maps, its hooks, the proof that they work, what they counted.

Data flows out of here as the structs of :mod:`dnsprobe.kernel.abi`; the words of the project are put to it further
right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnsprobe.errors import UserError
from dnsprobe.kernel import abi, libbpf, loader_protocol
from dnsprobe.kernel.canary import Canaries, CanaryPort, canary_suffix
from dnsprobe.kernel.hooks import PATHS, RUNGS, TCP_LADDER, UDP_LADDER, Hook, Rung
from dnsprobe.names.ruleset import TrieEntry
from dnsprobe.privileges import HINT

#: Room for canaries on their way: they must come back even while the ring of events is full.
_CANARY_RING_SIZE = 64 * 1024
_SCRATCH_KINDS = 5
#: Packets that wait for a neighbour's address: a neighbour keeps about a hundred (net.ipv4.neigh.*.unres_qlen).
_DEFERRED = 4096
#: TCP connections that can be in the middle of a message; those that asked longest ago make room.
_STREAMS = 8192
#: start_ns, tgid, rule, qtype, transport
CountKey = tuple[int, int, int, int, int]
#: start_ns, name_hash, tgid, generation, qtype, transport
PendingKey = tuple[int, int, int, int, int, int]
#: start_ns, tgid
ProcessKey = tuple[int, int]
#: start_ns, tgid, execs: one of the programs that a process runs one after the other
ProgramKey = tuple[int, int, int]

_LINEAGE_STATISTICS = {statistic for statistic in abi.Statistic if statistic.name.startswith("LINEAGE_")}


def _queries(value: bytes | None) -> int:
    return int(abi.COUNTER.unpack(value)[0]) if value else 0


def _pack_hash(name_hash: int) -> bytes:
    return name_hash.to_bytes(8, sys.byteorder)


def _unpack_hash(key: bytes) -> int:
    return int.from_bytes(key, sys.byteorder)


def _encode_ancestor(entry: tuple[abi.AncestorKey, abi.Ancestor]) -> tuple[bytes, bytes]:
    return abi.encode_ancestor_key(entry[0]), abi.encode_ancestor(entry[1])


def _raise_unless(expected: int, refused: Mapping[bytes, int]) -> None:
    """Raise OSError if a map refused an entry for another reason than the expected errno."""
    for code in refused.values():
        if code != expected:
            raise OSError(code, os.strerror(code))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Entries of the maps, and octets of the ring. With 0 of ``lineage``, no lineages are followed."""

    ring: int
    processes: int
    counters: int
    names: int
    recent: int
    lineage: int = 0


@dataclass(frozen=True, slots=True)
class Where:
    """What to look at: UDP and TCP ports that carry DNS, TCP ports that carry it encrypted, and by which hooks.

    ``hook`` and ``tcp_hook`` are the name of a rung or ``auto``; ``tcp_hook`` may be ``none``. ``btf`` is the path of
    the kernel's BTF.
    """

    ports: Sequence[int]
    dot_ports: Sequence[int] = ()
    hook: str = "auto"
    tcp_hook: str = "auto"
    btf: str = "/sys/kernel/btf/vmlinux"

    @property
    def protocols(self) -> tuple[str, ...]:
        """Those that are looked at."""
        return ("udp",) if self.tcp_hook == "none" else ("udp", "tcp")


class _Climb:
    """The way up one ladder: the rung and the attempt that come next, for the paths that are still without a hook."""

    def __init__(self, ladder: Sequence[Rung], hook: str, paths: Sequence[str]) -> None:
        self._rungs = [rung for rung in ladder if hook in {"auto", rung.name}]
        self.open = [path for path in paths if path in ladder[0].functions]
        self.attempt = 0

    @property
    def rung(self) -> Rung | None:
        """The rung to try, None where there is nothing left to do."""
        return self._rungs[0] if self._rungs and self.open else None

    def next_rung(self) -> None:
        """Give a rung up."""
        del self._rungs[0]
        self.attempt = 0


@dataclass(slots=True)
class PathState:
    """How a path is served: the rung and symbol in use, whether proved, and what was tried before or went wrong."""

    rung: str = ""
    symbol: str = ""
    verified: bool = False
    tried: list[str] = field(default_factory=list)


class LoaderChild:
    """The child that compiles and attaches, started at once so that it works while we do."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        # Not a temporary file: /tmp may be full, read-only or missing.
        self._errors = os.fdopen(os.memfd_create("dnsprobe-loader"), "w+b")
        self._read = 0
        package_folder = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package_folder, os.environ.get("PYTHONPATH"))))
        # -P: root may stand in a folder of somebody who put a json.py there.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dnsprobe.kernel.loader", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            # BCC cannot compile in a folder that was deleted; and Ctrl-C at a terminal is for us, who then end it.
            cwd="/",
            process_group=0,
            env={**os.environ, "PYTHONPATH": path},
        )
        theirs.close()

    def ask(self, request: Mapping[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Send a request and return the answer with the descriptors that came along."""
        try:
            loader_protocol.send(self._channel, request, fds)
            answer, received = loader_protocol.receive(self._channel)
        except OSError:
            answer, received = None, []
        if answer is None:
            raise UserError(
                f"the process that compiles the BPF program died: {self.complaints() or 'it left no message'}"
            )
        if "error" in answer:
            raise UserError(answer["error"], answer["hint"])
        return answer, received

    def complaints(self) -> str:
        """Return what compiler and verifier wrote since the last call, the last lines of it."""
        self._errors.seek(self._read)
        text = self._errors.read()
        self._read += len(text)
        return "\n".join(text.decode("utf-8", "replace").strip().splitlines()[-12:])

    def close(self) -> None:
        """Let it go, with LLVM's memory."""
        self._channel.close()
        self._process.wait()
        self._errors.close()


class Probe:
    """The maps and hooks of one dnsprobe. Closed, nothing of it stays in the kernel.

    ``repeat_ns`` is how long a query like an earlier one causes no event.
    """

    def __init__(self, where: Where, sizes: Sizes, repeat_ns: int) -> None:
        self._child: LoaderChild | None = LoaderChild()
        self._where = where
        self._repeat_ns = repeat_ns
        self._name_key = (secrets.randbits(64), secrets.randbits(64))
        self._suffix = canary_suffix()
        self.generation = 0
        self._waiting: Sequence[TrieEntry] = ()
        self.hooks: list[Hook] = []
        self._follows = sizes.lineage > 0
        self.lineage: Hook | None = None
        #: Why no lineages are followed, though there is room for them.
        self.lineage_problem = ""
        #: Why the compiled programs could not be cached, if there is a folder for that.
        self.cache_problem = ""
        self._lost_lineage_misses = 0
        self._seeds_refused = 0
        self.paths: dict[str, PathState] = {path: PathState() for path in PATHS}
        self._lost_misses = 0
        try:
            self._make_maps(sizes)
            self._canary_port = CanaryPort([*where.ports, *where.dot_ports], where.protocols)
        except OSError as error:
            self._child.close()
            hint = HINT
            if error.errno in {errno.ENOMEM, errno.E2BIG}:
                hint = "give probe.processes, probe.counters, probe.names, probe.recent and probe.lineage smaller sizes"
            raise UserError(f"cannot make BPF maps: {error.strerror or error}", hint) from error

    def _make_maps(self, sizes: Sizes) -> None:
        counter = abi.COUNTER.size
        self._trie_size = 1024
        self._settings = libbpf.Map(libbpf.ARRAY, "settings", 4, abi.SETTINGS.size, 1)
        self._scratch = libbpf.Map(libbpf.PERCPU_ARRAY, "scratch", 4, abi.SCRATCH_SIZE, _SCRATCH_KINDS)
        self._statistics = libbpf.Map(libbpf.PERCPU_ARRAY, "stats", 4, counter, len(abi.Statistic))
        self._trie = self._make_trie(1)
        self._rules = libbpf.Map(libbpf.ARRAY_OF_MAPS, "rules", 4, 4, 1, inner=self._trie)
        self._counts = libbpf.Map(libbpf.HASH, "counts", abi.COUNT_KEY.size, counter, sizes.counters)
        self._overflow = libbpf.Map(libbpf.ARRAY, "overflow", 4, counter, abi.RULE_IDS + 1)
        self._processes = libbpf.Map(libbpf.HASH, "procs", abi.PROCESS_KEY.size, abi.CHAIN_BYTES, sizes.processes)
        self._identities = libbpf.Map(
            libbpf.HASH, "identities", abi.PROCESS_KEY.size, abi.IDENTITY.size, sizes.processes
        )
        self._names = libbpf.Map(libbpf.HASH, "names", 8, abi.NAME.size, sizes.names)
        self._pending = libbpf.Map(libbpf.HASH, "pending", abi.PENDING_KEY.size, counter, sizes.names)
        self._seen = libbpf.Map(libbpf.LRU_HASH, "seen", abi.SEEN_KEY.size, abi.SEEN.size, sizes.recent)
        self._ancestors = libbpf.Map(
            libbpf.HASH, "lineage", abi.ANCESTOR_KEY.size, abi.ANCESTOR.size, max(sizes.lineage, 1)
        )
        self._deferred = libbpf.Map(libbpf.LRU_HASH, "deferred", 8, abi.DEFERRED.size, _DEFERRED)
        self._streams = libbpf.Map(libbpf.LRU_HASH, "streams", 8, abi.STREAM.size, _STREAMS)
        self._events = libbpf.Map(libbpf.RINGBUF, "events", 0, 0, sizes.ring)
        self._canaries = libbpf.Map(libbpf.RINGBUF, "canaries", 0, 0, _CANARY_RING_SIZE)
        self._ring = libbpf.Ring(self._events)
        self._canary_ring = libbpf.Ring(self._canaries, batch=1 << 16)

    def _make_trie(self, entries: int) -> libbpf.Map:
        # Inner maps have to be alike in all but their size; in that too before Linux 5.10 (kernel commit 134fede4eecf).
        return libbpf.Map(
            libbpf.LPM_TRIE, "trie", abi.LPM_KEY_SIZE, abi.OUTCOME.size, max(entries, 1), libbpf.NO_PREALLOC
        )

    # Rules

    def set_rules(self, entries: Sequence[TrieEntry]) -> None:
        """Put a set of rules in force, all at once: a query meets either the old ones or the new ones.

        Before the hooks are proved, rules wait: a way to attach that turns out to be wrong must not count.
        """
        if self._child is not None:
            self._waiting, entries = entries, ()
        self._put_in_force(entries, self.generation + 1)

    def _put_in_force(self, entries: Sequence[TrieEntry], generation: int) -> None:
        trie = self._make_trie(len(entries) + 1)
        canary = TrieEntry(self._suffix, self._suffix_labels(), abi.CANARY, abi.CANARY)
        try:
            refused = trie.set_many(
                (abi.lpm_key(entry.suffix), abi.OUTCOME.pack(entry.at, entry.below, len(entry.suffix), entry.labels))
                for entry in (*entries, canary)
            )
            _raise_unless(0, refused)
        except OSError:
            trie.close()
            raise
        # The update returns after a grace period: no run of a program still looks into the old trie
        # (kernel/bpf/syscall.c, maybe_wait_bpf_programs).
        self._rules.set(struct.pack("=I", 0), struct.pack("=I", trie.fd))
        self._trie.close()
        self._trie = trie
        self.generation = generation
        self._write_settings()

    def _write_settings(self, *, seeding: bool = False) -> None:
        settings = abi.SETTINGS.pack(self._repeat_ns, *self._name_key, self.generation, seeding)
        self._settings.set(struct.pack("=I", 0), settings)

    def _suffix_labels(self) -> int:
        labels, at = 0, 0
        while self._suffix[at]:
            at += self._suffix[at] + 1
            labels += 1
        return labels

    # Hooks

    def start(
        self,
        log: Callable[[str], None] = lambda _: None,
        trying: Callable[[str], None] = lambda _: None,
        seed: Callable[[], None] = lambda: None,
    ) -> None:
        """Attach, for each path, the first rung whose canaries come back right. UserError if a UDP path has none.

        ``trying`` gets the name of a rung before each attempt, of which a rung may take several. ``seed`` is called
        where lineages are followed, to add the processes that are there already (:meth:`add_ancestors`).
        """
        assert self._child is not None
        paths = self.active_paths
        climbs = (
            _Climb(UDP_LADDER, self._where.hook, paths),
            _Climb(TCP_LADDER, self._where.tcp_hook, [path for path in paths if path.startswith("tcp")]),
        )
        canaries = self._canaries_for(paths)
        try:
            self._hand_over_maps()
            while hooks := [hook for climb in climbs for hook in self._attach_next(climb, log, trying)]:
                self._keep_or_drop(hooks, self._prove(canaries, [path for hook in hooks for path in hook.paths]))
                for climb in climbs:
                    climb.open = [path for path in climb.open if not self.paths[path].verified]
                if not any(climb.open for climb in climbs):
                    break
                canaries = self._canaries_for(paths)
            if self._follows and not climbs[0].open:
                self._follow_lineage(self._child, seed)
        finally:
            canaries.dismiss()
            self._child.close()
            self._child = None
        if climbs[0].open:
            self.close()
            raise UserError(self._failure(climbs[0].open), "dnsprobe doctor shows what this kernel offers")
        # What a wrong way to attach took for encrypted connections, and for malformed queries.
        self._counts.delete_many([key for key, _value in self._counts.items()])
        self._put_in_force(self._waiting, self.generation)
        for statistic in set(abi.Statistic) - _LINEAGE_STATISTICS:
            key = struct.pack("=I", statistic)
            self._statistics.set(key, bytes(len(self._statistics.get(key) or b"")))

    def _canaries_for(self, paths: Sequence[str]) -> Canaries:
        return Canaries(paths, self._canary_port.port, self._suffix)

    def _hand_over_maps(self) -> None:
        assert self._child is not None
        maps = {
            "SETTINGS": self._settings,
            "SCRATCH": self._scratch,
            "STATISTICS": self._statistics,
            "RULES": self._rules,
            "COUNTS": self._counts,
            "OVERFLOW": self._overflow,
            "PROCESSES": self._processes,
            "IDENTITIES": self._identities,
            "NAMES": self._names,
            "PENDING": self._pending,
            "SEEN": self._seen,
            "LINEAGE": self._ancestors,
            "DEFERRED": self._deferred,
            "STREAMS": self._streams,
            "EVENTS": self._events,
            "CANARIES": self._canaries,
        }
        request = {
            "ports": list(self._where.ports),
            "encrypted_ports": list(self._where.dot_ports),
            "canary_port": self._canary_port.port,
            "btf": self._where.btf,
            "maps": list(maps),
        }
        self._child.ask(request, [entry.fd for entry in maps.values()])

    def _attach_next(self, climb: _Climb, log: Callable[[str], None], trying: Callable[[str], None]) -> list[Hook]:
        """Attach in the next way that the kernel takes; no hook where there is none left."""
        assert self._child is not None
        while rung := climb.rung:
            trying(rung.name)
            answer, fds = self._child.ask({"rung": rung.name, "paths": climb.open, "attempt": climb.attempt})
            self.cache_problem = answer["cache_problem"]
            complaints = self._child.complaints()
            if complaints:
                log(complaints)
            if climb.attempt == 0:
                self._note_refusals(rung, answer["refused"], complaints)
            if answer["hooks"]:
                climb.attempt += 1
                return loader_protocol.restore(answer["hooks"], fds)
            climb.next_rung()
        return []

    def _follow_lineage(self, child: LoaderChild, seed: Callable[[], None]) -> None:
        self._write_settings(seeding=True)
        answer, fds = child.ask({"rung": loader_protocol.LINEAGE})
        self.lineage_problem = answer["refused"].get(loader_protocol.LINEAGE, "")
        if not self.lineage_problem:
            (self.lineage,) = loader_protocol.restore(answer["hooks"], fds)
            seed()
        self._write_settings()

    def _note_refusals(self, rung: Rung, refused: Mapping[str, str], complaints: str) -> None:
        # The verifier says in its last line but one what it does not like; in the last how much work it was.
        said = [line for line in complaints.splitlines() if line and not line.startswith("processed ")]
        for path, reason in refused.items():
            self.paths[path].tried.append(f"{rung.name}: {reason}{f' ({said[-1]})' if said else ''}")

    def _prove(self, canaries: Canaries, paths: Sequence[str]) -> dict[str, str]:
        canaries.release(paths)
        canaries.wait()
        return self._verdicts(canaries, paths)

    def _verdicts(self, canaries: Canaries, paths: Sequence[str]) -> dict[str, str]:
        events = [abi.decode_event(record) for record in self._canary_ring.consume()]
        self._canary_port.close_connections()
        verdicts = canaries.judge(events)
        return {path: verdicts[path] for path in paths}

    def _keep_or_drop(self, hooks: Sequence[Hook], verdicts: Mapping[str, str]) -> None:
        for hook in hooks:
            problems = {path: verdicts[path] for path in hook.paths if verdicts[path]}
            for path in hook.paths:
                state = self.paths[path]
                if problems:
                    state.tried.append(
                        f"{hook.rung} at {hook.symbol}: {verdicts[path] or 'shared with a path that failed'}"
                    )
                else:
                    state.rung, state.symbol, state.verified = hook.rung, hook.symbol, True
            if problems:
                hook.close()
            else:
                self.hooks.append(hook)

    def _failure(self, open_paths: Sequence[str]) -> str:
        unserved = self.unserved
        parts = [f"{path}: {unserved[path]}" for path in open_paths]
        return "no hook sees the queries of this host. " + " | ".join(parts)

    @property
    def unserved(self) -> dict[str, str]:
        """The paths that this host has and no hook sees, with what was tried."""
        return {
            path: "; ".join(self.paths[path].tried) or "nothing to try"
            for path in self.active_paths
            if not self.paths[path].rung
        }

    @property
    def served_paths(self) -> list[str]:
        """The paths that a hook sees."""
        return [path for path in self.active_paths if self.paths[path].rung]

    @property
    def active_paths(self) -> tuple[str, ...]:
        """The paths that this host has (no udp6 without IPv6) and that are looked at."""
        return tuple(path for path in PATHS if path in self._canary_port.paths)

    def canary_round(self) -> Canaries:
        """Start a round of canaries for the running hooks; pass it to :meth:`finish_round` when its child has ended."""
        canaries = self._canaries_for(self.served_paths)
        canaries.release()
        return canaries

    def finish_round(self, canaries: Canaries) -> dict[str, str]:
        """Judge a round: a path whose canaries are missing or wrong is no longer verified. Return problems by path."""
        verdicts = self._verdicts(canaries, self.served_paths)
        for path, problem in verdicts.items():
            self.paths[path].verified = not problem
        return {path: problem for path, problem in verdicts.items() if problem}

    def fail_round(self, problem: str) -> dict[str, str]:
        """Take all paths as not proved, where a round could not even begin. Return problems by path."""
        for path in self.served_paths:
            self.paths[path].verified = False
        return dict.fromkeys(self.served_paths, problem)

    # Events

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are events."""
        return self._ring.fileno()

    def events(self) -> list[abi.Event]:
        """Return the next events, a bounded number at a time."""
        return [abi.decode_event(record) for record in self._ring.consume()]

    # Counters

    def statistics(self) -> dict[abi.Statistic, int]:
        """Return the statistics of the programs, summed over the CPUs."""
        keys = {struct.pack("=I", statistic): statistic for statistic in abi.Statistic}
        return {
            keys[key]: sum(value for (value,) in abi.COUNTER.iter_unpack(raw or b""))
            for key, raw in self._statistics.get_many(keys)
        }

    def missed_runs(self) -> int:
        """Return how many packets the kernel did not show us because another BPF program ran on that CPU."""
        missed = 0
        for hook in self.hooks:
            runs = [libbpf.program_runs(program).missed for program in hook.programs]
            # Of two programs for TCP each sees all writes: lost is what both missed, so no more than either did.
            missed += min(runs) if RUNGS[hook.rung].reads_streams else sum(runs)
        return self._lost_misses + missed

    def lineage_missed_runs(self) -> int:
        """Return how many forks, changes of name and exits were not followed because another BPF program ran."""
        programs = self.lineage.programs if self.lineage else []
        return self._lost_lineage_misses + sum(libbpf.program_runs(program).missed for program in programs)

    def lineage_full(self) -> int:
        """Return how many processes are not followed for want of room."""
        return self.statistics()[abi.Statistic.LINEAGE_FULL] + self._seeds_refused

    def counts(self) -> Iterator[tuple[CountKey, int]]:
        """Yield (start_ns, tgid, rule, qtype, transport) and the count, for each counter."""
        unpack, number = abi.COUNT_KEY.unpack, abi.COUNTER.unpack
        for key, value in self._counts.items():
            start_ns, tgid, rule, qtype, transport = unpack(key)
            yield (start_ns, tgid, rule, qtype, transport), number(value)[0]

    def forget_counts(self, keys: Iterable[CountKey]) -> Iterator[tuple[CountKey, int]]:
        """Delete counters that change no more; yield each with its last value. The caller consumes all of them."""
        for key, value in self._counts.take_many(abi.COUNT_KEY.pack(*key) for key in keys):
            yield abi.COUNT_KEY.unpack(key), _queries(value)

    def pending(self) -> Iterator[tuple[PendingKey, int]]:
        """Yield (start_ns, name_hash, tgid, generation, qtype, transport) and the count, of names then undecided."""
        for key, value in self._pending.items():
            yield abi.PENDING_KEY.unpack(key), abi.COUNTER.unpack(value)[0]

    def forget_pending(self, keys: Iterable[PendingKey]) -> Iterator[tuple[PendingKey, int]]:
        """Delete counters of names decided a while ago; yield each with its last value. The caller consumes all."""
        for key, value in self._pending.take_many(abi.PENDING_KEY.pack(*key) for key in keys):
            yield abi.PENDING_KEY.unpack(key), _queries(value)

    def overflow(self, rules: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yield each rule with the queries that were counted without their process, because the counters were full."""
        for key, value in self._overflow.get_many(struct.pack("=I", rule) for rule in rules):
            yield struct.unpack("=I", key)[0], _queries(value)

    def take_overflow(self, rules: Iterable[int]) -> dict[int, int]:
        """Return the overflow of rules that are not in force any more, if there is any, and set it to zero."""
        found = {rule: queries for rule, queries in self.overflow(rules) if queries}
        self._overflow.set_many((struct.pack("=I", rule), abi.COUNTER.pack(0)) for rule in found)
        return found

    # Processes and names

    def chains(self, keys: Iterable[ProcessKey]) -> Iterator[tuple[ProcessKey, abi.Chain | None]]:
        """Yield each process with the ancestry that it had when it first counted."""
        for key, value in self._processes.get_many(abi.PROCESS_KEY.pack(*key, 0) for key in keys):
            start_ns, tgid, _ = abi.PROCESS_KEY.unpack(key)
            yield (start_ns, tgid), abi.decode_chain(value) if value else None

    def forget_processes(self, keys: Iterable[ProcessKey]) -> None:
        """Forget the ancestry of processes that are gone."""
        self._processes.delete_many(abi.PROCESS_KEY.pack(*key, 0) for key in keys)

    def facts_of(self, keys: Iterable[ProgramKey]) -> Iterator[tuple[ProgramKey, abi.Facts | None]]:
        """Yield each program with what its process was when it first asked while it ran that program."""
        for key, value in self._identities.get_many(abi.PROCESS_KEY.pack(*key) for key in keys):
            yield abi.PROCESS_KEY.unpack(key), abi.decode_identity(value) if value else None

    def facts_kept(self) -> Iterator[ProgramKey]:
        """Yield the keys of all facts that the kernel keeps."""
        for key, _value in self._identities.items():
            yield abi.PROCESS_KEY.unpack(key)

    def forget_facts(self, keys: Iterable[ProgramKey]) -> None:
        """Delete facts, which makes room for those of other processes."""
        self._identities.delete_many(abi.PROCESS_KEY.pack(*key) for key in keys)

    def ancestors(self) -> Iterator[tuple[abi.AncestorKey, abi.Ancestor]]:
        """Yield all processes whose lineage is followed."""
        for key, value in self._ancestors.items():
            yield abi.AncestorKey(*abi.ANCESTOR_KEY.unpack(key)), abi.decode_ancestor(value)

    def add_ancestors(self, ancestors: Iterable[tuple[abi.AncestorKey, abi.Ancestor]]) -> None:
        """Add processes that are not there yet; those that find no room are counted."""
        refused = self._ancestors.set_many(map(_encode_ancestor, ancestors), libbpf.NOEXIST)
        self._seeds_refused += sum(code != errno.EEXIST for code in refused.values())

    def set_ancestors(self, ancestors: Iterable[tuple[abi.AncestorKey, abi.Ancestor]]) -> None:
        """Change processes that are there; those that are not are ignored."""
        refused = self._ancestors.set_many(map(_encode_ancestor, ancestors), libbpf.EXIST)
        _raise_unless(errno.ENOENT, refused)

    def forget_ancestors(self, keys: Iterable[abi.AncestorKey]) -> None:
        """Delete processes, which makes room for others."""
        self._ancestors.delete_many(map(abi.encode_ancestor_key, keys))

    def names(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield hash, verdict, generation and name (wire format, lower case) of each name that is for us to decide."""
        for key, value in self._names.items():
            verdict, generation, length, reversed_name = abi.NAME.unpack(value)
            yield _unpack_hash(key), verdict, generation, abi.unreverse(reversed_name, length)

    def decide(self, decisions: Iterable[tuple[int, bytes, int]]) -> list[int]:
        """Store what names come to under the rules in force. Return the hashes of the names that are still there.

        A decision has the hash of a name, the name in wire format, and a rule's id or NO_RULE.
        """
        keys: list[bytes] = []

        def entries() -> Iterator[tuple[bytes, bytes]]:
            for name_hash, name, verdict in decisions:
                keys.append(_pack_hash(name_hash))
                reversed_name = name[::-1].ljust(abi.NAME_SIZE, b"\0")
                yield keys[-1], abi.NAME.pack(verdict, self.generation, len(name), reversed_name)

        refused = self._names.set_many(entries(), libbpf.EXIST)
        _raise_unless(errno.ENOENT, refused)
        return [_unpack_hash(key) for key in keys if key not in refused]

    def forget_names(self, hashes: Iterable[int]) -> None:
        """Delete names, which makes room for others."""
        self._names.delete_many(map(_pack_hash, hashes))

    def close(self) -> None:
        """Detach everything and give up the maps."""
        if self._child is not None:
            self._child.close()
            self._child = None
        with contextlib.suppress(OSError):
            self._lost_misses = self.missed_runs()
            self._lost_lineage_misses = self.lineage_missed_runs()
        for hook in self.hooks:
            hook.close()
        self.hooks = []
        if self.lineage is not None:
            self.lineage.close()
        self._canary_port.close()

    def release(self) -> None:
        """Give up the maps; what they counted is gone then."""
        self._ring.close()
        self._canary_ring.close()
        for entry in (
            self._settings,
            self._scratch,
            self._statistics,
            self._trie,
            self._rules,
            self._counts,
            self._overflow,
            self._processes,
            self._identities,
            self._names,
            self._pending,
            self._seen,
            self._ancestors,
            self._deferred,
            self._streams,
            self._events,
            self._canaries,
        ):
            entry.close()
