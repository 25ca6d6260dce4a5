"""Queries of ordinary clients: exact counts, journal entries with the whole ancestry, and the catalog."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from installed import SENDERS, Server, Service, ancestors, entries, own_unit, run, send, until

PRIME = 10007

CLIENTS = {
    "dig": ["dig", "+short", "dig.clients.test"],
    "dig6": ["dig", "+short", "@::1", "AAAA", "dig6.clients.test"],
    "getent": ["getent", "ahosts", "getent.clients.test"],
    "curl": ["curl", "-s", "--max-time", "20", "http://curl.clients.test:9/"],
    "python": ["/usr/bin/python3", "-c", "import socket; socket.getaddrinfo('python.clients.test', 80)"],
    "static": [str(SENDERS / "send"), "sendto", "4", "static.clients.test", "3"],
    "static6": [str(SENDERS / "send"), "sendmsg", "6", "static6.clients.test", "5"],
}
COMM = {"dig6": "dig", "python": "python3", "static": "send", "static6": "send"}


@pytest.fixture(scope="module", autouse=True)
def watched(service: Service) -> None:
    service.reload("domains: [" + ", ".join(f"{client}.clients.test" for client in CLIENTS) + ", prime.test]")


def test_counts_are_what_a_dns_server_received(service: Service, server: Server) -> None:
    for command in CLIENTS.values():
        run(*command, check=False)
    received: dict[str, int] = {}
    for (name, _qtype), count in server.close().items():
        received[name] = received.get(name, 0) + count
    counted = service.by("domain")
    assert {name: counted.get(name, 0) for name in received} == received
    assert {f"{client}.clients.test" for client in CLIENTS} == set(received)
    processes = {labels["domain"]: labels["process"] for labels, _ in service.samples("dnsprobe_queries_total")}
    assert {client: processes[f"{client}.clients.test"] for client in CLIENTS} == {
        client: COMM.get(client, client) for client in CLIENTS
    }


@pytest.mark.parametrize("client", CLIENTS)
def test_an_entry_has_all_fields_and_the_whole_ancestry(client: str) -> None:
    name = f"{client}.clients.test"
    found: list[dict[str, Any]] = []

    def written() -> bool:
        found[:] = entries(f"DNSPROBE_QNAME={name}")
        return bool(found)

    until(written, f"an entry for {name}")
    entry = found[0]
    ours = ancestors()
    assert entry["MESSAGE_ID"] == "70f9b6676ff846deba6d9a720834dc88"
    assert entry["SYSLOG_IDENTIFIER"] == "dnsprobe"
    assert entry["PRIORITY"] == "6"
    assert entry["_SYSTEMD_UNIT"] == "dnsprobe.service"
    assert entry["DNSPROBE_DOMAIN"] == name
    assert entry["DNSPROBE_TRANSPORT"] == "udp"
    assert entry["DNSPROBE_SERVER"] == ("::1" if client.endswith("6") else "127.0.0.1")
    assert entry["DNSPROBE_PORT"] == "53"
    assert entry["DNSPROBE_COMM"] == COMM.get(client, client)
    assert entry["DNSPROBE_QTYPE"] in {"A", "AAAA"}
    assert entry["DNSPROBE_UID"] == "0"
    assert entry["DNSPROBE_USER"] == "root"
    assert entry["DNSPROBE_REPEATS"] == "0"
    # The process has ended, but is known.
    assert entry["DNSPROBE_EXE"] == os.path.realpath(shutil.which(CLIENTS[client][0]) or "")
    assert entry["DNSPROBE_CMDLINE"] == shlex.join(CLIENTS[client])
    cgroup = Path("/proc/self/cgroup").read_text().strip().removeprefix("0::")
    assert (entry["DNSPROBE_CGROUP"], entry["DNSPROBE_UNIT"]) == (cgroup, cgroup.rpartition("/")[2])
    assert entry["DNSPROBE_GID"] == "0"
    for kind in ("net", "pid", "mnt"):
        assert entry[f"DNSPROBE_{kind.upper()}_NS"] == str(os.stat(f"/proc/self/ns/{kind}").st_ino)
    assert not entry.keys() & {"DNSPROBE_FROM_PROCFS", "DNSPROBE_LOGINUID"}
    # The whole chain from the parent up: journald does not keep the order of repeated fields, so one field has it.
    assert sorted(entry["DNSPROBE_ANCESTOR"]) == sorted(f"{pid} {comm}" for pid, comm in ours)
    chain = [*reversed(ours[:-1]), (int(entry["DNSPROBE_PID"]), entry["DNSPROBE_COMM"])]
    assert entry["DNSPROBE_TREE"] == ";".join(comm for _, comm in chain)
    assert entry["DNSPROBE_TREE_PIDS"] == ";".join(str(pid) for pid, _ in chain)


def test_a_living_process_has_its_unit_and_user(service: Service, server: Server) -> None:
    """A process of another user, in a unit of its own, that still runs when its entry is written."""
    python = "import socket, time; socket.getaddrinfo('python.clients.test', 80); time.sleep(60)"
    unit = "asker.service"
    run(
        *("systemd-run", f"--unit={unit}", "--property=User=daemon", "--property=Slice=system-made.slice"),
        *("/usr/bin/python3", "-c", python),
    )
    try:
        until(lambda: entries("DNSPROBE_UNIT=asker.service"), "an entry of the unit")
    finally:
        run("systemctl", "kill", "--signal=KILL", unit, check=False)
    entry = entries("DNSPROBE_UNIT=asker.service")[0]
    assert entry["DNSPROBE_EXE"] == os.path.realpath("/usr/bin/python3")
    assert entry["DNSPROBE_CMDLINE"].startswith("/usr/bin/python3 -c 'import socket, time;")
    assert (entry["DNSPROBE_UID"], entry["DNSPROBE_USER"]) == ("1", "daemon")
    assert entry["DNSPROBE_CGROUP"] == "/system.slice/system-made.slice/asker.service"
    assert entry["DNSPROBE_TREE"] == "python3"
    assert entry["DNSPROBE_ANCESTOR"] == "1 systemd"
    units = {labels["unit"] for labels, _ in service.samples("dnsprobe_queries_total")}
    assert "asker.service" in units


def test_journalctl_explains_an_entry_from_the_catalog() -> None:
    shown = run("journalctl", "-b", "-x", "-t", "dnsprobe", "-n", "1", "DNSPROBE_QNAME=dig.clients.test")
    assert "(dig) asked for dig.clients.test" in shown
    assert "A process sent a DNS query for a name that the rule dig.clients.test watches." in shown
    assert "server    127.0.0.1, port 53" in shown


def test_the_counter_has_the_exact_number_of_queries(service: Service) -> None:
    """Each query is counted or, on a preemptible kernel, perhaps missed: :attr:`Service.missed_runs`."""
    before = service.missed_runs
    send("www.prime.test", PRIME)
    send("www.prime.test", PRIME, "6")
    shown = run("curl", "-s", "http://127.0.0.1:10059/metrics")
    lines = [line for line in shown.splitlines() if 'domain="prime.test"' in line]
    (line,) = [line for line in lines if line.startswith("dnsprobe_queries_total{")]
    assert [line for line in lines if line.startswith("dnsprobe_queries_expired_total{")] == [
        'dnsprobe_queries_expired_total{domain="prime.test"} 0.0'
    ]
    assert len(lines) == 2
    assert 'process="send",qtype="A",to="local",transport="udp"' in line
    unit = own_unit()
    assert unit.endswith(".service")
    assert f';send",unit="{unit}"}} ' in line
    missed = service.missed_runs - before
    assert 2 * PRIME - missed <= float(line.rpartition(" ")[2]) <= 2 * PRIME
    lost = service.by("reason", "dnsprobe_events_lost_total")
    assert {reason for reason, count in lost.items() if count} <= {"run_missed"}
    unattributed = service.by("reason", "dnsprobe_queries_unattributed_total")
    assert {reason: count for reason, count in unattributed.items() if count} == {}
