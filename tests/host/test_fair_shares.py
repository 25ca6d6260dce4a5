"""One user floods; another user's counts, trees and events are as if nobody did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import HERE, IN_OWN_NET, PATIENCE, Service

from dnsprobe.process.share_names import find_cgroup_folder

Start = Callable[..., Service]

ATTACKS = HERE.parents[1] / "benchmarks" / "attacks.py"
ATTACKER, VICTIM = "64001", "64002"

CONFIGURATION = """\
domains: [w*.wild.test, plain.test]
probe: {processes: 1024, counters: 2048, names: 4096, recent: 8192, lineage: 4096, tree: lineage}
journal: {repeat: 1h}
"""
BY_DEFAULT = CONFIGURATION.replace("counters: 2048, ", "")


def play(attack: str) -> int:
    """Play an attack, and return how many queries the victim has sent."""
    command = [*IN_OWN_NET, sys.executable, str(ATTACKS), attack]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=PATIENCE * 3)
    sent: int = json.loads(done.stdout)["sent"]
    return sent


def exceeded(service: Service) -> dict[str, set[str]]:
    """Return the resources of which each user exceeded its share."""
    found: dict[str, set[str]] = {}
    for labels, times in service.samples("dnsprobe_share_exceeded_total"):
        assert times > 0
        found.setdefault(labels["user"], set()).add(labels["resource"])
    return found


@pytest.mark.parametrize(
    ("attack", "configuration", "asker", "in_tree", "resource"),
    [
        ("names", CONFIGURATION, "victim", "victim", "names"),
        ("events", CONFIGURATION, "victim", "victim", "events"),
        ("processes", CONFIGURATION, "victim", "victim", "processes"),
        ("counters", CONFIGURATION, "victim", "victim", "counters"),
        ("namespace", CONFIGURATION, "victim", "victim", "processes"),
        ("sleepers", CONFIGURATION, "orphan", "starter;orphan", "lineage"),
    ],
)
def test_a_flood_takes_nothing_from_another_user(
    start: Start, attack: str, configuration: str, asker: str, in_tree: str, resource: str
) -> None:
    service = start(configuration)
    sent = play(attack)
    assert service.by("dnsprobe_queries_total", "process")[asker] == sent
    trees = service.by("dnsprobe_queries_total", "tree")
    assert sum(times for tree, times in trees.items() if tree.endswith(in_tree) and ";" in tree) == sent
    assert resource in exceeded(service)[ATTACKER]
    # Whatever ids its processes have in a user namespace, they are one user.
    assert exceeded(service).keys() == {ATTACKER}
    service.wait_for(f"user {ATTACKER} takes more than its share of ")
    if attack != "names":  # thousands of names are decided at a time, and the terminal may be slower than they come
        service.stop()
        assert sum(f" {asker}[" in f" {line}" for line in service.entries()) == sent


KEEP = """\
import signal, sys
sys.path.insert(0, sys.argv[1])
import attacks
attacks._processes(int(sys.argv[2]))
print("asked", flush=True)
signal.pause()
"""


def test_control_groups_of_root_have_a_share_each(start: Start) -> None:
    """A service of root that floods takes nothing from another one."""
    folder = find_cgroup_folder()
    assert folder is not None
    groups = [folder / f"{name}-{os.getpid()}.service" for name in ("flooding", "asking")]
    started: list[subprocess.Popen[bytes]] = []
    service = start(CONFIGURATION)
    try:
        for group, count in zip(groups, (1200, 50), strict=True):
            group.mkdir()
            enter = [*IN_OWN_NET, "sh", "-ec", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "sh", str(group)]
            command = [*enter, sys.executable, "-c", KEEP, str(ATTACKS.parent), str(count)]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
            output = started[-1].stdout
            assert output is not None
            assert output.readline() == b"asked\n"
        units = service.by("dnsprobe_queries_total", "unit")
        assert units[groups[1].name] == 50
        found = service.samples("dnsprobe_share_exceeded_total")
        assert {(labels["user"], labels["unit"]) for labels, _ in found} == {("", groups[0].name)}
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        for group in groups:
            remove(group)


def remove(group: Path) -> None:
    """Remove a control group once its processes have ended."""
    until = time.monotonic() + PATIENCE
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def test_types_without_a_name_have_one_counter(start: Start) -> None:
    service = start(BY_DEFAULT)
    sent = play("types")
    assert service.by("dnsprobe_queries_total", "process")["victim"] == sent
    assert service.by("dnsprobe_queries_total", "process")["attacker"] == 65535
    assert "counters" not in exceeded(service).get(ATTACKER, set())
    assert service.by("dnsprobe_queries_unattributed_total", "reason")["counters_full"] == 0


def test_ended_ancestors_that_nobody_sees_take_no_room(start: Start) -> None:
    service = start(CONFIGURATION)
    # The chain is longer than the map of lineages.
    sent = play("chain")
    trees = service.by("dnsprobe_queries_total", "tree")
    assert sum(times for tree, times in trees.items() if tree.endswith("starter;orphan")) == sent
    assert exceeded(service) == {}
    assert service.by("dnsprobe_lineage_lost_total", "reason")["full"] == 0


def test_packets_that_wait_for_dead_neighbours_change_no_count(start: Start) -> None:
    service = start(CONFIGURATION)
    sent = play("neighbours")
    counted = service.by("dnsprobe_queries_total", "process")
    assert counted == {"victim": sent, "attacker": 8000}


def test_a_repeated_query_is_counted_while_others_ask_for_new_names(start: Start) -> None:
    service = start(CONFIGURATION)
    sent = play("recent")
    assert service.by("dnsprobe_queries_total", "process")["victim"] == sent
