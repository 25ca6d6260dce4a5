"""Removed and purged without a trace."""

from __future__ import annotations

from installed import Service, run, until


def test_removal_stops_it_and_keeps_the_configuration(service: Service) -> None:
    run("apt-get", "remove", "--yes", "dnsprobe")
    until(lambda: service.show("ActiveState") == "inactive", "the end of the service")
    assert service.programs() == []
    assert run("ls", "/etc/dnsprobe").split() == ["dnsprobe.yaml"]


def test_purge_leaves_nothing() -> None:
    run("apt-get", "purge", "--yes", "dnsprobe")
    left = run("find", "/", "-xdev", "-name", "*dnsprobe*", "-not", "-path", "/mnt/*", "-not", "-path", "/proc/*")
    assert left.split() == []
    assert "dnsprobe" not in run("systemctl", "list-unit-files", "--no-pager")
    assert "dnsprobe" not in run("journalctl", "--list-catalog", "--no-pager")
