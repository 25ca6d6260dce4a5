"""The service comes back after a kill and a hang, and leaves nothing in the kernel after a stop."""

from __future__ import annotations

import os
import signal
import time

from installed import CACHE, CONFIGURATION, TREE, Service, entries, run, send, until

#: With an entry for each query, because the tests of journald, which run next, need that.
GOOD = "domains: [life.test]\njournal: {repeat: 0}"
#: Whether this guest runs the tests of systemd and dpkg, such as an upgrade: see tests/vm/kernels.py.
TESTS_SYSTEMD = "VM_SYSTEMD" in os.environ


def send_and_count(service: Service, queries: int) -> None:
    """Send queries, and assert that the service has counted exactly these since its start."""
    send("www.life.test", queries)
    assert service.by("domain") == {"life.test": queries}


def compiled() -> dict[str, int]:
    """Return the files in the cache of compiled programs, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in CACHE.iterdir()}


def test_stop_leaves_nothing_attached(service: Service) -> None:
    assert len(service.programs()) > 0
    run("systemctl", "stop", service.name)
    assert service.state == "inactive (dead)"
    assert service.programs() == []
    assert run("bpftool", "map", "show").count("dnsprobe") == 0


def test_systemd_does_not_restart_it_with_a_wrong_configuration(service: Service) -> None:
    assert service.state == "inactive (dead)"
    service.configure("domains: [a..b]")
    run("systemctl", "start", service.name, check=False)
    until(lambda: service.state == "failed (failed)", "the failure")
    time.sleep(8)
    assert service.state == "failed (failed)"
    # systemd counts its own restarts since systemctl start.
    assert service.show("NRestarts") == "0"
    assert service.show("ExecMainStatus") == "2"


def upgrade(service: Service) -> None:
    """Install the package over itself. A scrape in the meantime waits."""
    pid = service.pid
    (package,) = TREE.glob("dnsprobe_*.deb")
    run("dpkg", "--install", package)
    assert service.get("/-/ready") == "ready\n"
    assert service.pid != pid
    assert CONFIGURATION.read_text() == GOOD


def test_the_socket_unit_starts_the_service_and_keeps_its_address(service: Service) -> None:
    service.configure(GOOD)
    run("systemctl", "reset-failed", service.name)
    run("systemctl", "start", "dnsprobe.socket")
    try:
        # The scrape starts the service, and waits until it is ready.
        assert service.get("/-/ready") == "ready\n"
        if TESTS_SYSTEMD:
            upgrade(service)
        send_and_count(service, 109)
    finally:
        run("systemctl", "stop", "dnsprobe.socket")
    assert service.state == "active (running)"


def test_the_service_comes_back_after_a_kill(service: Service) -> None:
    held = len(service.programs())
    kept = compiled()
    assert {name.partition("-")[0] for name in kept} == {"layout", "programs"}
    pid = service.signal(signal.SIGKILL)
    until(lambda: service.state == "active (running)" and service.pid not in {0, pid}, "the service back")
    assert len(service.programs()) == held
    assert service.show("NRestarts") != "0"
    # Nothing was compiled again.
    assert compiled() == kept
    # Totals are in memory, so they begin at zero. Hooks of the killed service count nothing twice.
    send_and_count(service, 103)


def test_the_service_comes_back_after_a_hang(service: Service) -> None:
    held = len(service.programs())
    # systemd continues the process when it sends SIGABRT.
    pid = service.signal(signal.SIGSTOP)
    until(lambda: service.state == "active (running)" and service.pid not in {0, pid}, "the service back")
    assert len(service.programs()) == held
    messages = [str(entry["MESSAGE"]) for entry in entries(f"_PID={pid}")]
    assert any("Fatal Python error: Aborted" in line for line in messages)
    assert any("in run_forever" in line for line in messages), "where it hung"
    manager = run("journalctl", "-b", "-o", "cat", "_PID=1", f"UNIT={service.name}")
    assert "Watchdog timeout" in manager
    assert "Failed with result 'watchdog'" in manager
    send_and_count(service, 107)
