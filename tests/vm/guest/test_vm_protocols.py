"""What a message to a watched port is: plain DNS or multicast DNS, its class, and the kinds that are no queries."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from installed import HERE, PORTS, Service, entries, run, status, until

#: Runs in a network namespace. RFC 1035, section 4.1.1: the flags of a message, and its number of questions.
SENDER = """
import socket, sys
sys.path.append(sys.argv[1])
from installed import query

REASONS = {"notify": (0x2000, 1), "update": (0x2800, 1), "dso": (0x3000, 0), "opcode": (0x1000, 1)}
REASONS |= {"no_question": (0, 0), "questions": (0, 2)}
RESPONSE = (0x8000, 1)

def message(flags, questions):
    octets = query("www.kind.test")
    return octets[:2] + flags.to_bytes(2, "big") + questions.to_bytes(2, "big") + octets[6:]

def ask(to, port, octets, source=0):
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        if family == socket.AF_INET:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        if source:
            sender.bind(("", source))
        sender.sendto(octets, (to, port))

# Over multicast DNS, a message may have many questions: the first ones are read.
header, question = bytes(4) + b"\\0\\x14" + bytes(6), query("www.many.test")[12:]
ask("127.0.0.1", 5353, header + question + b"\\xc0\\x0c\\0\\1\\0\\1" * 19, 5353)
ask("224.0.0.251", 5353, query("www.port.test")[:-2] + b"\\x80\\1")
for to in ("127.0.0.1", "::1"):
    ask(to, 5353, query("www.port.test"))
    ask(to, 5353, query("www.port.test"), 5353)
    ask(to, 53, query("www.class.test"))
    ask(to, 53, query("www.class.test")[:-1] + b"\\3")
    for kind in (*REASONS.values(), RESPONSE):
        ask(to, 53, message(*kind))
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    for port in (53, 5353):
        with socket.create_server((to, port), family=family), socket.create_connection((to, port)) as sender:
            for kind in (*REASONS.values(), RESPONSE):
                octets = message(*kind)
                sender.sendall(len(octets).to_bytes(2, "big") + octets)
            octets = query("www.port.test")
            sender.sendall(len(octets).to_bytes(2, "big") + octets)
"""
REASONS = {"notify", "update", "dso", "opcode", "no_question", "questions", "response"}
#: Two addresses over UDP, to one port; two addresses and two ports over TCP.
OF_EACH = 2 + 2 * 2


@pytest.mark.parametrize("hook", ["udp_send_skb", "auto"])
def test_a_message_is_what_its_header_and_destination_say(service: Service, hook: str) -> None:
    service.configure(
        "domains: [port.test, class.test, kind.test, many.test]\n"
        f"probe: {{hook: {hook}, {PORTS}}}\njournal: {{repeat: 1h}}"
    )
    if status("systemctl", "restart", service.name):
        assert (hook, "isra" in os.uname().release) == ("udp_send_skb", True)
        run("systemctl", "stop", service.name)
        return
    run("unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh", "/usr/bin/python3", "-c", SENDER, HERE)
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in service.samples("dnsprobe_queries_total"):
        found[labels["domain"], labels["transport"]] += int(value)
    assert found == {
        ("port.test", "mdns"): 3,
        ("port.test", "udp"): 2,
        ("port.test", "tcp"): 4,
        ("class.test", "udp"): 4,
        ("many.test", "mdns"): 16,
    }
    assert service.by("reason", "dnsprobe_messages_other_total") == dict.fromkeys(REASONS, OF_EACH)
    unparsed = service.by("reason", "dnsprobe_packets_unparsed_total")
    assert {reason for reason, value in unparsed.items() if value} == {"more_questions"}
    unread = [labels for labels, _ in service.samples("dnsprobe_messages_unread_total")]
    assert {labels["process"] for labels in unread if labels["reason"] == "more_questions"} == {"python3"}

    def classes() -> list[str | None]:
        pid = f"_PID={service.pid}"
        return sorted(
            (entry.get("DNSPROBE_CLASS", "") for entry in entries(pid, "DNSPROBE_DOMAIN=class.test")), key=str
        )

    until(lambda: len(classes()) >= 2, "both entries")
    assert classes() == ["", "CH"]
    of_port = entries(f"_PID={service.pid}", "DNSPROBE_DOMAIN=port.test")
    assert {entry["DNSPROBE_TRANSPORT"] for entry in of_port} == {"udp", "tcp", "mdns"}
    # The bit that asks for an answer by unicast is no part of the class.
    assert not [entry for entry in of_port if "DNSPROBE_CLASS" in entry]
