"""Who started it: those who did are known when they are gone, and nothing is kept of who is gone for good."""

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
from dnsprobe.kernel.probe import Probe, Sizes, Where
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
    """Return the command that runs a function of families.py in a namespace, whose name has to be added."""
    return [*in_namespace, sys.executable, str(HERE / "families.py")]


@pytest.fixture
def family(command: list[str]) -> Family:
    """Give a function that runs a function of families.py and returns the JSON that it prints."""

    def run(name: str, *arguments: object) -> Any:
        done = subprocess.run(
            [*command, name, *map(str, arguments)], stdout=subprocess.PIPE, check=True, timeout=PATIENCE
        )
        return json.loads(done.stdout)

    return run


def queries(watch: Program) -> dict[str, dict[str, Any]]:
    """End the watch, and return what it showed by the first label after ``www.``."""
    assert watch.stop() == 0
    found = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    by_name = {query["qname"].split(".")[1]: query for query in found}
    assert len(by_name) == len(found)
    return by_name


def parents(query: dict[str, Any]) -> list[Named]:
    return [(parent["pid"], parent["comm"]) for parent in query["ancestors"]]


def gone(query: dict[str, Any]) -> list[Named]:
    return [(starter["pid"], starter["comm"]) for starter in query["lineage"] if starter["exited"]]


def there(query: dict[str, Any]) -> list[Named]:
    return [(starter["pid"], starter["comm"]) for starter in query["lineage"] if not starter["exited"]]


def named(told: list[list[Any]]) -> list[Named]:
    return [(pid, printable(comm)) for pid, comm in told]


def assert_told(query: dict[str, Any], truth: dict[str, Any]) -> None:
    """Both chains are as the family tells them."""
    assert parents(query) == named(truth["parents"])
    assert (gone(query), there(query)) == (named(truth["gone"]), named(truth["starters"]))
    assert [starter["exited"] for starter in query["lineage"]] == sorted(
        (starter["exited"] for starter in query["lineage"]), reverse=True
    )
    assert query["complete"]
    assert query["lineage_complete"]


@pytest.mark.parametrize("name", ["shell_gone", "shell_in_another_thread"])
def test_a_shell_that_is_gone(start_watch: Watch, family: Family, sender: Path, name: str) -> None:
    watch = start_watch("--json", "orphan.test")
    truth = family(name, sender)
    query = queries(watch)["orphan"]
    assert (query["pid"], query["comm"]) == (truth["pid"], "orphan")
    assert tuple(truth["shell"]) not in parents(query)
    assert gone(query) == [tuple(truth["shell"])]
    assert there(query) == named(truth["starters"])
    assert query["lineage_complete"]
    # The tree is that of the parents, unless the configuration says otherwise.
    assert query["tree"] == ";".join([comm for pid, comm in reversed(parents(query)) if pid != 1] + ["orphan"])


@pytest.mark.parametrize("name", ["daemonised", "renamed"])
def test_who_forked_is_gone(start_watch: Watch, family: Family, name: str) -> None:
    watch = start_watch("--json", "daemon.test", "renamed.test")
    truth = family(name)
    (query,) = queries(watch).values()
    assert query["pid"] == truth["pid"]
    assert_told(query, truth)


def test_who_forked_the_parent_is_gone(start_watch: Watch, family: Family) -> None:
    watch = start_watch("--json", "elder.test")
    truth = family("elder_gone")
    query = queries(watch)["elder"]
    assert parents(query) == named(truth["parents"])
    parent, *rest = ((starter["pid"], starter["comm"]) for starter in query["lineage"])
    assert parent == parents(query)[0]
    assert rest == [*named(truth["gone"]), *named(truth["starters"])]
    assert gone(query) == named(truth["gone"])


def test_more_generations_than_are_handed_over(start_watch: Watch, family: Family) -> None:
    watch = start_watch("--json", "generations.test")
    truth = family("generations", abi.LINEAGE_SIZE + 7)
    query = queries(watch)["generations"]
    assert gone(query) == named(truth["gone"])[: abi.LINEAGE_SIZE]
    assert there(query) == []
    assert not query["lineage_complete"]
    assert query["complete"]


def test_a_pid_that_another_has_now(start_watch: Watch, family: Family) -> None:
    watch = start_watch("--json", "reused.test", "impostor.test")
    truth = family("pid_reused")
    found = queries(watch)
    assert_told(found["reused"], truth)
    ((pid, _),) = gone(found["reused"])
    assert found["impostor"]["ancestors"][0]["pid"] == pid
    assert found["impostor"]["ancestors"][0]["comm"] == "impostor"
    assert found["impostor"]["lineage"] == []


def test_who_was_there_before(start_watch: Watch, command: list[str]) -> None:
    with subprocess.Popen(
        [*command, "there_before"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        watch = start_watch("--json", "before.test", "after.test")
        told, _ = process.communicate("\n", timeout=PATIENCE)
    truth = json.loads(told)
    found = queries(watch)
    for name in ("before", "after"):
        assert gone(found[name]) == named(truth["gone"])
        assert there(found[name]) == named(truth["starters"])


def test_nothing_to_tell_where_all_are_there(start_watch: Watch, scene: Scene) -> None:
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


def test_the_log_has_both(start: Start, family: Family) -> None:
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
    # While it does not read, the ring gets full: what the kernel keeps of the process is all there is.
    service.process.send_signal(signal.SIGSTOP)
    scene("oneshots", 50, 8)
    truth = family("daemonised")
    service.process.send_signal(signal.SIGCONT)
    starters = [*named(truth["gone"]), *named(truth["starters"])]
    tree = ";".join([*(comm for pid, comm in reversed(starters) if pid != 1), "daemon"])
    assert service.by("dnsprobe_queries_total", "tree")[tree] == 1
    assert not any("daemon.test" in entry for entry in service.entries())


def test_without_room_nothing_wrong_is_told(start: Start, start_watch: Watch, family: Family, tmp_path: Path) -> None:
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


def test_lineages_can_be_left_out(start_watch: Watch, family: Family, tmp_path: Path) -> None:
    configuration = tmp_path / "dnsprobe.yaml"
    configuration.write_text("probe: {lineage: 0, tree: lineage}")
    watch = start_watch("--json", "--config", str(configuration), "daemon.test")
    truth = family("daemonised")
    query = queries(watch)["daemon"]
    assert parents(query) == named(truth["parents"])
    assert (query["lineage"], query["lineage_complete"]) == ([], True)


def test_a_kernel_that_does_not_let_us(start: Start, family: Family, tmp_path: Path) -> None:
    # Type information in which the count of a process's threads has another name.
    (tmp_path / "btf").write_bytes(Path("/sys/kernel/btf/vmlinux").read_bytes().replace(b"\0live\0", b"\0dead\0"))
    service = start(f"domains: [daemon.test]\nprobe: {{btf: {tmp_path / 'btf'}, tree: lineage}}")
    truth = family("daemonised")
    assert "who started whom is not followed: this kernel has no signal_struct.live" in service.err.read_text("utf-8")
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
    """Give a probe that follows lineages in a map of so many entries, and what tends them."""
    sizes = Sizes(ring=4096, processes=16, counters=16, names=16, recent=16, lineage=entries)
    probe = Probe(Where([5], tcp_hook="none"), sizes, repeat_ns=0)
    lineage = Lineage(probe, entries, ProcFS())
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
    return [ancestor for _, ancestor in probe.ancestors() if ancestor.comm in {b"storm", b"shell", b"compiler"}]


@pytest.mark.parametrize(("kind", "families"), [("leaf", 100_000), ("job", 5_000), ("orphan", 10_000)])
def test_processes_that_are_gone_leave_nothing_behind(storm: Path, kind: str, families: int) -> None:
    with followed(4096) as (probe, lineage):
        made = run_storm(storm, kind, families)
        statistics = probe.statistics()
        assert statistics[abi.Statistic.LINEAGE_ADDED] >= made >= families
        assert (probe.lineage_full(), probe.lineage_missed_runs()) == (0, 0)
        # The kernel alone forgets them. What two CPUs come to at once may be left to the sweep, on some machines.
        assert len(named_storm(probe)) < made / 1000
        lineage.sweep()
        lineage.sweep()
        assert named_storm(probe) == []


def test_room_comes_back() -> None:
    there = sum(name.isdecimal() for name in os.listdir("/proc"))
    with followed(there + 30) as (probe, _):
        children = [subprocess.Popen(["sleep", "60"]) for _ in range(60)]
        found = {key.tgid for key, _ in probe.ancestors()}
        # Others on this host fork as well.
        assert 0 < len({child.pid for child in children} - found) <= probe.lineage_full()
        for child in children:
            child.terminate()
            child.wait()
        with subprocess.Popen(["sleep", "60"]) as child:
            found = {key.tgid for key, _ in probe.ancestors()}
            child.terminate()
        assert child.pid in found


def test_many_generations_leave_nothing_behind(family: Family) -> None:
    def named_generations(probe: Probe) -> list[bytes]:
        return [ancestor.comm for _, ancestor in probe.ancestors() if ancestor.comm.startswith(b"generation")]

    with followed(4096) as (probe, lineage):
        family("generations", 30)
        # One exit takes along seven others.
        assert len(named_generations(probe)) == 30 - 7
        lineage.sweep()
        lineage.sweep()
        assert named_generations(probe) == []


def test_memory_of_the_daemon_stays(start: Start, storm: Path) -> None:
    service = start("domains: [watched.test]")
    run_storm(storm, "orphan", 2000)
    service.get("/metrics")
    _, before = usage(service.process.pid)
    run_storm(storm, "leaf", 100_000)
    service.get("/metrics")
    _, after = usage(service.process.pid)
    assert after - before < 1024  # KiB; 100,000 of anything would be more
    assert service.by("dnsprobe_lineage_lost_total", "reason") == {"full": 0, "run_missed": 0}


def test_100_000_who_ask_and_are_gone(start: Start, storm: Path, in_namespace: list[str]) -> None:
    service = start("domains: [watched.test]")
    run_storm(storm, "asker", 20_000, in_namespace)
    service.get("/metrics")
    _, before = usage(service.process.pid)
    run_storm(storm, "asker", 80_000, in_namespace)
    # So many at once may find no room for their trees, but none is lost.
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": 100_000}
    _, after = usage(service.process.pid)
    assert after - before < 24 * 1024  # KiB; 80,000 of anything would be more
    until = time.monotonic() + PATIENCE
    while lacking_room(service, storm, in_namespace):
        assert time.monotonic() < until, "the room of those that are gone did not come back"
        time.sleep(1)


def lacking_room(service: Service, storm: Path, in_namespace: list[str]) -> bool:
    """True if the kernel had no room for one of so many new processes, which is half of what it can have."""
    before = service.by("dnsprobe_queries_unattributed_total", "reason")
    run_storm(storm, "asker", 4096, in_namespace)
    return service.by("dnsprobe_queries_unattributed_total", "reason") != before


def test_what_was_missed_is_found_by_the_sweep() -> None:
    with followed(4096) as (probe, lineage):
        # As if a process had ended unseen: its pid is nobody's, or somebody else's.
        nobody = abi.AncestorKey(start_ticks=1, tgid=2**22 - 1)
        somebody = abi.AncestorKey(start_ticks=1, tgid=os.getpid())
        missed = abi.Ancestor(0, abi.AncestorKey(0, 0), 3, False, False, False, False, b"missed")
        probe.add_ancestors((key, missed) for key in (nobody, somebody))
        for left in (2, 0):
            lineage.sweep()
            found = [ancestor for _, ancestor in probe.ancestors() if ancestor.comm == b"missed"]
            assert [ancestor.exited for ancestor in found] == [True] * left


def test_seeded_as_procfs_says() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper, followed(4096) as (probe, _):
        found = {key.tgid: (key, ancestor) for key, ancestor in probe.ancestors()}
        _, ancestor = found[sleeper.pid]
        key, own = found[ancestor.parent.tgid]
        sleeper.terminate()
    assert (ancestor.comm, ancestor.start_ns, ancestor.has_others) == (b"sleep", 0, False)
    assert key == ancestor.parent
    assert own.has_others
    assert found[1][1].parent.tgid == 0
