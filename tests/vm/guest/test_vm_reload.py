"""systemctl reload under load: unchanged rules lose no count, new rules count at once, a bad file changes nothing."""

from __future__ import annotations

import subprocess

import pytest
from installed import CONFIGURATION, SENDERS, Service, entries, run, send, status, until


class Load:
    """A process that sends queries for a name until :meth:`stop`."""

    def __init__(self, name: str) -> None:
        command = [str(SENDERS / "send"), "sendto", "4", name, "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def stop(self) -> int:
        """End it, and return the number of queries that it sent."""
        self._process.terminate()
        sent, _ = self._process.communicate()
        return int(sent)


@pytest.fixture(scope="module", autouse=True)
def started(service: Service) -> None:
    service.reload("domains: [kept.test, removed.test]")


def test_rules_come_and_go_under_load(service: Service) -> None:
    kept, removed, added = Load("www.kept.test"), Load("www.removed.test"), Load("www.added.test")
    until(lambda: service.by("domain").get("removed.test", 0) > 100, "queries of the rule to be removed")
    assert "added.test" not in service.by("domain")
    for number in range(2):
        extra = "".join(f", extra{each}.test" for each in range(number))
        service.reload(f"domains: [kept.test, added.test{extra}]")
    frozen = service.by("domain")["removed.test"]
    until(lambda: service.by("domain").get("added.test", 0) > 100, "queries of the new rule")
    assert service.by("domain")["removed.test"] == frozen
    sent = kept.stop()
    assert removed.stop() > frozen
    assert added.stop() >= service.by("domain")["added.test"]
    assert sent - service.missed_runs <= service.by("domain")["kept.test"] <= sent
    # From now on, all queries of the new rule count.
    before, missed = service.by("domain")["added.test"], service.missed_runs
    send("www.added.test", 1009)
    send("www.removed.test", 1009)
    counted = service.by("domain")["added.test"] - before
    assert 1009 - (service.missed_runs - missed) <= counted <= 1009
    assert service.by("domain")["removed.test"] == frozen


def test_a_bad_file_fails_the_reload_and_changes_nothing(service: Service) -> None:
    service.reload("domains: [kept.test]")
    load = Load("www.kept.test")
    before = service.by("domain")["kept.test"]
    good = CONFIGURATION.read_text()
    service.configure("domains: [kept.test]\nprobe: {ports: [none]}\n")
    pid = service.pid
    assert status("systemctl", "reload", service.name) != 0
    assert service.state == "active (running)"
    assert service.pid == pid
    until(
        lambda: [e for e in entries() if "2: probe.ports[0]: not a whole number (none)" in str(e["MESSAGE"])],
        "the reason in the journal",
    )
    assert service.by("domain")["kept.test"] >= before
    assert service.by("domain")["kept.test"] <= before + load.stop()
    service.configure(good)
    send("www.kept.test", 1009)
    run("systemctl", "reload", service.name)


def test_a_bad_file_after_the_check_leaves_the_old_rules(service: Service) -> None:
    """Only SIGHUP, without the check that the unit runs before."""
    good = CONFIGURATION.read_text()
    service.configure("domains: [a..b]\n")
    run("systemctl", "kill", "--signal=HUP", service.name)
    until(lambda: service.value("dnsprobe_config_last_reload_successful") == 0, "the failure in the metrics")
    until(lambda: entries("MESSAGE_ID=3345e3016851494f90a6dec05b504e5a"), "the failure in the journal")
    assert service.value("dnsprobe_rules") == 1
    service.reload(good)
    assert service.value("dnsprobe_config_last_reload_successful") == 1
