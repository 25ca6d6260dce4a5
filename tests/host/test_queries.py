"""Queries over UDP: exact counts, and the right process, tree and identity for each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import IN_OWN_NET, PATIENCE, Program, Service
from scenes import fork_as

from dnsprobe.kernel.abi import CHAIN_SIZE
from dnsprobe.model import Identity, Process
from dnsprobe.names.qtype import qtype_name
from dnsprobe.process.procfs import ProcFS
from dnsprobe.text import printable

#: A user id that no account of the host has.
NO_ACCOUNT = 3_000_001

Start = Callable[..., Service]
Scene = Callable[..., Any]

DOMAINS = (
    "dig dig6 getent getaddrinfo connected sendto sendmsg sendmmsg ipv6 ipv6connected mapped thread".split()  # noqa: SIM905
)


def tree_of(lineage: list[tuple[int, str]], comm: str) -> str:
    comms = [printable(name, also=";") for pid, name in reversed(lineage) if pid != 1]
    return ";".join([*comms, comm])


@pytest.mark.quick
def test_every_client_is_counted_exactly(start: Start, scene: Scene) -> None:
    service = start("domains: [" + ", ".join(f"{domain}.test" for domain in DOMAINS) + "]")
    truth = scene("clients")
    expected: Counter[tuple[str, str, str, str]] = Counter()
    for name, qtype, count in truth["received"]:
        domain = name.removesuffix(".test").rpartition(".")[2]
        if domain in DOMAINS:
            comm = truth["comms"][domain]
            key = (f"{domain}.test", qtype_name(qtype), comm, tree_of(truth["lineage"], comm))
            expected[key] += count
    assert {key[0].removesuffix(".test") for key in expected} == set(DOMAINS)
    seen = {
        (labels["domain"], labels["qtype"], labels["process"], labels["tree"]): value
        for labels, value in service.samples("dnsprobe_queries_total")
    }
    assert seen == expected
    # Totals do not change when the processes are folded, nor when dnsprobe is asked again.
    assert service.by("dnsprobe_queries_total", "domain") == service.by("dnsprobe_queries_total", "domain")
    assert service.stop() == 0
    entries = service.entries()
    for domain, pid in truth["pids"].items():
        assert any(f"{truth['comms'][domain]}[{pid}] asked for www.{domain}.test" in entry for entry in entries), domain


def test_a_process_that_exits_at_once_is_shown_with_its_whole_tree(
    start_watch: Callable[..., Program], scene: Scene
) -> None:
    watch = start_watch("--json", "oneshot.test")
    truth = scene("oneshots", 1000, 16)
    watch.stop()
    queries = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert len(queries) == 1000
    parents = truth["lineage"]
    for query in queries:
        comm = query["qname"].removesuffix(".oneshot.test")
        assert (query["comm"], query["pid"]) == (comm, truth["pids"].pop(comm))
        assert [(parent["pid"], parent["comm"]) for parent in query["ancestors"]] == [
            (pid, printable(name)) for pid, name in parents
        ]
        assert query["complete"]
        assert query["tree"] == tree_of(parents, comm)
    assert not truth["pids"]
    assert "1000 queries from 1000 process trees, 1000 shown, 0 lost" in watch.err.read_text("utf-8")


def test_a_process_that_exits_at_once_keeps_its_counts(start: Start, scene: Scene) -> None:
    service = start("domains: [oneshot.test]")
    truth = scene("oneshots", 1000, 16)
    trees = service.by("dnsprobe_queries_total", "tree")
    assert trees == {tree_of(truth["lineage"], f"p{index}"): 1 for index in range(1000)}


def test_a_query_has_the_user_of_its_moment(start_watch: Callable[..., Program], in_namespace: list[str]) -> None:
    watch = start_watch("--json", "user.test")
    program = (
        "import os, socket, sys\n"
        "send = lambda name: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes.fromhex("
        "'0001 0100 0001 0000 0000 0000') + name + b'\\4user\\4test\\0\\0\\1\\0\\1', ('127.0.0.1', 53))\n"
        "send(b'\\1a'); os.setuid(65534); send(b'\\1b')\n"
    )
    subprocess.run([*in_namespace, sys.executable, "-c", program], check=True)
    watch.stop()
    queries = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert [(query["uid"], query["user"]) for query in queries] == [(0, "root"), (65534, "nobody")]


def test_each_of_ten_thousand_programs_has_its_own_identity(
    start_watch: Callable[..., Program], scene: Scene, sender: Path
) -> None:
    watch = start_watch("--json", "execution.test")
    truth = scene("executions", sender, 10_000, 50)
    watch.stop()
    queries = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    # The number of trees may be lower, because the number of series is limited.
    assert re.search("^10000 queries from .*, 10000 shown, 0 lost$", watch.err.read_text("utf-8"), re.MULTILINE)
    tree = tree_of(truth["lineage"], "")
    for query in queries:
        comm = query["qname"].removesuffix(".execution.test")
        index = int(comm[1:])
        assert (query["comm"], query["pid"]) == (comm, truth["pids"].pop(comm))
        assert query["cmdline"] == [f"own name {index}", "sendto", "4", query["qname"], "1", comm]
        assert (query["uid"], query["gid"]) == (10000 + index % 11, 20000 + index % 7)
        assert (query["exe"], query["cgroup"]) == (str(sender), truth["cgroup"])
        assert {kind: query[f"{kind}_ns"] for kind in ("net", "pid", "mnt")} == truth["namespaces"]
        assert query["tree"] == tree + comm
        assert query["from_procfs"] == []
    assert not truth["pids"]


def test_execve_gives_a_process_a_new_identity(start_watch: Callable[..., Program], scene: Scene, sender: Path) -> None:
    watch = start_watch("--json", "replaced.test")
    truth = scene("replaced", sender)
    watch.stop()
    found = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    queries = {query["qname"].removesuffix(".replaced.test"): query for query in found}
    assert set(queries) == {"www", "child", "second"}
    assert queries["www"]["pid"] == queries["second"]["pid"] == truth["pid"]
    assert queries["www"]["exe"] == os.path.realpath(sys.executable)
    for name in ("child", "second"):
        assert queries[name]["exe"] == str(sender)
        assert queries[name]["cmdline"] == [str(sender), "sendto", "4", f"{name}.replaced.test", "1", name]
        assert queries[name]["from_procfs"] == []
    assert queries["child"]["ancestors"][0]["pid"] == truth["pid"]


def test_a_query_has_the_name_of_its_moment_and_the_first_command_line(
    start_watch: Callable[..., Program], scene: Scene, sender: Path
) -> None:
    watch = start_watch("--json", "renamed.test")
    truth = scene("renamed", sender)
    watch.stop()
    found = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    queries = {query["qname"].removesuffix(".renamed.test"): query for query in found}
    late, early = truth["pids"]
    assert {name: query["pid"] for name, query in queries.items()} == {
        **dict.fromkeys(("first", "second", "thread", "third"), late),
        "early": early,
    }
    # The comm is that of the process at the moment of the query, never that of a thread.
    assert {name: query["comm"] for name, query in queries.items()} == {
        "first": "first",
        "second": "second",
        "thread": "second",
        "third": "third",
        "early": "early",
    }
    for query in found:
        assert query["tree"] == tree_of(truth["lineage"], query["comm"])
        assert query["from_procfs"] == []
    # The command line is that of the first query of the program, even if the process has changed it since.
    assert truth["title"] == ["late title"]
    assert {name: query["cmdline"] for name, query in queries.items()} == {
        **dict.fromkeys(("first", "second", "thread"), truth["cmdline"]),
        "third": ["third title", "sendto", "4", "third.renamed.test", "1", "third"],
        "early": ["early title"],
    }


def test_a_process_that_changes_its_name_keeps_its_series(start: Start, scene: Scene, sender: Path) -> None:
    service = start("domains: [renamed.test]")
    truth = scene("renamed", sender)
    assert service.by("dnsprobe_queries_total", "tree") == {
        tree_of(truth["lineage"], "first"): 4,
        tree_of(truth["lineage"], "early"): 1,
    }
    assert service.by("dnsprobe_queries_total", "process") == {"first": 4, "early": 1}
    assert service.stop() == 0
    late, early = truth["pids"]
    shown = [entry.partition(" (")[0] for entry in service.entries()]
    assert shown == [
        f"first[{late}] asked for first.renamed.test",
        f"second[{late}] asked for second.renamed.test",
        f"second[{late}] asked for thread.renamed.test",
        f"third[{late}] asked for third.renamed.test",
        f"early[{early}] asked for early.renamed.test",
    ]


def test_a_reused_pid_belongs_to_another_process(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("--json", "reused.test")
    truth = scene("reused", 101)
    watch.stop()
    queries = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert {query["pid"] for query in queries} == {truth["pid"]}
    assert len({query["start_ns"] for query in queries}) == 101
    assert [(query["qname"], query["comm"], query["cmdline"], query["tree"]) for query in queries] == [
        (f"r{index}.reused.test", f"r{index}", [f"title {index}"], tree_of(truth["lineage"], f"r{index}"))
        for index in range(101)
    ]
    assert {tuple(query["from_procfs"]) for query in queries} == {()}


def test_processes_with_the_same_pid_have_separate_counts(start: Start, scene: Scene) -> None:
    service = start("domains: [reused.test]")
    truth = scene("reused", 101)
    expected = {tree_of(truth["lineage"], f"r{index}"): 1 for index in range(101)}
    assert service.by("dnsprobe_queries_total", "tree") == expected


def test_procfs_distinguishes_processes_with_the_same_pid() -> None:
    procfs = ProcFS()
    before = _idle_process(os.fork)
    assert procfs.alive(before)
    _end(before)
    # /proc has start times in clock ticks.
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))
    after = _idle_process(lambda: fork_as(before.tgid))
    try:
        assert (after.tgid, procfs.alive(after), procfs.alive(before)) == (before.tgid, True, False)
        assert procfs.identity(after).exe == os.path.realpath(sys.executable)
        assert procfs.identity(before) == Identity()
        assert procfs.ancestry(before) is None
    finally:
        _end(after)


def _idle_process(fork: Callable[[], int]) -> Process:
    pid = fork()
    if pid == 0:
        time.sleep(PATIENCE)
        os._exit(0)
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return Process(pid, started * 1_000_000_000 // os.sysconf("SC_CLK_TCK"), b"")


def _end(process: Process) -> None:
    os.kill(process.tgid, signal.SIGKILL)
    os.waitpid(process.tgid, 0)


def test_a_process_without_its_first_thread_is_identified(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("--json", "leaderless.test")
    truth = scene("leaderless")
    watch.stop()
    (query,) = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert (query["pid"], query["exe"], query["cmdline"]) == (
        truth["pid"],
        os.path.realpath(sys.executable),
        truth["cmdline"],
    )
    assert query["mnt_ns"] == truth["mnt_ns"]
    assert query["from_procfs"] == []
    assert query["tree"] == tree_of(truth["lineage"], query["comm"])


def test_a_query_has_the_login_user(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("--json", "login.test")
    truth = scene("logged_in", 4711)
    watch.stop()
    (query,) = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert query["loginuid"] == (4711 if truth["kept"] else None)
    assert query["uid"] == 0


CONTAINER = "3f4e" * 16
POD = "8d5c4c7e-3a1b-4f0e-9c2d-0123456789ab"
#: Control groups as runtimes make them, and what they mean: unit, container, runtime, pod.
CONTAINED = {
    f"/dnsprobe_tests.slice/docker-{CONTAINER}.scope": (f"docker-{CONTAINER}.scope", CONTAINER, "docker", None),
    f"/dnsprobe_tests.slice/libpod-{CONTAINER}.scope/container": (
        f"libpod-{CONTAINER}.scope",
        CONTAINER,
        "podman",
        None,
    ),
    f"/dnsprobe_tests.slice/kubepods-burstable-pod{POD.replace('-', '_')}.slice/cri-containerd-{CONTAINER}.scope": (
        f"cri-containerd-{CONTAINER}.scope",
        CONTAINER,
        "containerd",
        POD,
    ),
    f"/dnsprobe_tests/kubepods/besteffort/pod{POD}/{CONTAINER}": (None, CONTAINER, None, POD),
    "/dnsprobe_tests.slice/systemd-nspawn@web.service/payload": (
        "systemd-nspawn@web.service",
        "web",
        "systemd-nspawn",
        None,
    ),
    "/dnsprobe_tests.slice/plain.service": ("plain.service", None, None, None),
}


#: Prints the number of the user namespace, puts a program at the path of another one, and runs it.
FORGED = """\
stat --dereference --format=%i /proc/self/ns/user
mount --bind "$0" /usr/bin/true
/usr/bin/true "$@"
"""


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_an_executable_from_a_user_namespace_is_marked(
    start_watch: Callable[..., Program], in_namespace: list[str], sender: Path, outside: bool
) -> None:
    watch = start_watch("--json", "forged.test", "honest.test")
    asks = ["sendto", "4"]
    subprocess.run([*in_namespace, str(sender), *asks, "www.honest.test", "1"], check=True, timeout=PATIENCE)
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if outside:
        script = FORGED.replace('/usr/bin/true "$@"', "echo ready; read line")
        command = [*in_namespace, *unshare, "sh", "-ec", script, str(sender)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
            assert maker.stdout
            number = int(maker.stdout.readline())
            assert maker.stdout.readline() == "ready\n"
            program = f"/proc/{maker.pid}/root/usr/bin/true"
            subprocess.run([*in_namespace, program, *asks, "www.forged.test", "1"], check=True, timeout=PATIENCE)
            maker.communicate("\n", timeout=PATIENCE)
    else:
        command = [*in_namespace, *unshare, "sh", "-ec", FORGED, str(sender), *asks, "www.forged.test", "1"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE)
        number = int(done.stdout.splitlines()[0])
    assert watch.stop() == 0
    queries = {(query := json.loads(line))["qname"]: query for line in watch.out.read_text("utf-8").splitlines()}
    assert queries["www.honest.test"]["user_ns"] is None
    forged = queries["www.forged.test"]
    assert forged["exe"].endswith("/bin/true")
    assert forged["user_ns"] == number


def test_a_container_is_recognized_by_its_control_group(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("--json", "contained.test")
    truth = scene("contained", *CONTAINED)
    watch.stop()
    queries = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert len(queries) == len(CONTAINED)
    for query, (path, meaning), namespaces in zip(queries, CONTAINED.items(), truth, strict=True):
        assert query["cgroup"] == path
        assert (query["unit"], query["container"], query["container_runtime"], query["pod"]) == meaning
        assert query["container_name"] == ("web" if query["container_runtime"] == "systemd-nspawn" else None)
        assert (query["pid_ns"], query["mnt_ns"]) == (namespaces["pid"], namespaces["mnt"])
        assert "cgroup" not in query["from_procfs"]


#: Runs a command in a mount namespace where Docker has a file about a container.
WITH_DOCKER = """\
mount -t tmpfs none /var/lib
mkdir -p "/var/lib/docker/containers/$1"
echo '{"Name": "/web"}' > "/var/lib/docker/containers/$1/config.v2.json"
shift
exec "$@"
"""


def test_a_container_has_the_name_in_the_file_of_its_runtime(start: Start, scene: Scene) -> None:
    service = start("domains: [contained.test]", ["unshare", "--mount", "sh", "-ec", WITH_DOCKER, "sh", CONTAINER])
    scene("contained", *list(CONTAINED)[:2])
    assert service.stop() == 0
    docker, podman = service.entries()
    assert f", container {CONTAINER[:12]} (web), " in docker
    assert f", container {CONTAINER[:12]}, " in podman


def test_each_container_has_its_own_series(start: Start, scene: Scene) -> None:
    service = start("domains: [contained.test]")
    scene("contained", *CONTAINED)
    series = {
        (labels["unit"], labels["container"]): value for labels, value in service.samples("dnsprobe_queries_total")
    }
    assert series == {(unit or "", (container or "")[:12]): 1 for unit, container, _runtime, _pod in CONTAINED.values()}


def test_a_chain_deeper_than_the_limit_is_cut_and_marked(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("--json", "deep.test")
    scene("deep", CHAIN_SIZE + 10)
    watch.stop()
    (query,) = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert len(query["ancestors"]) == CHAIN_SIZE - 1
    assert not query["complete"]
    assert query["tree"].startswith("...;")
    assert [parent["comm"] for parent in query["ancestors"]] == [
        f"level{level}" for level in range(CHAIN_SIZE + 8, 9, -1)
    ]


def test_a_chain_of_more_than_32_levels_is_complete(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("--json", "deep.test")
    truth = scene("deep", 1)
    levels = 32 - len(truth["lineage"])
    scene("deep", levels)
    watch.stop()
    *_, query = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert query["complete"]
    assert [parent["comm"] for parent in query["ancestors"][: levels - 1]] == [
        f"level{level}" for level in range(levels - 2, -1, -1)
    ]


def test_a_repeated_query_causes_no_event_within_the_interval(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]")
    scene("send", "www.watched.test", 101)
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": 101}
    assert service.value("dnsprobe_events_total") == 1
    assert len(service.entries()) == 1


def test_with_repeat_zero_each_query_has_an_entry(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]\njournal: {repeat: 0}")
    scene("send", "www.watched.test", 101)
    assert service.stop() == 0
    assert len(service.entries()) == 101


def test_a_query_without_a_rule_causes_nothing(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]")
    scene("send_others", 500)
    assert service.samples("dnsprobe_queries_total") == []
    assert service.value("dnsprobe_events_total") == 0
    assert service.value("dnsprobe_journal_entries_total") == 0


def test_the_user_is_a_label_if_it_is_wanted(start: Start, scene: Scene, sender: Path) -> None:
    service = start("domains: [user.test]\nmetrics: {labels: [user]}")
    scene("invented", NO_ACCOUNT, 2, "made-up", "user.test")
    subprocess.run([*IN_OWN_NET, str(sender), "sendto", "4", "www.user.test", "3"], check=True, timeout=PATIENCE)
    assert service.by("dnsprobe_queries_total", "user") == {str(NO_ACCOUNT): 2, "root": 3}
