"""A journald that is away, full or strict: dnsprobe goes on, counts what it could not write, and counts exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import SENDERS, Service, entries, run, until

SOCKETS = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket")
DROP_IN = Path("/etc/systemd/journald.conf.d/strict.conf")


@pytest.fixture(scope="module", autouse=True)
def started(service: Service) -> Iterator[None]:
    service.restart("domains: [journald.test]\njournal: {repeat: 0}")
    yield
    DROP_IN.unlink(missing_ok=True)
    run("systemctl", "restart", "systemd-journald")


def ask(label: str, count: int) -> None:
    run(SENDERS / "send", "sendto", "4", f"{label}.journald.test", str(count))


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
    ask("back", 103)
    settled(service)
    assert told(service) == (written + 103, dropped + 101)
    assert sent(service) == before + 204
    until(lambda: len(entries("DNSPROBE_QNAME=back.journald.test")) == 103, "the entries after journald's return")
    assert entries("DNSPROBE_QNAME=away.journald.test") == []
    # Its own log lines have found the new journald too.
    service.reload("domains: [journald.test]\njournal: {repeat: 0}")
    until(lambda: [e for e in entries() if str(e["MESSAGE"]) == "reloaded: 1 rule"], "a line of its log")


def test_nothing_is_lost_over_a_restart_of_journald(service: Service) -> None:
    settled(service)
    written, dropped = told(service)
    run("systemctl", "restart", "systemd-journald")
    ask("restarted", 107)
    settled(service)
    assert told(service) == (written + 107, dropped)
    until(lambda: len(entries("DNSPROBE_QNAME=restarted.journald.test")) == 107, "all entries")


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
    ask("emptied", 11)
    settled(service)
    until(lambda: len(entries("DNSPROBE_QNAME=emptied.journald.test")) == 11, "entries on a disk with room")


def test_journalds_limit_does_not_apply(service: Service) -> None:
    """It drops without a word to the sender: the unit switches it off in favour of dnsprobe's own."""
    settled(service)
    written, dropped = told(service)
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text("[Journal]\nRateLimitIntervalSec=1h\nRateLimitBurst=20\n")
    run("systemctl", "restart", "systemd-journald")
    ask("strict", 211)
    settled(service)
    assert told(service) == (written + 211, dropped)
    until(lambda: len(entries("DNSPROBE_QNAME=strict.journald.test")) == 211, "all entries")


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
