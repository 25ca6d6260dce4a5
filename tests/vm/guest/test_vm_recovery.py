"""A hook that fails while the service runs gives way to another one, without a restart."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import PORTS, Service, run, send, until

DEBUG = Path("/sys/kernel/debug")
#: Switches all kprobes off and on: Documentation/trace/kprobes.rst.
SWITCH = DEBUG / "kprobes/enabled"
#: Debian's kernels keep kprobes from whoever lacks CAP_SYS_ADMIN above 2.
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")


@pytest.fixture
def _kprobes_allowed() -> Iterator[None]:
    before = PARANOID.read_text("ascii")
    PARANOID.write_text("2")
    if not SWITCH.exists():
        run("mount", "-t", "debugfs", "debugfs", DEBUG)
    yield
    SWITCH.write_text("1")
    PARANOID.write_text(before)


def used(service: Service) -> dict[str, str]:
    """Return how the hook of each path that is proved is attached."""
    proved = {labels["path"] for labels, value in service.samples("dnsprobe_path_verified") if value == 1}
    hooks = [labels for labels, _ in service.samples("dnsprobe_hook_info")]
    return {labels["path"]: labels["attach"] for labels in hooks if labels["path"] in proved}


def unready(service: Service) -> str:
    """Return why the service is not ready, empty if it is."""
    try:
        service.get("/-/ready")
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
    return ""


@pytest.mark.usefixtures("_kprobes_allowed")
def test_another_hook_serves_if_kprobes_are_switched_off(service: Service) -> None:
    service.restart(f"domains: [recovery.test]\nprobe: {{{PORTS}, attach: kprobe, verify_interval: 2s}}\n")
    pid = service.pid
    egress = dict.fromkeys(("tcp4", "tcp6", "parts4", "parts6"), "cgroup")
    assert used(service) == {"udp4": "kprobe", "udp6": "kprobe", **egress}
    send("www.recovery.test", 7)
    SWITCH.write_text("0")
    until(lambda: used(service) == {"udp4": "cgroup", "udp6": "cgroup", **egress}, "other hooks")
    assert unready(service) == ""
    send("www.recovery.test", 11)
    send("www.recovery.test", 12, "6")
    SWITCH.write_text("1")
    until(lambda: not unready(service), "all paths proved")
    send("www.recovery.test", 13)
    assert service.by("domain") == {"recovery.test": 43}
    assert service.pid == pid


@pytest.mark.usefixtures("_kprobes_allowed")
def test_a_hook_that_was_chosen_by_name_is_proved_again_after_it_has_failed(service: Service) -> None:
    probe = f"{PORTS}, attach: kprobe, tcp_hook: tcp_sendmsg_locked, verify_interval: 2s"
    service.restart(f"domains: [recovery.test]\nprobe: {{{probe}}}\n")
    pid = service.pid
    chosen = {"tcp4": "kprobe", "tcp6": "kprobe"}
    egress = dict.fromkeys(("udp4", "udp6", "parts4", "parts6"), "cgroup")
    assert used(service).items() >= chosen.items()
    SWITCH.write_text("0")
    until(lambda: used(service) == egress, "a failed proof, and other hooks for UDP")
    assert unready(service).startswith("503 not ready: tcp4: whole: the hook did not report the canary | tcp6: ")
    assert service.show("StatusText").startswith("not ready: tcp4: ")
    SWITCH.write_text("1")
    until(lambda: used(service).items() >= chosen.items(), "all paths proved")
    assert unready(service) == ""
    assert service.pid == pid
