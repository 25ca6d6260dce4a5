"""Each hook asked for by name serves every way to send, or is refused with the reason; never is it wrong.

The tables of docs/kernels.md are made from what comes out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import SENDERS, Service, entries, keep, kernel, run, status, until

WAYS = ("sendto", "send", "write", "writev", "sendmsg", "sendmmsg", "corked", "uring", "uringasync", "thread")
FAMILIES = {"4": "4", "6": "6", "mapped": "m"}
QUERIES = 7
PRIME = 1009
RENAMED = "isra" in os.uname().release
NAMESPACE = "second"

ROWS = [f"{way}-{family}" for way in WAYS for family in FAMILIES] + ["namespace-4", "namespace-6", "python-4"]

PYTHON = """\
import socket, sys
message = bytes.fromhex(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(message, ("127.0.0.1", 53))
"""


@pytest.fixture(scope="module", autouse=True)
def namespace() -> Iterator[None]:
    run("ip", "netns", "add", NAMESPACE)
    run("ip", "-n", NAMESPACE, "link", "set", "lo", "up")
    yield
    run("ip", "netns", "delete", NAMESPACE)


def comm(row: str) -> str:
    return f"{row}"[:15]


def ask(row: str) -> None:
    way, family = row.split("-")
    name = f"{row}.paths.test"
    if way == "python":
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        message = bytes.fromhex("0001 0100 0001 0000 0000 0000") + labels + bytes([0, 0, 1, 0, 1])
        run("/usr/bin/python3", "-c", PYTHON, message.hex(), str(QUERIES))
    elif way == "namespace":
        run("ip", "netns", "exec", NAMESPACE, SENDERS / "send", "sendto", family, name, str(QUERIES), comm(row))
    else:
        run(SENDERS / "send", way, FAMILIES[family], name, str(QUERIES), comm(row))


def verdict(service: Service, row: str, unparsed: int) -> str:
    """Say what came of a row: ``yes``, or what is wrong."""
    found = [
        (labels, int(value))
        for labels, value in service.samples("dnsprobe_queries_total")
        if labels["domain"] == f"{row}.paths.test"
    ]
    counted = sum(value for _, value in found)
    if counted != QUERIES:
        return f"no: {counted} of {QUERIES}" + (f", {unparsed} counted as not readable" if unparsed else "")
    right = "python3" if row.startswith("python") else comm(row)
    others = sorted({labels["process"] for labels, _ in found} - {right})
    return f"counted for {', '.join(others)}" if others else "yes"


def unparsed(service: Service) -> int:
    return sum(
        count
        for reason, count in service.by("reason", "dnsprobe_packets_unparsed_total").items()
        if reason != "malformed"
    )


def test_kallsyms_has_the_name_that_this_kernel_is_for() -> None:
    symbols = Path("/proc/kallsyms").read_text(encoding="ascii").splitlines()
    names = {line.split()[2] for line in symbols if " udp_send_skb" in line}
    assert names == ({"udp_send_skb.isra.51"} if RENAMED else {"udp_send_skb"})


def refused(service: Service) -> None:
    """Look at how a hook was refused that was asked for by name."""
    until(lambda: any("no hook sees the queries" in str(entry["MESSAGE"]) for entry in entries()), "the reason")
    said = [str(entry["MESSAGE"]) for entry in entries() if "no hook sees the queries" in str(entry["MESSAGE"])][-1]
    assert "udp_send_skb at udp_send_skb.isra.51: " in said
    # It would be tried again and again, as any failure is.
    run("systemctl", "stop", service.name)
    assert service.programs() == []
    keep("paths-udp_send_skb", {"kernel": kernel(), "rows": {}, "refused": said})


def exact(service: Service, hook: str) -> None:
    """Look at what a hook counts."""
    symbols = {labels["path"]: labels["symbol"] for labels, _ in service.samples("dnsprobe_hook_info")}
    if hook == "udp_send_skb":
        assert symbols["udp4"] == ("udp_send_skb.isra.51" if RENAMED else "udp_send_skb")
    for family in "46":
        run(SENDERS / "send", "sendto", family, "www.hook.test", str(PRIME))
    found = [(labels["process"], value) for labels, value in service.samples("dnsprobe_queries_total")]
    assert found == [("send", 2 * PRIME)]


# The one that "auto" comes to is the last: the tests that follow use it.
@pytest.mark.parametrize("hook", ["udp_send_skb", "net_dev_queue", "ip_send_skb"])
def test_a_hook_by_name_is_right_or_refused(service: Service, hook: str) -> None:
    domains = ", ".join(["hook.test", *(f"{row}.paths.test" for row in ROWS)])
    service.configure(f"domains: [{domains}]\nprobe: {{hook: {hook}}}")
    if status("systemctl", "restart", service.name):
        assert (hook, RENAMED) == ("udp_send_skb", True)
        refused(service)
        return
    exact(service, hook)
    verdicts = {}
    for row in ROWS:
        before = unparsed(service)
        ask(row)
        verdicts[row] = verdict(service, row, unparsed(service) - before)
    keep(f"paths-{hook}", {"kernel": kernel(), "rows": verdicts})
    print(json.dumps(verdicts, indent=1))
    assert {row: said for row, said in verdicts.items() if said != "yes" and not row.startswith("corked")} == {}
    # Nothing is lost without being counted.
    assert set(verdicts.values()) <= {"yes", f"no: 0 of {QUERIES}, {QUERIES} counted as not readable"}
