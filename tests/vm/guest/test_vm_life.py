"""The service stops, is killed, hangs: it comes back, and nothing stays in the kernel."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from installed import CONFIGURATION, TREE, Service, entries, run, send, until

#: With an entry for each query, as the tests of journald want it after these.
GOOD = "domains: [life.test]\njournal: {repeat: 0}"
CACHE = Path("/var/cache/dnsprobe")
#: Whether this guest runs the tests of systemd and dpkg, to which an upgrade belongs: see kernels.py of the harness.
TESTS_SYSTEMD = "VM_SYSTEMD" in os.environ


def counts(service: Service, queries: int) -> None:
    send("www.life.test", queries)
    assert service.by("domain") == {"life.test": queries}


def compiled() -> dict[str, int]:
    """Return what is kept for the next start, and when it was made."""
    return {path.name: path.stat().st_mtime_ns for path in CACHE.iterdir()}


def test_stop_leaves_nothing_attached(service: Service) -> None:
    assert len(service.programs()) > 0
    run("systemctl", "stop", service.name)
    assert service.state == "inactive (dead)"
    assert service.programs() == []
    assert run("bpftool", "map", "show").count("dnsprobe") == 0


def test_a_wrong_configuration_is_not_tried_again(service: Service) -> None:
    assert service.state == "inactive (dead)"
    service.configure("domains: [a..b]")
    run("systemctl", "start", service.name, check=False)
    until(lambda: service.state == "failed (failed)", "the failure")
    time.sleep(8)
    assert service.state == "failed (failed)"
    # systemd counts from the start that it was asked for.
    assert service.show("NRestarts") == "0"
    assert service.show("ExecMainStatus") == "2"


def upgrade(service: Service) -> None:
    """Install the package over itself: who scrapes meanwhile waits."""
    pid = service.pid
    (package,) = TREE.glob("dnsprobe_*.deb")
    run("dpkg", "--install", package)
    assert service.get("/-/ready") == "ready\n"
    assert service.pid != pid
    assert CONFIGURATION.read_text() == GOOD


def test_the_socket_unit_holds_the_address(service: Service) -> None:
    service.configure(GOOD)
    run("systemctl", "reset-failed", service.name)
    run("systemctl", "start", "dnsprobe.socket")
    try:
        # A scrape starts the service, and waits for it.
        assert service.get("/-/ready") == "ready\n"
        if TESTS_SYSTEMD:
            upgrade(service)
        counts(service, 109)
    finally:
        run("systemctl", "stop", "dnsprobe.socket")
    assert service.state == "active (running)"


def test_it_comes_back_after_a_kill(service: Service) -> None:
    held = len(service.programs())
    kept = compiled()
    assert {name.partition("-")[0] for name in kept} == {"layout", "programs"}
    pid = service.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: service.state == "active (running)" and service.pid not in {0, pid}, "the service back")
    assert len(service.programs()) == held
    assert service.show("NRestarts") != "0"
    # Nothing had to be compiled again.
    assert compiled() == kept
    # Totals are in memory: they begin at zero, and hooks of the one that was killed count nothing twice.
    counts(service, 103)


def test_it_comes_back_after_a_hang(service: Service) -> None:
    held = len(service.programs())
    pid = service.pid
    # A reload from a file that nobody writes: the loop waits for ever.
    CONFIGURATION.unlink()
    os.mkfifo(CONFIGURATION)
    os.kill(pid, signal.SIGHUP)
    time.sleep(5)
    CONFIGURATION.unlink()
    service.configure(GOOD)
    until(lambda: service.state == "active (running)" and service.pid not in {0, pid}, "the service back")
    assert len(service.programs()) == held
    said = [str(entry["MESSAGE"]) for entry in entries(f"_PID={pid}")]
    assert any("Fatal Python error: Aborted" in line for line in said)
    assert any("in _reload" in line for line in said), "where it hung"
    manager = run("journalctl", "-b", "-o", "cat", "_PID=1", f"UNIT={service.name}")
    assert "Watchdog timeout" in manager
    assert "Failed with result 'watchdog'" in manager
    counts(service, 107)
