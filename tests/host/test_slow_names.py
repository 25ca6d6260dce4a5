"""Nothing slow in the event loop: names that take expressions long, reloads of many rules, and many signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from conftest import PATIENCE, Service, until

Start = Callable[..., Service]
Scene = Callable[..., Any]

#: Takes longer than the universe exists for HOSTILE.
CATASTROPHIC = r"{pattern: '/(a+)+\.slow\.test$/', name: expression}"
HOSTILE = "a" * 60 + "b.slow.test"

#: Not more: the id of a rule that was removed is free only after a while.
MANY = 65_000


def children(pid: int) -> list[int]:
    """Return the children of all threads of a process."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def matching_process(service: Service) -> int:
    """Return the process that matches names for a daemon."""
    (found,) = [
        pid
        for pid in children(service.process.pid)
        if b"dnsprobe.pipeline.matching_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return found


def policy(pid: int) -> int:
    return os.sched_getscheduler(pid)


def test_a_name_that_takes_an_expression_too_long_is_counted_and_reported(start: Start, scene: Scene) -> None:
    service = start(f"domains: [{CATASTROPHIC}, other.test]")
    assert service.value("dnsprobe_names_undecided_total") == 0
    scene("send", HOSTILE, 3)
    assert service.get("/-/healthy") == "healthy\n"
    until(lambda: service.value("dnsprobe_names_undecided_total") == 1, "the name that takes too long")
    scene("send", HOSTILE, 4)
    scene("send", "aaa.slow.test", 5)
    scene("send", "other.test", 6)
    expected = {"(undecided)": 7, "expression": 5, "other.test": 6}
    until(lambda: sum(service.by("dnsprobe_queries_total", "domain").values()) == 18, "all queries")
    assert service.by("dnsprobe_queries_total", "domain") == expected
    service.wait_for("1 name took the rules longer than 50 ms of processor time: the queries count under (undecided)")
    assert any(HOSTILE in entry for entry in service.entries())
    # A sweep changes nothing.
    time.sleep(12)
    assert service.by("dnsprobe_queries_total", "domain") == expected


def test_the_daemon_answers_and_stops_while_expressions_run(start: Start, in_namespace: list[str]) -> None:
    service = start(f"domains: [{CATASTROPHIC}, other.test]")
    matching = matching_process(service)
    code = (
        "import socket, sys, struct\n"
        "sock = socket.socket(type=socket.SOCK_DGRAM)\n"
        "for number in range(2000):\n"
        "    labels = ('a' * 50 + f'{number}b', 'slow', 'test')\n"
        "    name = b''.join(bytes([len(label)]) + label.encode() for label in labels) + bytes(1)\n"
        "    message = bytes.fromhex('000101000001000000000000') + name + bytes.fromhex('00010001')\n"
        "    try: sock.sendto(message, ('127.0.0.1', 53))\n"
        "    except ConnectionRefusedError: pass\n"
    )
    subprocess.run([*in_namespace, sys.executable, "-c", code], check=True)
    until(lambda: service.value("dnsprobe_names_undecided_total") > 0, "a name that takes too long")
    # Thousands of names wait, and each takes its whole time.
    assert service.get("/-/healthy") == "healthy\n"
    assert (policy(service.process.pid), policy(matching)) == (os.SCHED_OTHER, os.SCHED_OTHER)
    assert service.value("dnsprobe_names_undecided_total") < 2000
    assert service.stop() == 0
    assert not Path(f"/proc/{matching}").exists()


def test_a_process_that_matches_names_is_replaced_when_it_is_killed(start: Start, scene: Scene) -> None:
    service = start("domains: ['ads*.test']")
    matching = matching_process(service)
    os.kill(matching, signal.SIGKILL)
    scene("send", "ads1.test", 7)
    until(lambda: service.by("dnsprobe_queries_total", "domain") == {"ads*.test": 7}, "all queries")
    assert matching_process(service) != matching


def test_a_thousand_signals_become_a_few_reloads(start: Start, scene: Scene) -> None:
    service = start("domains: [first.test]")
    service.configuration.write_text("domains: [first.test, 'ads*.test']")
    for number in range(1000):
        service.process.send_signal(signal.SIGHUP)
        if number % 100 == 0:
            assert service.get("/-/healthy") == "healthy\n"
    service.wait_for("reloaded: 2 rules")
    time.sleep(3)  # the pause between two reloads, twice
    reloads = service.err.read_text("utf-8").count("reloaded:")
    scene("send", "ads1.test", 7)
    assert service.by("dnsprobe_queries_total", "domain") == {"ads*.test": 7}
    assert 1 <= reloads <= 10


def test_a_reload_of_many_rules_blocks_nothing(start: Start, scene: Scene) -> None:
    service = start("domains: [kept.test, removed.test]")
    scene("send", "www.kept.test", 3)
    scene("send", "www.removed.test", 4)
    names = "\n".join(f"- d{number}.many.test" for number in range(MANY - 2))
    service.configuration.write_text(f"domains:\n- kept.test\n- 'ads*.test'\n{names}\n")
    service.process.send_signal(signal.SIGHUP)
    answers = sent = 0
    end = time.monotonic() + PATIENCE * 3
    while "reloaded:" not in service.err.read_text("utf-8") and time.monotonic() < end:
        assert service.by("dnsprobe_queries_total", "domain")["kept.test"] == 3 + sent
        answers += 1
        sent += scene("send", "www.kept.test", 5)["sent"]
    service.wait_for(f"reloaded: {MANY} rules")
    assert answers > 1
    scene("send", f"www.d{MANY - 3}.many.test", 6)
    scene("send", "www.removed.test", 8)
    scene("send", "ads7.test", 9)
    expected = {"kept.test": 3 + sent, "removed.test": 4, f"d{MANY - 3}.many.test": 6, "ads*.test": 9}
    assert service.by("dnsprobe_queries_total", "domain") == expected


def test_a_wrong_configuration_is_reported_by_a_reload(start: Start) -> None:
    service = start("domains: [first.test]")
    service.configuration.write_text("domains: ['/(/']")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("reload failed, the old rules stay in force")
    assert service.value("dnsprobe_config_last_reload_successful") == 0
    service.configuration.write_text("domains: [first.test]\njournal: {queue: 7}")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("only the rules were reloaded: other changes need a restart")
    assert service.value("dnsprobe_config_last_reload_successful") == 1


def test_a_stop_during_a_reload_leaves_no_process(start: Start) -> None:
    service = start("domains: [first.test]")
    names = "\n".join(f"- d{number}.many.test" for number in range(MANY))
    service.configuration.write_text(f"domains:\n{names}\n")
    service.process.send_signal(signal.SIGHUP)
    matching = matching_process(service)
    until(lambda: children(matching) != [], "the child that reads")
    (reading,) = children(matching)
    assert service.stop() == 0
    until(lambda: not Path(f"/proc/{reading}").exists(), "its end")


@pytest.mark.parametrize("path", ["/-/healthy", "/metrics"])
def test_answers_come_during_a_flood_of_new_names(
    start: Start, in_namespace: list[str], flood: Path, path: str
) -> None:
    expressions = ", ".join(rf"'/(^|\.)ads?[0-9]*\.n{number}\.test$/'" for number in range(200))
    service = start(f"domains: [{expressions}, '/^track/']")
    command = [*in_namespace, str(flood), "127.0.0.1", "53", "flood.test", "20000", "1", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sender:
        answers = 0
        while sender.poll() is None:
            with suppress(URLError):
                service.get(path)
                answers += 1
        assert sender.wait() == 0
    assert answers > 0
    assert service.stop() == 0
