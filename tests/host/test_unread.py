"""What cannot be read as a query is counted with its sender, and has an entry of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

#: Sends each kind of message a number of times, to a port of loopback where nobody reads.
SENDER = """
import json, socket, struct, sys
port = int(sys.argv[1])
def name(*labels):
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\\0"
def message(question, flags=0x0100, counts=(1, 0, 0, 0), behind=b""):
    return struct.pack("!6H", 7, flags, *counts) + question + b"\\0\\1\\0\\1" + behind
secret = name(b"secret", b"unread", b"test")
kinds = {
    "query": message(secret),
    "pointer": message(b"\\6secret\\xc0\\x19", behind=name(b"unread", b"test")),
    "pointer_to_header": message(secret[:-1] + b"\\xc0\\x06"),
    "malformed": message(secret)[:-2],
    "opcode": message(secret, flags=0x1100),
    "update": message(secret, flags=0x2900),
    "questions": message(secret, counts=(2, 0, 0, 0)),
    "no_question": message(secret, counts=(0, 0, 0, 0)),
    "response": message(secret, flags=0x8100),
}
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for times, octets in enumerate(kinds.values(), 1):
        for _ in range(times):
            sender.sendto(octets, ("127.0.0.1", port))
print(json.dumps({kind: times for times, kind in enumerate(kinds, 1)}))
"""
#: Counted as queries: their name can be read.
READ = {"query", "pointer", "pointer_to_header"}


@pytest.fixture
def sent(start: Callable[..., Any], in_namespace: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """Start a service, and send. Return the service, and how many messages of each kind were sent."""
    service = start("domains: [unread.test]\njournal: {repeat: 1h}")
    command = [*in_namespace, sys.executable, "-c", SENDER, "53"]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout
    return service, json.loads(output)


def test_each_message_is_counted_as_a_query_or_as_unread_with_its_sender(sent: tuple[Any, dict[str, int]]) -> None:
    service, kinds = sent
    assert service.by("dnsprobe_queries_total", "domain") == {"unread.test": sum(kinds[kind] for kind in READ)}
    unread = {kind: times for kind, times in kinds.items() if kind not in READ}
    assert service.by("dnsprobe_messages_unread_total", "reason") == unread
    (process,) = {labels["process"] for labels, _ in service.samples("dnsprobe_queries_total")}
    for labels, _ in service.samples("dnsprobe_messages_unread_total"):
        assert (labels["process"], labels["transport"]) == (process, "udp")
        assert labels["tree"].endswith(process)


def test_each_reason_has_one_entry_for_a_process(sent: tuple[Any, dict[str, int]]) -> None:
    service, kinds = sent
    service.stop()
    entries = re.findall(r"sent what dnsprobe could not read as a query \((\w+), udp\)", service.err.read_text("utf-8"))
    # No server answers a response over UDP.
    assert sorted(entries) == sorted(kinds.keys() - READ - {"response"})


@pytest.mark.parametrize("server", ["127.0.0.1", "::1"])
def test_a_query_that_is_cut_into_fragments_is_counted_once(
    start: Callable[..., Any], in_namespace: Sequence[str], server: str
) -> None:
    service = start("domains: [fragments.test]\njournal: {repeat: 0}")
    program = f"""
import socket, subprocess
subprocess.run(["ip", "link", "set", "lo", "mtu", "1280"], check=True)
question = b"\\x09fragments\\x04test\\0\\0\\1\\0\\1"
for size in (1000, 1300, 3000, 9000):
    with socket.socket(socket.AF_INET6 if ":" in "{server}" else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto((b"\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + question).ljust(size, b"\\0"), ("{server}", 53))
"""
    subprocess.run([*in_namespace, sys.executable, "-c", program], check=True, timeout=60)
    assert service.by("dnsprobe_queries_total", "domain") == {"fragments.test": 4}
    assert service.by("dnsprobe_messages_unread_total", "reason") == {}
