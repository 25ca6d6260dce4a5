"""The commands of docs/cookbook.md, run unchanged on a small host, print the output that the page shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import HERE, PATIENCE, until
from orphan import adopters
from stage import BACKUP, IN_CONTAINER, RESOLVER, Stage

PAGE = (HERE.parents[1] / "docs" / "cookbook.md").read_text("utf-8")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: Programs that run until they are interrupted.
ENDLESS = re.compile(r"\b(dnsprobe watch|journalctl .*-f)\b")

#: Parts of an output that differ from run to run: times, and ids of processes.
VARIES = [
    (re.compile(r"\b[A-Z][a-z]{2} [ 0-9][0-9] \d\d:\d\d:\d\d\b"), "DATE"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.0-9]*(Z|\+00:00)"), "DATE"),
    (re.compile(r"^\d\d:\d\d:\d\d\.\d{3}", re.MULTILINE), "TIME"),
    (re.compile(r"@\[[0-9.]+\]"), "@[TIME]"),
    (re.compile(r"\[\d+\]"), "[PID]"),
    (re.compile(r'("pid":)"?\d+"?'), r"\1PID"),
]


class Command(NamedTuple):
    """A block of commands, the heading above it, and the output below it."""

    heading: str
    script: str
    output: str


def commands() -> list[Command]:
    """Return the commands of the page. Raises AssertionError if one has no output below it."""
    found = []
    for section in re.split("^## ", PAGE, flags=re.MULTILINE):
        blocks = [(kind, text) for kind, text in _BLOCK.findall(section) if kind != "yaml"]
        assert [kind for kind, _ in blocks] == ["sh", "text"] * (len(blocks) // 2), section
        heading = section.splitlines()[0]
        found += [
            Command(heading, script, output) for (_, script), (_, output) in zip(blocks[::2], blocks[1::2], strict=True)
        ]
    return found


COMMANDS = commands()
LASTING = [command for command in COMMANDS if ENDLESS.search(command.script)]
SHORT = [command for command in COMMANDS if not ENDLESS.search(command.script)]


def named(command: Command) -> str:
    return f"{command.heading} {[each for each in COMMANDS if each.heading == command.heading].index(command) + 1}"


def rules() -> str:
    (text,) = (text for kind, text in _BLOCK.findall(PAGE) if kind == "yaml")
    return str(text)


def comparable(text: str) -> str:
    """Return an output without the parts that differ from run to run or from host to host."""
    pid_1 = Path("/proc/1/comm").read_text().rstrip("\n")
    text = text.replace(f"{pid_1}[1]", "systemd[1]")
    # The tests have started all processes here, not pid 1.
    text = re.sub(r"^started by .*\n", "", text, flags=re.MULTILINE)
    text = without_adopters(adopters(), text)
    for pattern, instead in VARIES:
        text = pattern.sub(instead, text)
    return text.rstrip("\n")


def without_adopters(comms: list[str], text: str) -> str:
    """Return an output without the processes with these comms, which adopt orphans on this host."""
    text = text.replace("".join(f"{comm};" for comm in comms), "")
    for comm in comms:
        text = re.sub(rf"^└─ {re.escape(comm)}\[\d+\]\n((?: .*\n)*)", dedented, text, flags=re.MULTILINE)
    return text


def dedented(found: re.Match[str]) -> str:
    return "".join(line[3:] for line in found[1].splitlines(keepends=True))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Return a host on which nothing has happened yet."""
    stage = Stage(tmp_path, rules())
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Return a host on which all events of the page have happened."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: run scripts/test, which unpacks Debian's")
    stage = Stage(tmp_path_factory.mktemp("stage"), rules())
    try:
        stage.start()
        stage.play("nightly", BACKUP)
        stage.start_second_host()
        stage.play("nightly", BACKUP)
        stage.play("miner", IN_CONTAINER)
        stage.play("stubby", RESOLVER)
        stage.keep_entries(7)
        stage.start_prometheus()
        yield stage
    finally:
        stage.close()


def play(stage: Stage, process: subprocess.Popen[str], *, journal: bool) -> str:
    """Wait until the endless program of a script is ready, send queries, interrupt it, and return its output."""
    assert process.stdout is not None
    assert process.stderr is not None
    if journal:
        program = wait_for_program(process, "journalctl")
        until(lambda: follows(program), "journalctl waits")
        stage.play("miner", IN_CONTAINER)
        stage.keep_entries(1)
        printed = process.stdout.readline()
    else:
        program = wait_for_program(process, "dnsprobe")
        assert process.stderr.readline().startswith("watching ")
        stage.play("nightly", BACKUP)
        printed = ""
    os.kill(program, signal.SIGINT)
    return printed + process.communicate()[0]


def follows(pid: int) -> bool:
    """Return whether journalctl waits for entries. Its output cannot show that: it is empty before the first entry."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "anon_inode:inotify" in links and state == "S"


def below(pid: int) -> list[int]:
    """Return the pids of a process and of all below it. A shell with one command executes it without a fork."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with suppress(OSError):  # the thread is gone
                found += map(int, children.read_text().split())
    return found


def named_pids(pid: int, comm: str) -> list[int]:
    found = []
    for each in below(pid):
        with suppress(OSError):  # the process is gone
            if Path(f"/proc/{each}/comm").read_text() == f"{comm}\n":
                found.append(each)
    return found


def wait_for_program(process: subprocess.Popen[str], comm: str) -> int:
    """Wait until a script runs a program, and return its pid."""
    until(lambda: bool(named_pids(process.pid, comm)), f"{comm} runs")
    return named_pids(process.pid, comm)[0]


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        for pid in below(process.pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("command", LASTING, ids=named)
def test_an_endless_command_prints_the_documented_output(stage: Stage, command: Command) -> None:
    """These run first: their queries would otherwise be in the counts of the other commands."""
    journal = "journalctl" in command.script
    if journal:
        stage.start()
    script = stage.command(command.script)
    with (
        stage.net.entered(),
        subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        too_long = threading.Timer(PATIENCE, end, [process])
        too_long.start()
        try:
            output = play(stage, process, journal=journal)
        finally:
            too_long.cancel()
            end(process)
    assert comparable(output) == comparable(command.output)


@pytest.mark.parametrize("command", SHORT, ids=named)
def test_a_command_that_ends_prints_the_documented_output(evening: Stage, command: Command) -> None:
    with evening.net.entered():
        done = subprocess.run(
            evening.command(command.script), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    assert (comparable(done.stdout), done.stderr) == (comparable(command.output), "")


def test_a_process_that_adopts_orphans_is_left_out() -> None:
    tree = (
        "asked by user;a;dig\nsystemd[1]\n└─ user[7]\n   └─ a[8]\n      └─ dig[9] root dig x\n\nsystemd[1]\n└─ b[10]\n"
    )
    assert without_adopters(["user"], tree) == (
        "asked by a;dig\nsystemd[1]\n└─ a[8]\n   └─ dig[9] root dig x\n\nsystemd[1]\n└─ b[10]\n"
    )


def test_there_is_no_command_outside_of_the_blocks() -> None:
    assert not re.search(r"^(    |\t)\S", _BLOCK.sub("", PAGE), re.MULTILINE)
