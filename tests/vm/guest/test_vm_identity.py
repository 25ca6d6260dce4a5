"""Identity and lineage of processes, for each way to start one, and with pids that are reused at once."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from installed import SENDERS, Service, ancestors, entries, own_unit, run, until

#: Processes that send one query each and exit. They share at most a hundred pids.
SHORT_LIVED = 307
PID_MAX = Path("/proc/sys/kernel/pid_max")
#: The kernel reuses pids from 300 on (RESERVED_PIDS, include/linux/threads.h).
FEW_PIDS = 400

SENDER = str(SENDERS / "send")
CONTAINER = "3f4e" * 16
#: The kernel keeps login uids only with CONFIG_AUDIT.
AUDITED = Path("/proc/self/loginuid").exists()
CRONTAB = Path("/etc/cron.d/launch")
#: Waits until its parent has ended, so that pid 1 is its parent.
ORPHAN = "until grep -q '^PPid:[[:space:]]*1$' /proc/$$/status; do sleep .2; done; exec"


def ask(name: str) -> list[str]:
    return [SENDER, "sendto", "4", f"{name}.launch.test", "1"]


class Launch(NamedTuple):
    """A way to start a process, and the expected entry. ``OURS`` in ``tree`` stands for this process and its ancestors.

    ``left`` is the number of shells that started the process and have ended.
    """

    command: list[str]
    tree: str
    user: str = "root"
    unit: str = own_unit()
    loginuid: str | None = None
    container: str | None = None
    left: int = 0


LAUNCHES = {
    "run": Launch(
        ["systemd-run", "--wait", "--uid=daemon", "--unit=launch-run", *ask("run")],
        tree="send",
        user="daemon",
        unit="launch-run.service",
    ),
    "timer": Launch(
        [
            *("systemd-run", "--on-active=1", "--timer-property=AccuracySec=100ms", "--unit=launch-timer"),
            *ask("timer"),
        ],
        tree="send",
        unit="launch-timer.service",
    ),
    "su": Launch(
        ["su", "--shell=/bin/sh", f"--command=exec {shlex.join(ask('su'))}", "daemon"],
        tree="OURS;su;send",
        user="daemon",
    ),
    "sudo": Launch(["sudo", "--user=daemon", *ask("sudo")], tree="OURS;sudo;send", user="daemon"),
    # pam_loginuid(8) of cron makes each job a login of its user.
    "cron": Launch(
        ["sh", "-c", f'echo "* * * * * daemon exec $1" > {CRONTAB}', "sh", shlex.join(ask("cron"))],
        tree="cron;cron;send",
        user="daemon",
        unit="cron.service",
        loginuid="1" if AUDITED else None,
    ),
    # The starter of the orphan has ended, so it is not in the tree. The unit stays the same.
    "orphan": Launch(
        ["sh", "-c", 'sh -c "$1" >/dev/null 2>&1 &', "sh", f"{ORPHAN} {shlex.join(ask('orphan'))}"],
        tree="send",
        left=1,
    ),
    "daemon": Launch(
        ["sh", "-c", '(setsid sh -c "$1" >/dev/null 2>&1 &); :', "sh", f"{ORPHAN} {shlex.join(ask('daemon'))}"],
        tree="send",
        left=2,
    ),
    "container": Launch(
        [
            *("systemd-run", "--scope", f"--unit=docker-{CONTAINER}.scope"),
            *("unshare", "--pid", "--fork", "--mount", "--uts", *ask("container")),
        ],
        tree="OURS;unshare;send",
        unit=f"docker-{CONTAINER}.scope",
        container=CONTAINER,
    ),
    # Root in the user namespace is an ordinary user outside.
    "userns": Launch(
        [
            *("setpriv", "--reuid=1", "--regid=1", "--clear-groups"),
            *("unshare", "--user", "--map-root-user", "--pid", "--fork", *ask("userns")),
        ],
        tree="OURS;unshare;send",
        user="daemon",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def watched(service: Service) -> None:
    service.reload("domains: [launch.test, reused.test]")


@pytest.fixture(scope="module")
def metadata() -> Iterator[None]:
    """Make a file about a container where Docker has it, readable for all. The unit does not hide it."""
    file = Path(f"/var/lib/docker/containers/{CONTAINER}/config.v2.json")
    file.parent.mkdir(parents=True)
    file.write_text('{"Name": "/web"}')
    yield
    run("rm", "-r", "/var/lib/docker")


@pytest.fixture(scope="module")
def launched(watched: None, metadata: None) -> dict[str, dict[str, Any]]:
    """Return the journal entry of each launch."""
    found: dict[str, dict[str, Any]] = {}

    def written() -> bool:
        found.update(
            (entry["DNSPROBE_QNAME"].partition(".")[0], entry) for entry in entries("DNSPROBE_DOMAIN=launch.test")
        )
        return found.keys() == LAUNCHES.keys()

    for launch in LAUNCHES.values():
        run(*launch.command)
    try:
        until(written, "an entry of each launch")
    finally:
        CRONTAB.unlink(missing_ok=True)
        print(json.dumps(found, indent=1))
    return found


@pytest.mark.parametrize("name", LAUNCHES)
def test_an_entry_has_tree_user_unit_and_container(name: str, launched: dict[str, dict[str, Any]]) -> None:
    entry, launch = launched[name], LAUNCHES[name]
    ours = ";".join(comm for _, comm in reversed(ancestors()[:-1]))
    assert entry["DNSPROBE_TREE"] == launch.tree.replace("OURS", ours)
    assert entry["DNSPROBE_USER"] == launch.user
    assert entry["DNSPROBE_UNIT"] == launch.unit
    assert entry.get("DNSPROBE_LOGINUID") == launch.loginuid
    assert entry.get("DNSPROBE_CONTAINER") == launch.container
    assert entry.get("DNSPROBE_CONTAINER_NAME") == (launch.container and "web")
    assert entry["DNSPROBE_EXE"] == SENDER
    assert entry["DNSPROBE_CMDLINE"] == shlex.join(ask(name))
    assert "DNSPROBE_FROM_PROCFS" not in entry
    pid_ns = os.stat("/proc/self/ns/pid").st_ino
    assert (entry["DNSPROBE_PID_NS"] == str(pid_ns)) == (name not in {"container", "userns"})


@pytest.mark.parametrize("name", LAUNCHES)
def test_an_entry_has_the_ended_starters(name: str, launched: dict[str, dict[str, Any]]) -> None:
    entry, launch = launched[name], LAUNCHES[name]
    starters = entry.get("DNSPROBE_LINEAGE", [])
    assert "DNSPROBE_LINEAGE_CUT" not in entry
    if not launch.left:
        assert starters == []
        return
    ours = ancestors()
    shells = ["sh"] * launch.left
    tree = [comm for _, comm in reversed(ours[:-1])]
    assert entry["DNSPROBE_LINEAGE_TREE"] == ";".join([*tree, *shells, "send"])
    assert sorted(starter for starter in starters if not starter.startswith("exited ")) == sorted(
        f"{pid} {comm}" for pid, comm in ours
    )
    assert [starter.split()[2] for starter in starters if starter.startswith("exited ")] == shells


def send_from_few_pids() -> list[int]:
    """Run senders one after the other, with different comms and arguments; return their pids."""
    before = PID_MAX.read_text()
    PID_MAX.write_text(str(FEW_PIDS))
    pids = []
    try:
        for index in range(SHORT_LIVED):
            arguments = [f"own name {index}", "sendto", "4", f"r{index}.reused.test", "1", f"r{index}"]
            pids.append(os.posix_spawn(SENDER, arguments, os.environ))
            os.waitpid(pids[-1], 0)
    finally:
        PID_MAX.write_text(before)
    return pids


def test_a_process_with_a_reused_pid_has_its_own_identity(service: Service) -> None:
    pids = send_from_few_pids()
    # Most pids were reused while dnsprobe read about their processes.
    assert len(set(pids)) < SHORT_LIVED / 2
    found: list[dict[str, Any]] = []

    def written() -> bool:
        found[:] = entries("DNSPROBE_DOMAIN=reused.test")
        return len(found) >= SHORT_LIVED

    until(written, "all entries")
    ours = ancestors()
    tree = ";".join(comm for _, comm in reversed(ours[:-1]))
    seen = {entry["DNSPROBE_QNAME"].partition(".")[0]: entry for entry in found}
    assert len(seen) == len(found) == SHORT_LIVED
    for index, pid in enumerate(pids):
        entry = seen[f"r{index}"]
        arguments = shlex.join([f"own name {index}", "sendto", "4", f"r{index}.reused.test", "1", f"r{index}"])
        assert (entry["DNSPROBE_COMM"], entry["DNSPROBE_PID"]) == (f"r{index}", str(pid))
        assert (entry["DNSPROBE_EXE"], entry["DNSPROBE_CMDLINE"]) == (SENDER, arguments)
        assert entry["DNSPROBE_TREE"] == f"{tree};r{index}"
        assert sorted(entry["DNSPROBE_ANCESTOR"]) == sorted(f"{pid} {comm}" for pid, comm in ours)
        assert "DNSPROBE_FROM_PROCFS" not in entry
    trees = {
        labels["tree"]: value
        for labels, value in service.samples("dnsprobe_queries_total")
        if labels["domain"] == "reused.test"
    }
    assert trees == {f"{tree};r{index}": 1 for index in range(SHORT_LIVED)}
