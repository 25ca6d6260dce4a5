"""The end of the first boot: the unit is still the shipped one, and services for the next boot are prepared."""

from __future__ import annotations

from pathlib import Path

from installed import Service, query, run

UNITS = Path("/etc/systemd/system")


def ask(name: str) -> str:
    """Return a command line, for units and shells, that sends a query for a name to 127.0.0.1."""
    send = f"s.sendto(bytes.fromhex('{query(name).hex()}'), ('127.0.0.1', 53))"
    return f'/usr/bin/python3 -c "import socket; s = socket.socket(2, 2); {send}"'


def test_the_unit_is_exactly_the_shipped_one(service: Service) -> None:
    assert_shipped_unit(service)


def assert_shipped_unit(service: Service) -> None:
    """Assert that no test has changed the unit or other files of the package."""
    assert service.show("DropInPaths") == ""
    assert service.show("FragmentPath") in {f"{lib}/systemd/system/dnsprobe.service" for lib in ("/lib", "/usr/lib")}
    changed = run("dpkg", "--verify", "dnsprobe", check=False).splitlines()
    # The configuration is the administrator's.
    assert [line for line in changed if not line.endswith(" c /etc/dnsprobe/dnsprobe.yaml")] == []


def test_prepare_services_that_ask_early(service: Service) -> None:
    service.configure("domains: [boot.test]")
    # Like services that set up the network as a part of sysinit.target: cloud-init is one.
    (UNITS / "early.service").write_text(
        "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\nBefore=network.target sysinit.target\n"
        f"[Service]\nType=oneshot\nExecStart={ask('early.boot.test')}\n"
        "[Install]\nWantedBy=sysinit.target\n"
    )
    (UNITS / "ordinary.service").write_text(
        "[Unit]\nAfter=network.target\n"
        f"[Service]\nType=oneshot\nExecStart={ask('ordinary.boot.test')}\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    # A login at the console as early as possible.
    folder = UNITS / "serial-getty@ttyS0.service.d"
    folder.mkdir(exist_ok=True)
    (folder / "autologin.conf").write_text(
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear %I 115200 linux\n"
    )
    Path("/root/.profile").write_text(
        "systemctl is-active dnsprobe >/root/first-login\n" + ask("login.boot.test") + "\n"
    )
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "early.service", "ordinary.service")
    assert run("systemctl", "is-enabled", service.name).strip() == "enabled"
