"""Lineages: the starters of a process stay known after they exit, and no entry stays longer than it is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, PATIENCE, PROGRAM, Program, Service
from test_overload import usage

from dnsprobe.kernel import abi
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.process.lineage import Lineage
from dnsprobe.process.procfs import ProcFS
from dnsprobe.text import printable

Start = Callable[..., Service]
Watch = Callable[..., Program]
Scene = Callable[..., Any]
Family = Callable[..., Any]

#: Pid and comm.
Named = tuple[int, str]


@pytest.fixture
def command(in_namespace: list[str]) -> list[str]:
    """Return a command that runs families.py in a namespace. The name of a function has to be added."""
    return [*in_namespace, sys.executable, str(HERE / "families.py")]


@pytest.fixture
def family(command: list[str]) -> Family:
    """Return a runner for functions of families.py, which returns the JSON that they print."""

    def run(name: str, *arguments: object) -> Any:
        done = subprocess.run(
            [*command, name, *map(str, arguments)], stdout=subprocess.PIPE, check=True, timeout=PATIENCE
        )
        return json.loads(done.stdout)

    return run


def queries(watch: Program) -> dict[str, dict[str, Any]]:
    """Stop the watch. Return the queries that it showed by the first label after ``www.``."""
    assert watch.stop() == 0
    found = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    by_name = {query["qname"].split(".")[1]: query for query in found}
    assert len(by_name) == len(found)
    return by_name


def parents(query: dict[str, Any]) -> list[Named]:
    return [(parent["pid"], parent["comm"]) for parent in query["ancestors"]]


def exited(query: dict[str, Any]) -> list[Named]:
    return [(starter["pid"], starter["comm"]) for starter in query["lineage"] if starter["exited"]]


def running(query: dict[str, Any]) -> list[Named]:
    return [(starter["pid"], starter["comm"]) for starter in query["lineage"] if not starter["exited"]]


def named(processes: list[list[Any]]) -> list[Named]:
    return [(pid, printable(comm)) for pid, comm in processes]


def assert_lineage(query: dict[str, Any], truth: dict[str, Any]) -> None:
    """Compare both chains with those that the family printed."""
    assert parents(query) == named(truth["parents"])
    assert (exited(query), running(query)) == (named(truth["gone"]), named(truth["starters"]))
    assert [starter["exited"] for starter in query["lineage"]] == sorted(
        (starter["exited"] for starter in query["lineage"]), reverse=True
    )
    assert query["complete"]
    assert query["lineage_complete"]


@pytest.mark.parametrize("name", ["shell_gone", "shell_in_another_thread"])
def test_a_shell_that_exited(start_watch: Watch, family: Family, sender: Path, name: str) -> None:
    watch = start_watch("--json", "orphan.test")
    truth = family(name, sender)
    query = queries(watch)["orphan"]
    assert (query["pid"], query["comm"]) == (truth["pid"], "orphan")
    assert tuple(truth["shell"]) not in parents(query)
    assert exited(query) == [tuple(truth["shell"])]
    assert running(query) == named(truth["starters"])
    assert query["lineage_complete"]
    # The tree shows the parents: that is the default of probe.tree.
    assert query["tree"] == ";".join([comm for pid, comm in reversed(parents(query)) if pid != 1] + ["orphan"])


@pytest.mark.parametrize("name", ["daemonised", "renamed"])
def test_a_starter_that_exited(start_watch: Watch, family: Family, name: str) -> None:
    watch = start_watch("--json", "daemon.test", "renamed.test")
    truth = family(name)
    (query,) = queries(watch).values()
    assert query["pid"] == truth["pid"]
    assert_lineage(query, truth)


def test_a_starter_of_the_parent_that_exited(start_watch: Watch, family: Family) -> None:
    watch = start_watch("--json", "elder.test")
    truth = family("elder_gone")
    query = queries(watch)["elder"]
    assert parents(query) == named(truth["parents"])
    parent, *rest = ((starter["pid"], starter["comm"]) for starter in query["lineage"])
    assert parent == parents(query)[0]
    assert rest == [*named(truth["gone"]), *named(truth["starters"])]
    assert exited(query) == named(truth["gone"])


def test_a_lineage_that_is_too_long_is_cut(start_watch: Watch, family: Family) -> None:
    watch = start_watch("--json", "generations.test")
    truth = family("generations", abi.LINEAGE_SIZE + 7)
    query = queries(watch)["generations"]
    assert exited(query) == named(truth["gone"])[: abi.LINEAGE_SIZE]
    assert running(query) == []
    assert not query["lineage_complete"]
    assert query["complete"]


def test_a_starter_whose_pid_is_reused(start_watch: Watch, family: Family) -> None:
    watch = start_watch("--json", "reused.test", "impostor.test")
    truth = family("pid_reused")
    found = queries(watch)
    assert_lineage(found["reused"], truth)
    ((pid, _),) = exited(found["reused"])
    assert found["impostor"]["ancestors"][0]["pid"] == pid
    assert found["impostor"]["ancestors"][0]["comm"] == "impostor"
    assert found["impostor"]["lineage"] == []


def test_processes_older_than_dnsprobe(start_watch: Watch, command: list[str]) -> None:
    with subprocess.Popen(
        [*command, "there_before"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        watch = start_watch("--json", "before.test", "after.test")
        output, _ = process.communicate("\n", timeout=PATIENCE)
    truth = json.loads(output)
    found = queries(watch)
    for name in ("before", "after"):
        assert exited(found[name]) == named(truth["gone"])
        assert running(found[name]) == named(truth["starters"])


def test_no_lineage_if_all_starters_run(start_watch: Watch, scene: Scene) -> None:
    watch = start_watch("--json", "oneshot.test")
    scene("oneshots", 50, 8)
    assert watch.stop() == 0
    found = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert len(found) == 50
    for query in found:
        assert query["lineage"] == []
        assert query["lineage_complete"]


def test_trees_of_lineages(start: Start, family: Family) -> None:
    service = start("domains: [daemon.test]\nprobe: {tree: lineage}")
    truth = family("daemonised")
    starters = [*named(truth["gone"]), *named(truth["starters"])]
    tree = ";".join([*(comm for pid, comm in reversed(starters) if pid != 1), "daemon"])
    assert service.by("dnsprobe_queries_total", "tree") == {tree: 1}
    assert service.stop() == 0
    (entry,) = service.entries()
    assert f" by {tree}, " in entry
    assert entry.endswith(f"now below {', '.join(f'{comm}[{pid}]' for pid, comm in named(truth['parents']))}")


def test_the_journal_has_the_lineage(start: Start, family: Family) -> None:
    service = start("domains: [daemon.test]")
    truth = family("daemonised")
    (tree,) = service.by("dnsprobe_queries_total", "tree")
    assert tree == ";".join([*(comm for pid, comm in reversed(named(truth["parents"])) if pid != 1), "daemon"])
    assert service.stop() == 0
    starters = [f"{comm}[{pid}] (exited)" for pid, comm in named(truth["gone"])]
    starters += [f"{comm}[{pid}]" for pid, comm in named(truth["starters"])]
    assert service.entries()[0].endswith(f"started by {', '.join(starters)}")


def test_the_lineage_is_kept_beside_the_counter(start: Start, scene: Scene, family: Family) -> None:
    service = start("domains: [daemon.test, oneshot.test]\nprobe: {tree: lineage, ring_size: 4KiB}")
    # While the daemon is stopped, the ring gets full. Then only the kernel's record of the process is left.
    service.process.send_signal(signal.SIGSTOP)
    scene("oneshots", 50, 8)
    truth = family("daemonised")
    service.process.send_signal(signal.SIGCONT)
    starters = [*named(truth["gone"]), *named(truth["starters"])]
    tree = ";".join([*(comm for pid, comm in reversed(starters) if pid != 1), "daemon"])
    assert service.by("dnsprobe_queries_total", "tree")[tree] == 1
    assert not any("daemon.test" in entry for entry in service.entries())


def test_without_room_the_lineage_is_cut(start: Start, start_watch: Watch, family: Family, tmp_path: Path) -> None:
    configuration = tmp_path / "dnsprobe.yaml"
    configuration.write_text("probe: {lineage: 8}")
    watch = start_watch("--json", "--config", str(configuration), "daemon.test")
    service = start("domains: [daemon.test]\nprobe: {lineage: 8, tree: lineage}")
    truth = family("daemonised")
    assert service.by("dnsprobe_lineage_lost_total", "reason")["full"] > 0
    assert service.by("dnsprobe_lineage_lost_total", "reason")["run_missed"] == 0
    query = queries(watch)["daemon"]
    assert parents(query) == named(truth["parents"])
    assert query["lineage"] == []
    assert not query["lineage_complete"]
    assert service.by("dnsprobe_queries_total", "tree") == {"...;daemon": 1}


def test_losses_are_at_zero_from_the_start(start: Start) -> None:
    service = start("domains: [watched.test]")
    assert service.by("dnsprobe_lineage_lost_total", "reason") == {"full": 0, "run_missed": 0}


def test_lineage_tracking_can_be_off(start_watch: Watch, family: Family, tmp_path: Path) -> None:
    configuration = tmp_path / "dnsprobe.yaml"
    configuration.write_text("probe: {lineage: 0, tree: lineage}")
    watch = start_watch("--json", "--config", str(configuration), "daemon.test")
    truth = family("daemonised")
    query = queries(watch)["daemon"]
    assert parents(query) == named(truth["parents"])
    assert (query["lineage"], query["lineage_complete"]) == ([], True)


def test_lineage_tracking_is_off_on_a_kernel_without_its_members(start: Start, family: Family, tmp_path: Path) -> None:
    # In this BTF, the number of threads of a process has another name.
    (tmp_path / "btf").write_bytes(Path("/sys/kernel/btf/vmlinux").read_bytes().replace(b"\0live\0", b"\0dead\0"))
    service = start(f"domains: [daemon.test]\nprobe: {{btf: {tmp_path / 'btf'}, tree: lineage}}")
    truth = family("daemonised")
    assert "lineage tracking is off: this kernel has no signal_struct.live" in service.err.read_text("utf-8")
    (tree,) = service.by("dnsprobe_queries_total", "tree")
    assert tree == ";".join([*(comm for pid, comm in reversed(named(truth["parents"])) if pid != 1), "daemon"])
    done = subprocess.run(
        [str(PROGRAM), "doctor", "--json", "--config", str(service.configuration)], stdout=subprocess.PIPE, check=True
    )
    found = {entry["check"]: entry for line in done.stdout.splitlines() if "check" in (entry := json.loads(line))}
    assert found["lineage"]["good"] is False
    assert "signal_struct.live" in found["lineage"]["detail"]


@contextmanager
def followed(entries: int) -> Iterator[tuple[Probe, Lineage]]:
    """Yield a probe whose lineage map has room for ``entries``, and the Lineage that sweeps it."""
    sizes = Sizes(ring=4096, processes=16, counters=16, names=16, recent=16, lineage=entries)
    probe = Probe(ProbeOptions([5], tcp_hook="none"), sizes, repeat_ns=0)
    lineage = Lineage(probe.lineage_table, entries, ProcFS())
    try:
        probe.set_rules([])
        probe.start(seed=lineage.seed)
        yield probe, lineage
    finally:
        probe.close()
        probe.release()


def run_storm(storm: Path, kind: str, families: int, prefix: Sequence[str] = ()) -> int:
    command = [*prefix, str(storm), kind, str(families), "4"]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def named_storm(probe: Probe) -> list[abi.Ancestor]:
    return [
        ancestor
        for _, ancestor in probe.lineage_table.ancestors()
        if ancestor.comm in {b"storm", b"shell", b"compiler"}
    ]


@pytest.mark.parametrize(("kind", "families"), [("leaf", 100_000), ("job", 5_000), ("orphan", 10_000)])
def test_ended_processes_leave_no_entry(storm: Path, kind: str, families: int) -> None:
    with followed(4096) as (probe, lineage):
        made = run_storm(storm, kind, families)
        statistics = probe.statistics()
        assert statistics[abi.Statistic.LINEAGE_ADDED] >= made >= families
        assert (probe.lineage_table.full(), probe.lineage_table.missed_runs()) == (0, 0)
        # The kernel side removes them. If two CPUs work on one entry, it may leave it to the sweep.
        assert len(named_storm(probe)) < made / 1000
        lineage.sweep()
        lineage.sweep()
        assert named_storm(probe) == []


def test_removed_entries_make_room() -> None:
    now = sum(name.isdecimal() for name in os.listdir("/proc"))
    with followed(now + 30) as (probe, _):
        children = [subprocess.Popen(["sleep", "60"]) for _ in range(60)]
        found = {key.tgid for key, _ in probe.lineage_table.ancestors()}
        # Other programs of this host fork too.
        assert 0 < len({child.pid for child in children} - found) <= probe.lineage_table.full()
        for child in children:
            child.terminate()
            child.wait()
        with subprocess.Popen(["sleep", "60"]) as child:
            found = {key.tgid for key, _ in probe.lineage_table.ancestors()}
            child.terminate()
        assert child.pid in found


def test_many_generations_leave_no_entry(family: Family) -> None:
    def named_generations(probe: Probe) -> list[bytes]:
        return [
            ancestor.comm for _, ancestor in probe.lineage_table.ancestors() if ancestor.comm.startswith(b"generation")
        ]

    with followed(4096) as (probe, lineage):
        family("generations", 30)
        # While it grows, the line is no longer than what an event shows. One exit removes at most seven other entries.
        assert len(named_generations(probe)) == abi.LINEAGE_SIZE - 7
        lineage.sweep()
        lineage.sweep()
        assert named_generations(probe) == []


def test_the_daemon_keeps_nothing_of_ended_processes(start: Start, storm: Path) -> None:
    service = start("domains: [watched.test]")
    run_storm(storm, "orphan", 2000)
    service.get("/metrics")
    _, before = usage(service.process.pid)
    run_storm(storm, "leaf", 100_000)
    service.get("/metrics")
    _, after = usage(service.process.pid)
    assert after - before < 1024  # KiB; 100,000 objects of any kind take more
    assert service.by("dnsprobe_lineage_lost_total", "reason") == {"full": 0, "run_missed": 0}


#: Storms until the memory of the daemon is level at the latest. The first ones that it follows as it goes fragment it,
#: the more, the busier the host is.
STORMS = 8


def is_level(memories: list[int]) -> bool:
    """Return True if the last storm added less than the smallest object for each of 100,000 processes takes (KiB)."""
    return len(memories) > 2 and memories[-1] - memories[-2] < 4 * 1024


def test_100_000_processes_that_ask_and_end(start: Start, storm: Path, in_namespace: list[str]) -> None:
    service = start("domains: [watched.test]")
    # The daemon needs much memory if it was stopped until the kernel's maps are full.
    service.process.send_signal(signal.SIGSTOP)
    run_storm(storm, "asker", 80_000, in_namespace)
    service.process.send_signal(signal.SIGCONT)
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": 80_000}
    asked = 80_000
    memories: list[int] = []
    while not is_level(memories):
        assert len(memories) < STORMS, f"memory for ended processes (KiB after each storm): {memories}"
        run_storm(storm, "asker", 100_000, in_namespace)
        asked += 100_000
        # Trees of so many processes may find no room, but each query is counted.
        assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": asked}
        asked += wait_until_forgotten(service, storm, in_namespace)
        memories.append(memory(service.process.pid))


def memory(pid: int) -> int:
    """Return the KiB of a process that are resident."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0])


def wait_until_forgotten(service: Service, storm: Path, in_namespace: list[str]) -> int:
    """Wait until no ended process takes up room in the kernel and in the daemon. Return how many asked meanwhile.

    Each look starts processes itself, which take up room until the next sweep. So there is a sweep between two looks.
    """
    asked = 0
    until = time.monotonic() + PATIENCE
    while True:
        full = is_map_full(service, storm, in_namespace)
        asked += 2000
        if not full:
            return asked
        assert time.monotonic() < until, "ended processes still take up room"
        time.sleep(12)


def is_map_full(service: Service, storm: Path, in_namespace: list[str]) -> bool:
    """Start half as many new processes as one user has room for; return whether there was no room for one of them."""
    before = service.by("dnsprobe_queries_unattributed_total", "reason")
    run_storm(storm, "asker", 2000, in_namespace)
    return service.by("dnsprobe_queries_unattributed_total", "reason") != before


def test_the_sweep_finds_missed_exits() -> None:
    with followed(4096) as (probe, lineage):
        # Both look like processes whose exit was missed: one pid is free, the other is that of another process.
        nobody = abi.AncestorKey(start_ticks=1, tgid=2**22 - 1)
        somebody = abi.AncestorKey(start_ticks=1, tgid=os.getpid())
        missed = abi.Ancestor(0, abi.AncestorKey(0, 0), 3, False, False, False, False, b"missed")
        probe.lineage_table.add_ancestors((key, missed) for key in (nobody, somebody))
        for left in (2, 0):
            lineage.sweep()
            found = [ancestor for _, ancestor in probe.lineage_table.ancestors() if ancestor.comm == b"missed"]
            assert [ancestor.exited for ancestor in found] == [True] * left


def test_processes_are_seeded_from_procfs() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper, followed(4096) as (probe, _):
        found = {key.tgid: (key, ancestor) for key, ancestor in probe.lineage_table.ancestors()}
        _, ancestor = found[sleeper.pid]
        key, own = found[ancestor.parent.tgid]
        sleeper.terminate()
    assert (ancestor.comm, ancestor.start_ns, ancestor.has_others) == (b"sleep", 0, False)
    assert key == ancestor.parent
    assert own.has_others
    assert found[1][1].parent.tgid == 0
