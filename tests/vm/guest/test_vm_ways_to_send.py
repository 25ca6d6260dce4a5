"""Each hook that is chosen by name sees every way to send, or is refused with a reason. It never counts wrongly.

The same holds for every form of TCP. docs/kernels.md is made from the results.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import places
import pytest
from installed import HERE, PORTS, SENDERS, TRACEPOINT, Service, entries, keep, kernel, query, run, send, status, until
from scraped import samples_of
from stream_sender import OPENING
from stream_sender import rows as stream_rows

WAYS = ("sendto", "send", "write", "writev", "sendmsg", "sendmmsg", "corked", "uring", "uringasync", "thread")
FAMILIES = {"4": "4", "6": "6", "mapped": "m"}
QUERIES = 7
PRIME = 1009
RENAMED = "isra" in os.uname().release
NAMESPACE = "second"
STREAM_FAMILIES = ("4", "6")
STREAM_ROWS = list(stream_rows(STREAM_FAMILIES))

#: The result of the forms in OPENING at a hook that runs after a connection was opened.
FOLLOWS = "only what follows the SYN"
ENCRYPTED = "encrypted"
#: How often all forms of TCP are sent at most, until no run was skipped.
ATTEMPTS = 5
#: The hook for TCP that is tested together with each hook for UDP. The first are what ``auto`` selects. A kernel whose
#: compiler has split udp_send_skb() may refuse that hook, so nothing for TCP depends on it.
TCP_HOOKS = {
    "ip_send_skb": "cgroup_skb",
    "udp_send_skb": "tcp_tracepoint" if TRACEPOINT else "none" if RENAMED else "tcp_sendmsg_locked",
    "cgroup_skb": "tcp_sendmsg",
}
if "tcp_sendmsg_locked" not in TCP_HOOKS.values():
    TCP_HOOKS["auto"] = "tcp_sendmsg_locked"

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
    return row[:15]


def ask(row: str) -> None:
    way, family = row.split("-")
    name = f"{row}.paths.test"
    if way == "python":
        run("/usr/bin/python3", "-c", PYTHON, query(name).hex(), str(QUERIES))
    elif way == "namespace":
        run("ip", "netns", "exec", NAMESPACE, SENDERS / "send", "sendto", family, name, str(QUERIES), comm(row))
    else:
        run(SENDERS / "send", way, FAMILIES[family], name, str(QUERIES), comm(row))


def counted(service: Service) -> dict[str, dict[str, int]]:
    """Return the queries of each row up to now, by process."""
    found: dict[str, dict[str, int]] = {row: {} for row in ROWS}
    for labels, value in service.samples("dnsprobe_queries_total"):
        row = labels["domain"].removesuffix(".paths.test")
        if row in found:
            found[row][labels["process"]] = found[row].get(labels["process"], 0) + int(value)
    return found


def verdict(row: str, found: dict[str, int]) -> str:
    """Return the result of a row: ``yes``, or what is wrong."""
    if sum(found.values()) != QUERIES:
        return f"no: {sum(found.values())} of {QUERIES}"
    right = "python3" if row.startswith("python") else comm(row)
    others = sorted(found.keys() - {right})
    return f"counted for {', '.join(others)}" if others else "yes"


def verdicts(service: Service) -> dict[str, str]:
    """Send in all ways, and return the result of each."""
    for row in ROWS:
        ask(row)
    found = counted(service)
    results = {row: verdict(row, found[row]) for row in ROWS}
    for row in ROWS:
        if results[row].startswith("no"):
            # Send these once more, to see whether they are counted as not readable.
            before = unparsed(service)
            ask(row)
            added = unparsed(service) - before
            results[row] += f", {added} counted as not readable" if added else ""
    return results


def ask_over_tcp() -> tuple[dict[str, int], int]:
    """Send in all forms of TCP; return what a server received of each, and the number of encrypted connections."""
    sender = HERE / "stream_sender.py"
    result = json.loads(run("ip", "netns", "exec", NAMESPACE, "/usr/bin/python3", sender, "streams.test", *STREAM_ROWS))
    received: dict[str, int] = result["received"]
    return {name.removesuffix(".streams.test"): count for name, count in received.items()}, result["encrypted"]


def counted_over_tcp(service: Service) -> Counter[tuple[str, str]]:
    """Return the queries of each row and process up to now; ENCRYPTED stands for encrypted connections."""
    text = service.get("/metrics")
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in samples_of("dnsprobe_queries_total", text):
        row, _, suffix = labels["domain"].partition(".")
        if suffix == "streams.test" and labels["transport"] == "tcp":
            found[row, labels["process"]] += int(value)
    for labels, value in samples_of("dnsprobe_encrypted_connections_total", text):
        found[ENCRYPTED, labels["process"]] += int(value)
    return found


def over_tcp(service: Service, rung: str) -> tuple[dict[str, str], bool]:
    """Send in all forms of TCP; return the result of each, and whether encrypted connections were counted exactly.

    On a preemptible kernel, client and server may interrupt each other, so that the kernel skips a run. This also loses
    where the next messages of the connection begin. So all is sent again if a result is wrong and a run was skipped.
    """
    for _ in range(ATTEMPTS):
        missed = service.missed_runs
        results, exact = over_tcp_once(service, rung)
        wrong = not exact or set(results.values()) - {"yes", FOLLOWS}
        if not wrong or service.missed_runs == missed:
            break
    return results, exact


def over_tcp_once(service: Service, rung: str) -> tuple[dict[str, str], bool]:
    """Send in all forms of TCP once: see :func:`over_tcp`."""
    before = counted_over_tcp(service)
    received, encrypted = ask_over_tcp()
    counted = counted_over_tcp(service) - before
    connections = {process: count for (row, process), count in counted.items() if row == ENCRYPTED}
    # The tracepoint does not see what goes with the SYN.
    exact = connections == {"python3": encrypted} or rung == "tcp_tracepoint"
    results = {}
    for row in STREAM_ROWS:
        found = {process: count for (of, process), count in counted.items() if of == row}
        right = {"dig" if row.startswith("dig") else "python3": received.get(row, 0)}
        seen, sent = sum(found.values()), sum(right.values())
        if found == right:
            results[row] = "yes"
        elif not found.keys() <= right.keys():
            results[row] = f"counted for {', '.join(found)}"
        elif rung == "tcp_tracepoint" and row.partition("-")[0] in OPENING and seen < sent:
            results[row] = FOLLOWS
        else:
            results[row] = f"no: {seen} of {sent}"
    return results, exact


def unparsed(service: Service) -> int:
    return sum(
        count
        for reason, count in service.by("reason", "dnsprobe_packets_unparsed_total").items()
        if reason != "malformed"
    )


def test_kallsyms_has_the_expected_name_of_udp_send_skb() -> None:
    symbols = Path("/proc/kallsyms").read_text(encoding="ascii").splitlines()
    names = {line.split()[2] for line in symbols if " udp_send_skb" in line}
    assert names == ({"udp_send_skb.isra.51"} if RENAMED else {"udp_send_skb"})


def assert_refused(service: Service) -> None:
    """Assert that the chosen hook was refused with a reason, and that nothing is attached."""
    until(lambda: any("no hook could be verified" in str(entry["MESSAGE"]) for entry in entries()), "the reason")
    reason = [str(entry["MESSAGE"]) for entry in entries() if "no hook could be verified" in str(entry["MESSAGE"])][-1]
    assert "kprobe udp_send_skb.isra.51: " in reason
    # Stop the unit: systemd restarts it again and again, as after any failure.
    run("systemctl", "stop", service.name)
    assert service.programs() == []
    keep("paths-udp_send_skb", {"kernel": kernel(), "rows": {}, "refused": reason})


def assert_exact(service: Service, hook: str) -> None:
    """Assert that a hook is in use and counts exactly."""
    hooks = service.samples("dnsprobe_hook_info")
    assert {labels["hook"] for labels, _ in hooks if labels["path"].startswith("udp")} == {hook}
    used = {labels["path"]: (labels["attach"], labels["symbol"]) for labels, _ in hooks}
    if hook == "udp_send_skb":
        # A function that the compiler has split cannot be attached to by fentry.
        expected = ("kprobe", "udp_send_skb.isra.51") if RENAMED else ("fentry", "udp_send_skb")
        assert used["udp4"] == expected
    assert used["parts4"] == used["parts6"] == ("cgroup", "egress")
    missed = service.missed_runs
    for family in "46":
        send("www.hook.test", PRIME, family)
    found: Counter[str] = Counter()
    for labels, value in service.samples("dnsprobe_queries_total"):
        if labels["domain"] == "hook.test":
            found[labels["process"]] += int(value)
    assert found.keys() == {"send"}
    assert 2 * PRIME - (service.missed_runs - missed) <= found["send"] <= 2 * PRIME


def test_a_query_that_the_kernel_writes_is_counted(service: Service, tmp_path: Path) -> None:
    if status("modprobe", "9p"):
        pytest.skip("this kernel has no 9P: those of Debian, in the other guests, have it")
    service.reload("domains: [kernel.test]")
    before = unparsed(service)
    sender = HERE / "kernel_sender.py"
    run("ip", "netns", "exec", NAMESPACE, "/usr/bin/python3", sender, "kernel.test", tmp_path)
    assert service.by("domain", "dnsprobe_queries_total")["kernel.test"] == 1
    assert unparsed(service) == before
    until(lambda: entries("DNSPROBE_DOMAIN=kernel.test"), "the entry")
    (entry,) = entries("DNSPROBE_DOMAIN=kernel.test")
    assert entry["DNSPROBE_QNAME"].endswith(r"\008\0009p2000\.l.kernel.test")


def assert_tcp(service: Service, hook: str) -> None:
    """Assert that a hook for TCP is in use and counts each form of TCP exactly."""
    used = {labels["hook"] for labels, _ in service.samples("dnsprobe_hook_info") if labels["path"].startswith("tcp")}
    assert used == {hook}
    results, encrypted_exact = over_tcp(service, hook)
    keep(f"streams-{hook}", {"kernel": kernel(), "rows": results})
    print(json.dumps(results, indent=1))
    assert {row: what for row, what in results.items() if what not in {"yes", FOLLOWS}} == {}
    assert encrypted_exact


def counted_places(service: Service) -> Counter[tuple[str, str, str]]:
    """Return the queries to places.py by process, transport and place of the server."""
    found: Counter[tuple[str, str, str]] = Counter()
    for labels, value in service.samples("dnsprobe_queries_total"):
        if labels["domain"] == "place.test":
            found[labels["process"], labels["transport"], labels["to"]] += int(value)
    return found


def assert_places(service: Service, hook: str, tcp_hook: str) -> None:
    """Assert that each query is counted for the place of its server. A run that the kernel skips is not counted."""
    for _ in range(ATTEMPTS):
        before, missed = counted_places(service), service.missed_runs
        nat = run("unshare", "--net", "/usr/bin/python3", HERE / "places.py", "place.test").strip() == "nat"
        behind_nat = [transport for transport, of in (("udp", hook), ("tcp", tcp_hook)) if nat and of == "cgroup_skb"]
        right = places.expected(*behind_nat)
        if not nat:
            del right["moved", "tcp", "remote"]
        if tcp_hook == "none":
            right = Counter({key: number for key, number in right.items() if key[1] != "tcp"})
        found = counted_places(service) - before
        if found == right or service.missed_runs == missed:
            break
    assert found == right


# The first is the default, which is in use already.
@pytest.mark.parametrize("hook", TCP_HOOKS)
def test_a_hook_that_is_chosen_by_name_is_exact_or_refused(service: Service, hook: str) -> None:
    rules = [*(f"{row}.paths.test" for row in ROWS), *(f"{row}.streams.test" for row in STREAM_ROWS)]
    domains = ", ".join(["hook.test", "place.test", *rules])
    tcp_hook = TCP_HOOKS[hook]
    probe = f"hook: {hook}, tcp_hook: {tcp_hook}"
    if hook == "ip_send_skb":
        service.reload(f"domains: [{domains}]\nprobe: {{{probe}}}")
    else:
        service.configure(f"domains: [{domains}]\nprobe: {{{probe}, {PORTS}}}")
        if status("systemctl", "restart", service.name):
            assert (hook, RENAMED) == ("udp_send_skb", True)
            assert_refused(service)
            return
    if hook != "auto":
        assert_exact(service, hook)
        results = verdicts(service)
        keep(f"paths-{hook}", {"kernel": kernel(), "rows": results})
        print(json.dumps(results, indent=1))
        assert {row: what for row, what in results.items() if what != "yes"} == {}
        assert_places(service, hook, tcp_hook)
    if tcp_hook != "none":
        assert_tcp(service, tcp_hook)
