"""The package in a real Debian: apt installs it, systemctl enables it, and it is ready."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from installed import OUT, TREE, Service, entries, keep, kernel, run, status

#: The paths of a host that has IPv4 and IPv6.
ALL_PATHS = ("udp4", "udp6", "tcp4", "tcp6", "parts4", "parts6")


def test_the_package_installs_and_starts_nothing(service: Service) -> None:
    (package,) = TREE.glob("dnsprobe_*.deb")
    run("apt-get", "install", "--yes", "--no-install-recommends", package)
    assert run("systemctl", "is-enabled", service.name, check=False).strip() == "disabled"
    assert service.state == "inactive (dead)"
    assert service.programs() == []


def test_enable_now_makes_it_ready(service: Service) -> None:
    run("systemctl", "enable", "--now", service.name)
    assert service.state == "active (running)"
    # READY comes after the proof, so there is nothing to wait for.
    assert service.get("/-/ready") == "ready\n"
    assert service.by("path", "dnsprobe_path_verified") == dict.fromkeys(ALL_PATHS, 1)
    assert len(service.programs()) > 0


def test_the_status_line_has_hooks_rules_and_queries(service: Service) -> None:
    hooks = ", ".join(rf"{path} at (fentry|kprobe|tracepoint|cgroup) \w[\w.]*" for path in ALL_PATHS)
    shown = service.show("StatusText")
    assert re.fullmatch(f"{hooks}; 1 rule; [0-9]+ quer(y|ies)", shown), shown


def test_doctor_and_metrics_agree_on_the_hook_of_each_path(
    service: Service, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(compiled))
    output = run("dnsprobe", "doctor")
    (OUT / "doctor.txt").write_text(output)
    used = {labels["path"]: labels for labels, _ in service.samples("dnsprobe_hook_info")}
    assert set(used) == set(ALL_PATHS)
    for path, labels in used.items():
        shown = rf"{labels['hook']} \(\w+ {labels['symbol']}\)"
        assert re.search(f"^ok +{path} +{shown}, proved$", output, re.MULTILINE), output
    keep("hooks", {"kernel": kernel(), "hooks": {path: labels["symbol"] for path, labels in used.items()}})


def test_these_kernels_attach_to_functions_by_fentry(service: Service) -> None:
    hooks = {(labels["hook"], labels["attach"]) for labels, _ in service.samples("dnsprobe_hook_info")}
    assert hooks == {("ip_send_skb", "fentry"), ("cgroup_skb", "cgroup")}


def test_the_service_runs_as_an_ordinary_user_with_two_capabilities(service: Service) -> None:
    facts = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{service.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert facts["Uid"].split()[0] not in {"0", "65534"}
    # CAP_SYS_PTRACE and CAP_BPF
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == 1 << 19 | 1 << 39
    assert facts["NoNewPrivs"].strip() == "1"


def test_the_exposure_level_of_systemd_is_low(service: Service) -> None:
    shown = run("systemd-analyze", "security", "--no-pager", service.name)
    (value,) = re.findall(r"Overall exposure level for dnsprobe\.service: ([0-9.]+)", shown)
    assert float(value) <= 3.1, shown


def test_systemd_has_no_complaint_about_the_unit(service: Service) -> None:
    assert status("systemd-analyze", "verify", "--man=no", service.name, "dnsprobe.socket") == 0
    log = run("journalctl", "-b", "_PID=1", "-o", "cat")
    assert not [line for line in log.splitlines() if "dnsprobe" in line and re.search("[Uu]nknown|[Ii]gnor", line)]


def test_memory_stays_below_its_limit(service: Service) -> None:
    group = Path("/sys/fs/cgroup/system.slice/dnsprobe.service")
    used, events = (
        dict(line.split() for line in (group / file).read_text().splitlines())
        for file in ("memory.stat", "memory.events")
    )
    keep("memory", {"stat": used, "events": events, "tasks": int(service.show("TasksCurrent"))})
    # The rest is the page cache, which the kernel frees when it needs memory.
    assert int(used["anon"]) < 64 << 20
    assert events["oom_kill"] == "0"


def test_log_lines_are_in_the_journal() -> None:
    assert [entry for entry in entries("_SYSTEMD_UNIT=dnsprobe.service") if "ready after" in str(entry["MESSAGE"])]
