"""What the kernel refuses, a daemon that does not run for a while, and a clock that is set.

strace(1) makes system calls fail.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import ALL_PATHS, PATIENCE, UNPRIVILEGED, Service, until
from running import PROGRAM
from scraped import add_up, samples_of
from test_children_that_die import EXCHANGED, detach_hooks, injecting, strace
from test_lifecycle import children

Scene = Callable[..., Any]
Start = Callable[..., Service]

if shutil.which("strace") is None:
    pytest.skip("takes strace: run scripts/test, which installs it", allow_module_level=True)


@pytest.mark.parametrize(
    ("error", "when"),
    [
        *(("EPERM", 1), ("EPERM", 40), ("ENOMEM", 20), ("ENOMEM", 90), ("EINVAL", 60), ("E2BIG", 100), ("ENOSYS", 1)),
        # The other errors of bpf(2), each at another step.
        *(("EACCES", 10), ("EAGAIN", 30), ("EBADF", 50), ("EBUSY", 70), ("EFAULT", 80), ("EINTR", 5), ("EMFILE", 15)),
        *(("ENOENT", 3), ("ENOSPC", 25), ("EOPNOTSUPP", 35), ("EEXIST", 45), ("ENODEV", 55), ("ENFILE", 65)),
    ],
)
def test_a_start_with_one_failing_call_has_a_clear_end(tmp_path: Path, error: str, when: int) -> None:
    """Call number ``when`` fails in each process: the start fails with a reason and a hint, or works without it."""
    (tmp_path / "c.yaml").write_text("domains: [fault.test]")
    command = [str(PROGRAM), "run", "--config", str(tmp_path / "c.yaml"), "--listen", "127.0.0.1:0"]
    prefix = [*strace(f"error={error}:when={when}", tmp_path / "trace"), "--seccomp-bpf"]
    with (tmp_path / "log").open("wb") as log:
        traced = subprocess.Popen([*prefix, *command, "--log-target", "console"], stdout=log, stderr=log)
    until(lambda: traced.poll() is not None or "ready after" in (tmp_path / "log").read_text("utf-8"))
    if traced.poll() is None:
        for pid in children(traced.pid, "dnsprobe"):
            subprocess.run(["kill", "-TERM", str(pid)], check=False)
    status = traced.wait(PATIENCE)
    text = (tmp_path / "log").read_text("utf-8")
    assert "INJECTED" in (tmp_path / "trace").read_text("utf-8")
    assert "Traceback" not in text
    if status:
        assert status == 1
        assert "  hint: " in text
    else:
        assert "stopped: 0 queries counted" in text


def test_a_daemon_goes_on_after_the_kernel_had_no_memory(start: Start, scene: Scene, tmp_path: Path) -> None:
    service = start("domains: [watched.test]")
    scene("invented", 0, 20, "before", "watched.test")
    service.get("/metrics")
    with injecting(service.process.pid, "error=ENOMEM:when=1+", tmp_path):
        scene("invented", 0, 20, "while", "watched.test")
        with pytest.raises(urllib.error.HTTPError) as refused:
            service.get("/metrics")
        assert refused.value.code == 500
        service.wait_for("cannot read the BPF maps, trying again: Cannot allocate memory")
        service.wait_for("n19.watched.test (A, udp) by")
    scene("invented", 0, 20, "after", "watched.test")
    counted = service.by("dnsprobe_queries_total", "process")
    assert counted == {f"{when}{number}": 1 for when in ("before", "while", "after") for number in range(20)}
    assert "Traceback" not in service.err.read_text("utf-8")


def test_a_reload_for_which_the_kernel_has_no_memory_leaves_the_old_rules(
    start: Start, scene: Scene, tmp_path: Path
) -> None:
    service = start("domains: [old.test]")
    service.configuration.write_text("domains: [old.test, new.test]")
    with injecting(service.process.pid, "error=ENOMEM:when=1+", tmp_path):
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("reload failed, the old rules stay in force: ")
    scene("send", "www.old.test", 7)
    scene("send", "www.new.test", 8)
    assert service.value("dnsprobe_config_last_reload_successful") == 0
    assert service.by("dnsprobe_queries_total", "domain") == {"old.test": 7}
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("reloaded: 2 rules")
    scene("send", "www.new.test", 9)
    assert service.by("dnsprobe_queries_total", "domain") == {"old.test": 7, "new.test": 9}


@pytest.mark.parametrize(("error", "when"), [("EPERM", "1+"), ("EINVAL", "3+"), ("EBUSY", "6+")])
def test_an_exchange_that_the_kernel_refuses_is_made_at_a_later_proof(
    start: Start, scene: Scene, tmp_path: Path, error: str, when: str
) -> None:
    """The calls of the loader fail, from the first one on, or while it attaches."""
    service = start(EXCHANGED)
    scene("send", "www.one.test", 11)
    (keeper,) = children(service.process.pid, "loader_keeper")
    with injecting(keeper, f"error={error}:when={when}", tmp_path):
        detach_hooks(service)
        line = service.wait_for("no other hook could be verified for udp4: ")
        scene("streams", "www.streams.test")
        assert service.by("dnsprobe_path_verified", "path")["udp4"] == 0
    assert os.strerror(getattr(errno, error)) in line
    service.wait_for("udp4 is proved again, at ")
    until(lambda: service.by("dnsprobe_path_verified", "path") == dict.fromkeys(ALL_PATHS, 1))
    scene("send", "www.one.test", 13)
    assert service.by("dnsprobe_queries_total", "transport") == {"udp": 24, "tcp": 1}
    assert service.stop() == 0
    assert "Traceback" not in service.err.read_text("utf-8")


def test_a_daemon_that_stands_still_counts_all(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]")
    service.process.send_signal(signal.SIGSTOP)
    sent = scene("invented", 0, 300, "still", "watched.test")["sent"]
    service.process.send_signal(signal.SIGCONT)
    assert sum(service.by("dnsprobe_queries_total", "process").values()) == sent
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": sent}


def test_what_finds_no_room_while_the_daemon_stands_still_is_counted(start: Start, scene: Scene) -> None:
    """Every buffer is too small: events, names that the daemon decides, processes and their counters."""
    sizes = "ring_size: 4KiB, processes: 64, counters: 64, names: 64, lineage: 64"
    service = start(f"domains: [watched.test, '/^n[0-9]+[.]decided[.]test$/']\nprobe: {{{sizes}}}")
    service.process.send_signal(signal.SIGSTOP)
    sent = scene("invented", 0, 300, "still", "watched.test")["sent"]
    asked = scene("invented", 0, 300, "still", "decided.test")["sent"]
    with ThreadPoolExecutor() as threads:
        scrape = threads.submit(service.get, "/metrics")
        time.sleep(0.5)
        service.process.send_signal(signal.SIGCONT)
        # It was asked for meanwhile, and is answered now.
        assert add_up(samples_of("dnsprobe_queries_total", scrape.result(PATIENCE)), "domain")["watched.test"] == sent
    service.wait_for("takes more than its share of ")
    lost = service.by("dnsprobe_events_lost_total", "reason")
    counted = service.by("dnsprobe_queries_total", "domain")
    assert counted.pop("watched.test") == sent
    assert 0 < sum(counted.values()) < asked
    assert sum(counted.values()) + lost["names_full"] == asked
    assert lost["ring_full"] > 0
    unattributed = service.by("dnsprobe_queries_unattributed_total", "reason")
    assert service.by("dnsprobe_queries_total", "process")["(other)"] >= unattributed["counters_full"] > 0
    # What comes later is complete.
    scene("send", "later.watched.test", 7)
    service.wait_for("later.watched.test (A, udp) by")
    assert service.by("dnsprobe_queries_total", "domain")["watched.test"] == sent + 7
    assert service.get("/-/ready") == "ready\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_of_the_log_changes_no_count(disk: Path, scene: Scene) -> None:
    service = Service("domains: [watched.test]", disk)
    try:
        scene("invented", 0, 20, "before", "watched.test")
        until(lambda: len(service.entries()) == 20)
        with (disk / "full").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        scene("invented", 0, 300, "full", "watched.test")
        for _ in range(50):  # the last page of the log may have room for some lines
            service.process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
            if service.value("dnsprobe_log_dropped_total"):
                break
        until(lambda: service.value("dnsprobe_journal_entries_total") + service.value(DROPPED) == 320)
        assert service.value(DROPPED) > 0
        assert service.value("dnsprobe_log_dropped_total") > 0
        assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": 320}
        assert service.get("/-/ready") == "ready\n"
        (disk / "full").unlink()
        service.wait_for("dropped: nobody read them")
        scene("invented", 0, 20, "after", "watched.test")
        until(lambda: any(line.startswith("after19[") for line in service.entries()))
        assert service.value("dnsprobe_journal_entries_total") + service.value(DROPPED) == 340
        assert service.stop() == 0
    finally:
        service.kill()


DROPPED = "dnsprobe_journal_dropped_total"
#: Without CAP_SYS_PTRACE, hidepid=2 hides the processes of all other users.
WITHOUT_PTRACE = [argument.replace(",+sys_ptrace", "") for argument in UNPRIVILEGED]


@pytest.mark.parametrize("user", [[], UNPRIVILEGED, WITHOUT_PTRACE], ids=["root", "service", "without CAP_SYS_PTRACE"])
def test_proc_that_hides_processes_does_not_disturb(
    start: Start, scene: Scene, tmp_path: Path, user: list[str]
) -> None:
    # The user of the service cannot read the folders of the tests.
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    mount = 'mount -t proc -o hidepid=2 proc /proc; exec "$@"'
    service = start("domains: [watched.test]", prefix=("unshare", "--mount", "sh", "-ec", mount, "sh", *user))
    scene("invented", 3_000_001, 5, "hidden", "watched.test")
    assert service.by("dnsprobe_queries_total", "process") == {f"hidden{number}": 1 for number in range(5)}
    for labels, _ in service.samples("dnsprobe_queries_total"):
        # The test, the scene, and its child, behind whatever has started the test.
        assert labels["tree"].endswith(f";{labels['process']}")
        assert labels["tree"].count(";") >= 2
    assert "uid 3000001" in service.wait_for("n4.watched.test (A, udp) by ")


#: Makes Python's wall clock wrong by the seconds in a file.
WRONG_CLOCK = """\
import os, time

def offset():
    with open(os.environ["OFFSET"]) as file:
        return int(file.read())

seconds, nanoseconds = time.time, time.time_ns
time.time = lambda: seconds() + offset()
time.time_ns = lambda: nanoseconds() + offset() * 10**9
"""
DAY = 24 * 3600


def test_a_clock_that_is_set_changes_only_the_times_that_are_shown(start: Start, scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WRONG_CLOCK)
    offset = tmp_path / "offset"
    offset.write_text("0")
    service = start(
        "domains: [one.test]\nprobe: {verify_interval: 1s}\nmetrics: {max_series: 8, series_ttl: 1h}",
        ["env", f"PYTHONPATH={tmp_path}", f"OFFSET={offset}"],
    )
    # Seven series are all that there is room for.
    scene("invented", 0, 7, "first", "one.test")
    first = {f"first{number}": 1 for number in range(7)}
    assert service.by("dnsprobe_queries_total", "process") == first
    started = service.value("process_start_time_seconds")
    for round_number, step in enumerate((2 * DAY, -2 * DAY, 0), 1):
        offset.write_text(str(step))
        time.sleep(2.5)  # a proof, and the regular work of each second
        scene("invented", 0, 2, "late", "one.test")
        # None has become idle, so none leaves.
        assert service.by("dnsprobe_queries_total", "process") == {**first, "(other)": 2 * round_number}
        assert service.value("dnsprobe_series_expired_total") == 0
        assert service.get("/-/ready") == "ready\n"
        # dnsprobe tree takes another time for a restart.
        assert service.value("process_start_time_seconds") == started
    assert "not proved" not in service.err.read_text("utf-8")
    assert service.stop() == 0
