"""If journald is down, full or limits rates, dnsprobe continues: queries and dropped entries are counted exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import Service, entries, run, send, until

SOCKETS = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket")
#: Earlier tests have started the service with an entry for each query.
CONFIGURATION = "domains: [journald.test]\njournal: {repeat: 0}"
DROP_IN = Path("/etc/systemd/journald.conf.d/strict.conf")


@pytest.fixture(scope="module", autouse=True)
def started(service: Service) -> Iterator[None]:
    service.reload(CONFIGURATION)
    yield
    DROP_IN.unlink(missing_ok=True)
    run("systemctl", "restart", "systemd-journald")


def ask(service: Service, label: str, count: int) -> None:
    """Send ``count`` queries, and wait until the event of each is written or dropped.

    One user's part of the ring takes nearly 1000 events. If the daemon does not read meanwhile, more are lost.
    """
    events = service.value("dnsprobe_events_total")
    send(f"{label}.journald.test", count)
    # The daemon may not have read the last ones yet.
    until(lambda: service.value("dnsprobe_events_total") == events + count, "all events")
    wait_for_writes(service)


def send_and_find_all(service: Service, label: str, count: int) -> None:
    """Send ``count`` queries, and assert that each has its entry in the journal."""
    wait_for_writes(service)
    written, dropped = entry_counts(service)
    ask(service, label, count)
    assert entry_counts(service) == (written + count, dropped)
    until(lambda: len(entries(f"DNSPROBE_QNAME={label}.journald.test")) == count, "all entries")


def counted(service: Service) -> int:
    return sum(service.by("domain").values())


def entry_counts(service: Service) -> tuple[int, int]:
    """Return the numbers of written and of dropped entries."""
    return (
        int(service.value("dnsprobe_journal_entries_total")),
        int(service.value("dnsprobe_journal_dropped_total")),
    )


def wait_for_writes(service: Service) -> None:
    """Wait until all events are either written or dropped."""
    until(lambda: sum(entry_counts(service)) == service.value("dnsprobe_events_total"), "all events written or dropped")


def test_entries_are_dropped_and_counted_while_journald_is_down(service: Service) -> None:
    wait_for_writes(service)
    written, dropped = entry_counts(service)
    before = counted(service)
    run("systemctl", "stop", *SOCKETS, "systemd-journald.service")
    try:
        ask(service, "away", 101)
        assert entry_counts(service) == (written, dropped + 101)
        assert counted(service) == before + 101
        assert service.state == "active (running)"
    finally:
        run("systemctl", "start", *SOCKETS, "systemd-journald.service")
    send_and_find_all(service, "back", 103)
    assert entry_counts(service) == (written + 103, dropped + 101)
    assert counted(service) == before + 204
    assert entries("DNSPROBE_QNAME=away.journald.test") == []
    # Log lines reach the new journald, too.
    before_reload = len(entries("MESSAGE=reloaded: 1 rule"))
    service.reload(CONFIGURATION)
    until(lambda: len(entries("MESSAGE=reloaded: 1 rule")) == before_reload + 1, "a log line")


def test_a_restart_of_journald_loses_nothing(service: Service) -> None:
    run("systemctl", "restart", "systemd-journald")
    send_and_find_all(service, "restarted", 107)


def test_a_full_disk_of_journald_changes_no_count(service: Service) -> None:
    wait_for_writes(service)
    written, dropped = entry_counts(service)
    before = counted(service)
    folder = next(Path("/var/log/journal").iterdir())
    run("mount", "-t", "tmpfs", "-o", "size=1M,mode=0755", "tmpfs", folder)
    try:
        run("systemctl", "restart", "systemd-journald")
        with (folder / "full").open("wb") as file:
            try:
                while True:
                    file.write(bytes(65536))
                    file.flush()
            except OSError:
                pass
        ask(service, "full", 509)
        # journald has received all entries. It reports itself which ones it could not store.
        assert entry_counts(service) == (written + 509, dropped)
        assert counted(service) == before + 509
        assert service.state == "active (running)"
        assert service.get("/-/ready") == "ready\n"
    finally:
        run("systemctl", "stop", "systemd-journald.service", check=False)
        run("umount", "--lazy", folder)
        run("systemctl", "restart", "systemd-journald")
    send_and_find_all(service, "emptied", 11)


def test_the_rate_limit_of_journald_does_not_apply(service: Service) -> None:
    """journald drops entries without telling the sender. The unit turns its limit off; dnsprobe has its own."""
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text("[Journal]\nRateLimitIntervalSec=1h\nRateLimitBurst=20\n")
    run("systemctl", "restart", "systemd-journald")
    send_and_find_all(service, "strict", 211)


def test_its_own_rate_limit_counts_dropped_entries(service: Service) -> None:
    service.restart("domains: [journald.test]\njournal: {repeat: 0, rate_interval: 15s, rate_burst: 100}")
    ask(service, "limited", 509)
    # An eighth is kept for urgent entries, and a quarter of the rest for other users: three quarters of 88.
    assert entry_counts(service) == (66, 443)
    assert counted(service) == 509
    until(lambda: len(entries("DNSPROBE_QNAME=limited.journald.test")) == 66, "the allowed number of entries")
    until(lambda: entries("MESSAGE_ID=3cdf9998018e4a20a949b80570ac5d08"), "a line with the number of dropped entries")
    (line,) = entries("MESSAGE_ID=3cdf9998018e4a20a949b80570ac5d08")
    assert str(line["MESSAGE"]).startswith("443 entries were not written to the journal: more than 100 in 15 s")
