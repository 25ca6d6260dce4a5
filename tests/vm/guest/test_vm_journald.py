"""A journald that is away, full or strict: dnsprobe goes on, counts what it could not write, and counts exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import Service, entries, run, send, until

SOCKETS = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket")
#: The tests before these have started the service with an entry for each query.
CONFIGURATION = "domains: [journald.test]\njournal: {repeat: 0}"
DROP_IN = Path("/etc/systemd/journald.conf.d/strict.conf")


@pytest.fixture(scope="module", autouse=True)
def started(service: Service) -> Iterator[None]:
    service.reload(CONFIGURATION)
    yield
    DROP_IN.unlink(missing_ok=True)
    run("systemctl", "restart", "systemd-journald")


def ask(label: str, count: int) -> None:
    send(f"{label}.journald.test", count)


def all_are_written(service: Service, label: str, count: int) -> None:
    """Ask so often, and assert that each query has its entry, in the journal too."""
    settled(service)
    written, dropped = told(service)
    ask(label, count)
    settled(service)
    assert told(service) == (written + count, dropped)
    until(lambda: len(entries(f"DNSPROBE_QNAME={label}.journald.test")) == count, "all entries")


def sent(service: Service) -> int:
    return sum(service.by("domain").values())


def told(service: Service) -> tuple[int, int]:
    """Return entries written and entries dropped."""
    return (
        int(service.value("dnsprobe_journal_entries_total")),
        int(service.value("dnsprobe_journal_dropped_total")),
    )


def settled(service: Service) -> None:
    """Wait until all events are either written or dropped."""
    until(lambda: sum(told(service)) == service.value("dnsprobe_events_total"), "all events written or dropped")


def test_entries_are_dropped_and_counted_while_journald_is_away(service: Service) -> None:
    settled(service)
    written, dropped = told(service)
    before = sent(service)
    run("systemctl", "stop", *SOCKETS, "systemd-journald.service")
    try:
        ask("away", 101)
        settled(service)
        assert told(service) == (written, dropped + 101)
        assert sent(service) == before + 101
        assert service.state == "active (running)"
    finally:
        run("systemctl", "start", *SOCKETS, "systemd-journald.service")
    all_are_written(service, "back", 103)
    assert told(service) == (written + 103, dropped + 101)
    assert sent(service) == before + 204
    assert entries("DNSPROBE_QNAME=away.journald.test") == []
    # Its own log lines have found the new journald too.
    before_reload = len(entries("MESSAGE=reloaded: 1 rule"))
    service.reload(CONFIGURATION)
    until(lambda: len(entries("MESSAGE=reloaded: 1 rule")) == before_reload + 1, "a line of its log")


def test_nothing_is_lost_over_a_restart_of_journald(service: Service) -> None:
    run("systemctl", "restart", "systemd-journald")
    all_are_written(service, "restarted", 107)


def test_a_full_disk(service: Service) -> None:
    settled(service)
    written, dropped = told(service)
    before = sent(service)
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
        ask("full", 1009)
        settled(service)
        # journald has taken them: what it could not store, it says itself.
        assert told(service) == (written + 1009, dropped)
        assert sent(service) == before + 1009
        assert service.state == "active (running)"
        assert service.get("/-/ready") == "ready\n"
    finally:
        run("systemctl", "stop", "systemd-journald.service", check=False)
        run("umount", "--lazy", folder)
        run("systemctl", "restart", "systemd-journald")
    all_are_written(service, "emptied", 11)


def test_journalds_limit_does_not_apply(service: Service) -> None:
    """It drops without a word to the sender: the unit switches it off in favour of dnsprobe's own."""
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text("[Journal]\nRateLimitIntervalSec=1h\nRateLimitBurst=20\n")
    run("systemctl", "restart", "systemd-journald")
    all_are_written(service, "strict", 211)


def test_its_own_limit_counts_what_it_drops(service: Service) -> None:
    service.restart("domains: [journald.test]\njournal: {repeat: 0, rate_interval: 15s, rate_burst: 100}")
    ask("limited", 1009)
    settled(service)
    assert told(service) == (100, 909)
    assert sent(service) == 1009
    until(lambda: len(entries("DNSPROBE_QNAME=limited.journald.test")) == 100, "as many entries as are allowed")
    until(lambda: entries("MESSAGE_ID=3cdf9998018e4a20a949b80570ac5d08"), "a line that says how many")
    (line,) = entries("MESSAGE_ID=3cdf9998018e4a20a949b80570ac5d08")
    assert str(line["MESSAGE"]).startswith("909 entries were not written to the journal: more than 100 in 15 s")
