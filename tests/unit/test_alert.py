"""The example units that act on journal entries: which entries start a unit, and what the action receives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from journal_file import Fields, Journal
from made_up import HOSTILE, IDENTITY, TOO_MANY, hostile, query

from dnsprobe.model import Alert, Rule
from dnsprobe.sinks.journal import fields

FOLDER = Path(__file__).parents[2] / "packaging/alert"
FOLLOW, ACT = FOLDER / "dnsprobe-alerts", FOLDER / "dnsprobe-alert"
PATIENCE = 60.0
#: What the action prints about a process tree above a rate.
OFTEN = dict(fields(TOO_MANY, IDENTITY))["MESSAGE"]

#: Replaces systemctl, because systemd may not run here: it records its arguments, one in each line.
RECORDER = '#!/bin/sh\nprintf "%s\\n" "$@" >>"$RECORD"\n'


def watched(
    name: str = "www",
    unit: str = "dnsprobe.service",
    priority: int = 5,
    asker: str = "a.service",
    alerts: tuple[str, ...] = (),
) -> Fields:
    label = name.encode()
    rule = Rule(1, "test", "test", priority, Alert(4, unanswered=True))
    made = query(qname=bytes([len(label)]) + label + b"\4test\0", rule=rule, alerts=alerts)
    return [*fields(made, replace(IDENTITY, unit=asker)), ("_SYSTEMD_UNIT", unit), ("_UID", "64997")]


class Follower:
    """The script that follows the journal, with its own journal."""

    def __init__(self, folder: Path) -> None:
        self.record, self._folder = folder / "record", folder
        for name in ("journal", "state", "bin"):
            (folder / name).mkdir()
        (folder / "bin/systemctl").write_text(RECORDER)
        (folder / "bin/systemctl").chmod(0o755)
        self.journal = Journal(folder / "journal")
        self.record.touch()

    @contextmanager
    def running(self) -> Iterator[None]:
        path = f"PATH={self._folder}/bin:{os.environ['PATH']}"
        settings = [path, f"STATE_DIRECTORY={self._folder}/state", f"RECORD={self.record}"]
        command = self.journal.command("env", *settings, str(FOLLOW))
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            # pytest shows this if the test fails.
            print(process.communicate(timeout=PATIENCE)[1].decode())

    def started(self) -> list[str]:
        """Return the instances for which systemctl was called."""
        arguments = self.record.read_text().splitlines()
        assert arguments[::3] == ["start"] * (len(arguments) // 3)
        assert arguments[1::3] == ["--no-block"] * (len(arguments) // 3)
        escape = ["systemd-escape", "--unescape", "--template=dnsprobe-alert@.service"]
        return [subprocess.check_output([*escape, unit], text=True).rstrip("\n") for unit in arguments[2::3]]

    def asked(self) -> list[str]:
        """Return the names of the entries for which units were started."""
        return [self.act(cursor).split(" by ")[0] for cursor in self.started()]

    def wait_for_last(self, name: str) -> None:
        """Wait until a unit was started for the entry of this name, the last one that was written."""
        end = time.monotonic() + PATIENCE
        while "".join(self.act(cursor).split(" by ")[0] for cursor in self.started()[-1:]) != name:
            assert time.monotonic() < end
            # journalctl --follow shows the end of some bursts of journal-remote (2 of 700) only after the next change
            # of the file. A real journal keeps changing. No unit is started for this entry.
            self.journal.write([(time.time(), watched("ordinary", priority=6))])
            time.sleep(0.5)

    def act(self, cursor: str) -> str:
        return self.journal.run(str(ACT), cursor).rstrip("\n")

    def wait_until_it_follows(self) -> None:
        """Wait until it follows the journal: it skips entries from before its first start."""
        number, end = 0, time.monotonic() + PATIENCE
        while not self.started():
            assert time.monotonic() < end
            self.journal.write([(time.time(), watched(f"begun{number}"))])
            number += 1
            time.sleep(0.5)


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    return Follower(tmp_path)


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_an_entry_from_between_two_starts_is_acted_on(follower: Follower, tmp_path: Path) -> None:
    follower.journal.write([(time.time(), watched("before"))])
    with follower.running():
        eventually((tmp_path / "state/cursor").exists)
    follower.journal.write([(time.time(), watched("missed"))])
    with follower.running():
        eventually(lambda: follower.asked() == ["test: missed.test"])


def test_each_watched_query_starts_one_unit_over_restarts_and_boots(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = follower.journal.write
    write([(time.time(), watched("before"))])
    with follower.running():
        follower.wait_until_it_follows()
        write(
            [
                (time.time(), watched("one")),
                (time.time(), watched("ordinary", priority=6)),
                (time.time(), watched("forged", unit="session-3.scope")),
                (time.time(), watched("own", asker=r"dnsprobe-alert@s\x3d1.service")),
                (time.time(), watched("silent", priority=6, alerts=("unanswered",))),
                (time.time(), [*fields(TOO_MANY, IDENTITY), ("_SYSTEMD_UNIT", "dnsprobe.service")]),
                (time.time(), watched("two", priority=4)),
            ]
        )
        follower.wait_for_last("test: two.test")
    begun = [name for name in follower.asked() if "begun" in name]
    assert follower.asked() == [*begun, "test: one.test", "test: silent.test", OFTEN, "test: two.test"]
    write([(time.time(), watched("missed"))])
    monkeypatch.setattr("journal_file._BOOT", "5ad1b3f0c2e94b7e8d0a6f1c3b5d7e9f")
    write([(time.time(), watched("booted"))])
    with follower.running():
        eventually(lambda: len(follower.asked()) == len(begun) + 6)
        write([(time.time(), watched("last"))])
        follower.wait_for_last("test: last.test")
    first, *others = [f"test: {name}.test" for name in ("one", "silent", "two", "missed", "booted", "last")]
    assert follower.asked()[len(begun) :] == [first, others[0], OFTEN, *others[1:]]


def test_no_unit_name_and_no_command_contains_what_a_process_chose(follower: Follower, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    commands = [f"$(touch {trap})".encode(), f"`touch {trap}`".encode(), f"'; touch {trap} #".encode(), b"-n", b"%i%I"]
    with follower.running():
        follower.wait_until_it_follows()
        for raw in (*HOSTILE, *commands):
            made, identity = hostile(raw)
            entry = fields(replace(made, rule=Rule(1, "test", "test", 5)), identity)
            follower.journal.write([(time.time(), [*entry, ("_SYSTEMD_UNIT", "dnsprobe.service")])])
        follower.journal.write([(time.time(), watched("last"))])
        follower.wait_for_last("test: last.test")
    cursors = follower.started()
    assert len(cursors) > len(HOSTILE) + len(commands)
    assert all(set(cursor) <= set("0123456789abcdef=;ibmtsx") for cursor in cursors)
    for cursor in cursors:
        printed = follower.act(cursor)
        assert printed.isprintable()
        assert printed.startswith("test: ")
    assert not trap.exists()


def test_an_entry_that_is_gone_is_not_mistaken_for_another(follower: Follower) -> None:
    follower.journal.write([(time.time(), watched())])
    cursor = follower.journal.run("sh", "-c", "journalctl -o json | jq -r .__CURSOR").strip()
    assert follower.act(cursor) == "test: www.test by bash;make;dig, pid 4242, user ada, unit a.service"
    gone = cursor[:-4] + ("0000" if not cursor.endswith("0000") else "1111")
    done = subprocess.run(follower.journal.command(str(ACT), gone), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"there is no entry {gone} any more\n")


def test_shellcheck_accepts_the_scripts() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("takes: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", FOLLOW, ACT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_systemd_knows_every_line(tmp_path: Path) -> None:
    units = ["dnsprobe-alerts.service", "dnsprobe-alert@.service"]
    for unit in units:
        text = (FOLDER / unit).read_text("utf-8").replace("/usr/local/sbin/", f"{FOLDER}/")
        (tmp_path / unit).write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit) for unit in units)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
