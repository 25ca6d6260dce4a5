"""After a reboot, the enabled service is ready before the first login and before services that send queries early."""

from __future__ import annotations

from pathlib import Path

import pytest
from installed import Service, Unit, entries, run, until
from test_vm_before_reboot import assert_shipped_unit


def since_boot(unit: Unit, what: str) -> int:
    """Return a timestamp of a unit, in microseconds since the boot."""
    moment = int(unit.show(f"{what}TimestampMonotonic"))
    assert moment > 0, f"{unit.name} has no {what} timestamp"
    return moment


def test_the_service_runs_after_the_boot(service: Service) -> None:
    assert service.state == "active (running)"
    assert service.show("NRestarts") == "0"
    assert service.get("/-/ready") == "ready\n"
    assert_shipped_unit(service)


def test_there_is_no_ordering_cycle() -> None:
    assert "ordering cycle" not in run("journalctl", "-b", "_PID=1", "-o", "cat")


def test_the_service_was_ready_before_the_first_login(service: Service) -> None:
    ready = since_boot(service, "ActiveEnter")
    assert ready < since_boot(Unit("systemd-user-sessions.service"), "ActiveEnter")
    assert ready < since_boot(Unit("serial-getty@ttyS0.service"), "ActiveEnter")
    until(lambda: Path("/root/first-login").exists(), "the login at the console")
    until(lambda: Path("/root/first-login").read_text() == "active\n", "the active service at the login")


def test_the_service_was_ready_before_early_services(service: Service) -> None:
    ready = since_boot(service, "ActiveEnter")
    assert ready <= since_boot(Unit("network-pre.target"), "ActiveEnter")
    assert ready <= since_boot(Unit("early.service"), "ExecMainStart")


@pytest.mark.parametrize("name", ["early", "ordinary", "login"])
def test_the_queries_of_early_services_were_seen(service: Service, name: str) -> None:
    until(lambda: entries(f"DNSPROBE_QNAME={name}.boot.test"), f"the query of {name}")
    (entry,) = entries(f"DNSPROBE_QNAME={name}.boot.test")
    assert entry["DNSPROBE_COMM"] == "python3"
    assert entry["DNSPROBE_TREE"] == ("login;bash;python3" if name == "login" else "python3")
    kept = name == "login" and Path("/proc/self/loginuid").exists()
    assert entry.get("DNSPROBE_LOGINUID") == ("0" if kept else None)
    until(lambda: service.by("domain") == {"boot.test": 3}, "all three queries")
