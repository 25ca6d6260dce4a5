"""The commands in the installed journal.md, run on entries of real processes, and the units for alerts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import PATIENCE, SENDERS, Service, entries, run, until
from questions import follows, questions

#: The package installs it.
PAGE = Path("/usr/share/doc/dnsprobe/journal.md")
FOLLOWED = "What happens at a watched domain now?"
ACTING = "Acting on an entry"
SENDER = SENDERS / "send"
WEB = "7a1c" * 16
METADATA = Path(f"/var/lib/docker/containers/{WEB}")
#: As Docker names it without systemd. A scope of systemd could not be made twice in a row.
CGROUP = Path(f"/sys/fs/cgroup/docker/{WEB}")
SCRIPTS = Path("/root/scripts")
#: The kernel keeps login uids only with CONFIG_AUDIT.
AUDITED = Path("/proc/self/loginuid").exists()

# The first script runs the second one, and leaves a process behind.
NIGHTLY = f"""\
#!/bin/sh
{SCRIPTS}/make
until='until grep -q "^PPid:[[:space:]]*1$" /proc/$$/status; do sleep .2; done'
(setsid sh -c "$until; exec {SENDER} sendto 4 www.orphan.test 1" >/dev/null 2>&1 &)
"""
MAKE = f"""\
#!/bin/sh
{SENDER} sendto 4 www.example.test 1
{SENDER} sendto 4 updates.example.test 1
:
"""
ADA = f"""\
[ ! -e /proc/self/loginuid ] || echo 1000 >/proc/self/loginuid
exec setpriv --reuid=1000 --regid=1000 --clear-groups {SENDER} sendto 4 ada.example.test 1
"""

#: What the output of each command must contain. None: the command does not end by itself.
SHOWS: dict[str, list[list[str] | None]] = {
    "Who asked for a name since yesterday?": [
        ["asked for www.example.test (A, udp) by nightly;make;send"],
        ["www.example.test\tnightly;make;send", "ada.example.test\tsend"],
        ["www.example.test", "updates.example.test", "ada.example.test"],
    ],
    "Which names did a unit ask for?": [["updates.example.test\nwww.example.test\nwww.orphan.test\n"]],
    "When was a name asked for first?": [
        ["asked for www.example.test"],
        ["Z\twww.example.test\n", "Z\tpool.miners.test\n"],
    ],
    FOLLOWED: [None, ["pool.miners.test"]],
    "Which process trees ask most?": [["2\tnightly;make;send\n"]],
    "What did a user ask for?": [["ada.example.test"], ["ada.example.test"] if AUDITED else [], [" 1 ada\n"]],
    "What did a container ask for?": [["pool.miners.test"], ["pool.miners.test"]],
    "Which queries come from below a process?": [
        ["www.example.test", "updates.example.test"],
        ["www.example.test", "updates.example.test", "www.orphan.test"],
        ["www.orphan.test\tnightly;"],
    ],
    # Answers are off. The commands must run: test_vm_journald.py has results.
    "Which queries had an error, or no answer?": [[], []],
    "Which answers were slow?": [[]],
    "What was a name resolved to?": [[]],
    # There are no losses here. The commands must run.
    "What is not in the journal?": [[], [], []],
    "Whom to believe": [["www.example.test"]],
    "JSON": [["www.example.test\tA\tnightly;make;send\t"], ['"comm":"nightly"}']],
}
CASES = [
    pytest.param(heading, number, shows, id=f"{heading} {number}")
    for heading, several in SHOWS.items()
    for number, shows in enumerate(several)
    if shows is not None
]


def asked_of(heading: str) -> list[str]:
    """Return the commands below a heading of the document."""
    return questions(PAGE.read_text("utf-8"))[heading]


@pytest.fixture(scope="module", autouse=True)
def asked(service: Service) -> Iterator[None]:
    service.reload("domains: [example.test, orphan.test, {pattern: miners.test, priority: notice}]")
    run("useradd", "--uid=1000", "ada")
    METADATA.mkdir(parents=True)
    CGROUP.mkdir(parents=True)
    (METADATA / "config.v2.json").write_text('{"Name": "/web"}')
    SCRIPTS.mkdir()
    for name, text in (("nightly", NIGHTLY), ("make", MAKE)):
        (SCRIPTS / name).write_text(text)
        (SCRIPTS / name).chmod(0o755)
    try:
        run("systemd-run", "--wait", "--unit=backup.service", "--property=KillMode=process", SCRIPTS / "nightly")
        run("systemd-run", "--wait", "--unit=ada.service", "sh", "-c", ADA)
        mine("pool.miners.test")
        last = {"www.orphan.test", "ada.example.test", "pool.miners.test"}
        wanted = [f"DNSPROBE_QNAME={name}" for name in last]
        until(lambda: {entry["DNSPROBE_QNAME"] for entry in entries(*wanted)} == last, "the last entries")
        yield
    finally:
        shutil.rmtree(SCRIPTS)
        shutil.rmtree(METADATA.parents[1])
        CGROUP.rmdir()
        CGROUP.parent.rmdir()
        run("userdel", "ada")


def mine(name: str, sender: Path = SENDER) -> None:
    """Send a query from a container for a name that causes an alert."""
    run("sh", "-ec", 'echo $$ >"$0/cgroup.procs"; exec "$@"', CGROUP, sender, "sendto", "4", name, "1")


def make_pid() -> str:
    (entry,) = entries("DNSPROBE_QNAME=updates.example.test")
    (pid,) = [ancestor.split()[0] for ancestor in entry["DNSPROBE_ANCESTOR"] if ancestor.endswith(" make")]
    return str(pid)


def test_every_command_of_the_document_is_tested() -> None:
    for heading, several in SHOWS.items():
        assert [follows(command) for command in asked_of(heading)] == [shows is None for shows in several], heading


@pytest.mark.parametrize(("heading", "number", "shows"), CASES)
def test_a_command_shows_the_right_entries(heading: str, number: int, shows: list[str]) -> None:
    command = asked_of(heading)[number]
    # Only the pid in the document has to be replaced.
    command = command.replace("11845 make", f"{make_pid()} make")
    done = subprocess.run(["bash", "-uc", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    # journalctl --grep exits with 1 if it finds nothing.
    assert done.returncode == 0 or ("--grep" in command and not shows)
    for piece in shows:
        assert piece in done.stdout


def test_a_following_command_shows_new_entries() -> None:
    (command,) = [command for command in asked_of(FOLLOWED) if follows(command)]
    bounded = ["timeout", str(int(PATIENCE)), "bash", "-euc", f"exec {command}"]
    with subprocess.Popen(bounded, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "asked for pool.miners.test" in process.stdout.readline()
            mine("more.miners.test")
            assert "asked for more.miners.test" in process.stdout.readline()
        finally:
            process.terminate()  # timeout(1) also ends its command


@pytest.fixture
def alerts() -> Iterator[None]:
    """Install the units of the example with the commands of the document."""
    for command in asked_of(ACTING)[:4]:
        run("bash", "-euc", command)
    yield
    run("systemctl", "disable", "--now", "dnsprobe-alerts.service")
    for folder, pattern in (("/etc/systemd/system", "dnsprobe-alert*.service"), ("/usr/local/sbin", "dnsprobe-alert*")):
        for path in Path(folder).glob(pattern):
            path.unlink()
    shutil.rmtree("/var/lib/dnsprobe-alerts")
    run("systemctl", "daemon-reload")


@pytest.mark.usefixtures("alerts")
def test_a_watched_query_starts_a_unit_with_its_fields() -> None:
    hostile = SCRIPTS / "$(>trapped)"
    shutil.copy(SENDER, hostile)
    number = 0

    def acted() -> list[str]:
        return run("bash", "-euc", asked_of(ACTING)[4]).splitlines()

    def begun() -> bool:
        # Queries before the unit follows the journal cause no action.
        nonlocal number
        number += 1
        mine(f"begun{number}.miners.test")
        return any("begun" in line for line in acted())

    until(begun, "the first action")
    mine("acted.miners.test", hostile)
    until(lambda: any("acted.miners.test" in line for line in acted()), "an action")
    (line,) = [line for line in acted() if "acted.miners.test" in line]
    tail = "user root, unit -"
    assert re.fullmatch(rf"miners\.test: acted\.miners\.test by .*\$\(>trapped\), pid [0-9]+, {tail}", line), line
    assert not Path("/trapped").exists()
    # Entries that were written during a restart cause one action each.
    run("systemctl", "stop", "dnsprobe-alerts.service")
    mine("missed.miners.test")
    run("systemctl", "start", "dnsprobe-alerts.service")
    until(lambda: any("missed.miners.test" in line for line in acted()), "an action for what was missed")
    assert len([line for line in acted() if "acted.miners.test" in line]) == 1
    started = json.loads(run("systemctl", "list-units", "--failed", "--output=json", "dnsprobe-alert*") or "[]")
    assert started == []
