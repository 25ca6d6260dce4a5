"""apt purges the running service without a trace."""

from __future__ import annotations

from installed import Service, run, until


def test_purge_leaves_nothing(service: Service) -> None:
    run("apt-get", "purge", "--yes", "dnsprobe")
    until(lambda: service.show("ActiveState") == "inactive", "the end of the service")
    assert service.programs() == []
    left = run("find", "/", "-xdev", "-name", "*dnsprobe*", "-not", "-path", "/mnt/*", "-not", "-path", "/proc/*")
    assert left.split() == []
    assert "dnsprobe" not in run("systemctl", "list-unit-files", "--no-pager")
    assert "dnsprobe" not in run("journalctl", "--list-catalog", "--no-pager")
