"""DNS over TCP, connections of DNS over TLS, mDNS and LLMNR, classes, and messages that are no queries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ALL_PATHS, PATIENCE, Program, Service, preemptible_btf

from dnsprobe.kernel.hooks import kprobes_available

Start = Callable[..., Service]
Scene = Callable[..., Any]

GUEST = Path(__file__).parents[1] / "vm/guest"
SENDER = GUEST / "stream_sender.py"
sys.path.append(str(GUEST))
import stream_sender  # noqa: E402 - it lies where the guests need it

CONTEXT = "import os, socket, sys\nsys.path.append(sys.argv[1])\nfrom stream_sender import *\nREADING.set()\n"


#: Sends to the ports of multicast DNS and LLMNR, from the port ``source`` if it is not 0.
ASK = """
GROUPS = {4: "224.0.0.251", 6: "ff02::fb"}
for line in (
    "link add link0 type veth peer name link1",
    "link set link0 up",
    "link set link1 up",
    "address add 192.0.2.1/24 dev link0",
    "address add fe80::1/64 dev link0 nodad",
):
    subprocess.run(["ip", *line.split()], check=True)

def ask(to, port, octets, source=0):
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        if family == socket.AF_INET:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("192.0.2.1"))
        else:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("link0"))
        sender.bind(("", source))
        sender.sendto(octets, (to, port))
"""


@pytest.fixture
def python(in_namespace: list[str]) -> Callable[[str], str]:
    """Return a function that runs lines of Python in the namespace, with the names of stream_sender.py."""

    def run(lines: str) -> str:
        command = [*in_namespace, sys.executable, "-c", CONTEXT + lines, str(GUEST)]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=PATIENCE, text=True).stdout

    return run


@pytest.fixture(params=["egress", "write", "twice"])
def start_either(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Start:
    """Return ``start``: at egress; at the write; with two programs at the tracepoint, as if they were preempted.

    A kernel with kprobes does not use the tracepoint, but a function.
    """
    hook = "tcp_sendmsg_locked" if kprobes_available() else "tcp_tracepoint"
    probe = {"egress": "tcp_hook: cgroup_skb", "write": f"tcp_hook: {hook}"}.get(request.param)
    if probe is None:
        if kprobes_available():
            pytest.skip("a kernel with kprobes does not use the tracepoint for TCP: run on one without")
        probe = f"tcp_hook: tcp_tracepoint, btf: {preemptible_btf(tmp_path)}"

    def run(configuration: str) -> Service:
        return start(f"{configuration}\nprobe: {{{probe}}}")

    return run


@pytest.fixture
def sees_opening(start_either: Start, request: pytest.FixtureRequest) -> bool:
    """Whether the hook sees data of the SYN. The tracepoint does not."""
    return kprobes_available() or request.node.callspec.params["start_either"] == "egress"


def unparsed(service: Service) -> dict[str, float]:
    return {reason: value for reason, value in service.by("dnsprobe_packets_unparsed_total", "reason").items() if value}


def other_messages(service: Service) -> dict[str, float]:
    return {reason: value for reason, value in service.by("dnsprobe_messages_other_total", "reason").items() if value}


def test_each_form_of_tcp_is_counted_exactly(
    start_either: Start, in_namespace: Sequence[str], *, sees_opening: bool
) -> None:
    rows = list(stream_sender.rows(opening=sees_opening))
    names = [f"{row}.forms.test" for row in rows]
    service = start_either(f"domains: [{', '.join(names)}]\njournal: {{repeat: 0}}")
    command = [*in_namespace, sys.executable, str(SENDER), "forms.test", *rows]
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=PATIENCE * 3).stdout)
    assert result["written_again"] > 0
    assert set(result["received"]) == set(names)
    assert service.by("dnsprobe_queries_total", "domain") == result["received"]
    series = service.samples("dnsprobe_queries_total")
    assert {labels["transport"] for labels, _ in series} == {"tcp"}
    for labels, _ in series:
        assert labels["process"] == ("dig" if labels["domain"].startswith("dig") else Path(sys.executable).name)
    assert unparsed(service) == {}


@pytest.mark.quick
def test_a_query_over_tcp_has_its_server_and_process(
    start_watch: Callable[..., Program], python: Callable[[str], str]
) -> None:
    watch = start_watch("--json", "server.test")
    pid = python("""
server = Server()
server.start()
for family in FAMILIES:
    whole(family, f"www{family}.server.test")
print(os.getpid())
""")
    watch.stop()
    queries = [json.loads(line) for line in watch.out.read_text("utf-8").splitlines()]
    assert [(query["qname"], query["server"], query["port"], query["transport"]) for query in queries] == [
        ("www4.server.test", "127.0.0.1", 53, "tcp"),
        ("www6.server.test", "::1", 53, "tcp"),
        ("wwwmapped.server.test", "127.0.0.1", 53, "tcp"),
    ]
    assert {query["pid"] for query in queries} == {int(pid)}
    assert all(query["net_ns"] and query["cmdline"] and not query["from_procfs"] for query in queries)


def test_an_open_connection_is_read_from_its_next_message(
    start_either: Start, in_namespace: Sequence[str], request: pytest.FixtureRequest
) -> None:
    lines = """
server = Server()
server.start()
sender = connect("4")
other = connect("6")
sender.sendall(frame("before.early.test"))
other.sendall(frame("before.early.test")[:20])
print("open", flush=True)
sys.stdin.readline()
other.sendall(frame("before.early.test")[20:])
for which in (sender, other):
    for _ in range(5):
        which.sendall(frame("www.early.test"))
    which.sendall(frame("www.early.test")[:9])
    which.sendall(frame("www.early.test")[9:])
finish(sender)
finish(other)
"""
    command = [*in_namespace, sys.executable, "-c", CONTEXT + lines, str(GUEST)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as early:
        assert early.stdin
        assert early.stdout
        assert early.stdout.readline() == "open\n"
        service = start_either("domains: [early.test]\njournal: {repeat: 0}")
        early.communicate("\n", PATIENCE)
    assert service.by("dnsprobe_queries_total", "domain") == {"early.test": 12}
    assert sum(" asked for www.early.test " in entry for entry in service.entries()) == 12
    # Each connection, and at egress the rest of a query that began before dnsprobe did.
    assert unparsed(service)["unaligned"] == 2 + (request.node.callspec.params["start_either"] == "egress")


def test_an_open_connection_hides_nothing_behind_what_looks_like_a_message(
    start_either: Start, in_namespace: Sequence[str]
) -> None:
    """Its first label begins with a message of its own, which seems to have the rest and more queries in it."""
    lines = """
server = Server()
server.start()
def real(length):
    looks = length.to_bytes(2, "big") + bytes.fromhex("0007 0100 0001 0000 0000 0000 00 0001 0001")
    name = bytes([len(looks)]) + looks + frame("early.test")[14:]
    octets = bytes.fromhex("0007 0100 0001 0000 0000 0000") + name
    return len(octets).to_bytes(2, "big") + octets
more = frame("www.early.test") * 5
query = real(len(real(0)) - 15 - 2 + len(more))
sender = connect("4")
sender.sendall(query[:15])
print("open", flush=True)
sys.stdin.readline()
sender.sendall(query[15:] + more)
finish(sender)
print(sum(server.received.values()))
"""
    command = [*in_namespace, sys.executable, "-c", CONTEXT + lines, str(GUEST)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as early:
        assert early.stdin
        assert early.stdout
        assert early.stdout.readline() == "open\n"
        service = start_either("domains: [early.test]\njournal: {repeat: 0}")
        early.communicate("\n", PATIENCE)
    assert unparsed(service) == {"unaligned": 1}
    assert service.by("dnsprobe_messages_unread_total", "process") == {Path(sys.executable).name: 1}


def test_a_new_socket_at_an_old_address_is_another_connection(
    start_either: Start, python: Callable[[str], str], *, sees_opening: bool
) -> None:
    """The tracepoint does not see data of the SYN. What follows must not be taken for the earlier connection."""
    service = start_either("domains: [again.test]\njournal: {repeat: 0}")
    python("""
Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3")
server = Server()
server.start()
opened("4", opens(frame("first.again.test")))
for _ in range(50):
    whole("4", "www.again.test")
    sender = socket.socket()
    opens(frame("first.again.test") * 3)(sender, "127.0.0.1")
    sender.sendall(frame("www.again.test"))
    finish(sender)
""")
    # The first connection has no cookie yet, so its query follows the SYN.
    first = stream_sender.OPENED + 50 * 3 if sees_opening else 1
    assert service.by("dnsprobe_queries_total", "domain") == {"again.test": 50 * (stream_sender.COUNT + 1) + first}
    # What follows data that was not seen may be a part of a message.
    assert unparsed(service) == ({} if sees_opening else {"unaligned": 50})


def test_messages_that_cannot_be_read_are_counted_by_reason(
    start_either: Start, python: Callable[[str], str], request: pytest.FixtureRequest
) -> None:
    service = start_either("domains: [lost.test]")
    python("""
server = Server()
server.start()
sender = connect("4")
sender.sendall(frame("www.lost.test") * (PIPELINED + 3))
sender.sendall(frame("www.lost.test"))
finish(sender)
sender = connect("4")
with open(os.memfd_create("query"), "r+b") as file:
    file.write(frame("www.lost.test"))
    file.flush()
    os.sendfile(sender.fileno(), file.fileno(), 0, 1000)
sender.sendall(frame("www.lost.test"))
finish(sender)
sender = connect("4")
sender.sendall(bytes.fromhex("0012 0001 0100 0001 0000 0000 0000 ff 01 0001 0001") + frame("www.lost.test"))
""")
    if request.node.callspec.params["start_either"] == "egress":
        # Only there, all messages of one packet and data of a file are read.
        assert service.by("dnsprobe_queries_total", "domain") == {"lost.test": stream_sender.PIPELINED + 3 + 4}
        assert unparsed(service) == {"malformed": 1}
        return
    queries = stream_sender.PIPELINED + 1 + 1 + 1
    assert service.by("dnsprobe_queries_total", "domain") == {"lost.test": queries}
    assert unparsed(service) == {"pipelined": 1, "unreadable": 1, "malformed": 1}


def test_messages_that_are_no_queries_are_skipped(start_either: Start, python: Callable[[str], str]) -> None:
    service = start_either("domains: [passed.test]")
    python("""
import fcntl
query = message("www.passed.test")
# OPCODEs: NOTIFY, UPDATE, DSO, STATUS; then no question, two questions, and a response.
begins = ["2000 0001", "2800 0001", "3000 0000", "1000 0001", "0000 0000", "0000 0002", "8100 0001"]
others = [query[:2] + bytes.fromhex(begin) + query[6:] for begin in begins]
with socket.create_server(("127.0.0.1", 53)):
    sender = connect("4")
    for octets in (*others, query + bytes(3000)):
        framed = len(octets).to_bytes(2, "big") + octets
        sender.sendall(framed + frame("www.passed.test"))
        # In pieces, such a message counts once, too.
        for piece in (framed[:1], framed[1:14], framed[14:20], framed[20:] + frame("www.passed.test")):
            sender.sendall(piece)
    # What waits for an acknowledgement never leaves if the connection is closed before.
    while fcntl.ioctl(sender, 0x5411, bytes(4)) != bytes(4):  # SIOCOUTQ
        pass
""")
    assert service.by("dnsprobe_queries_total", "domain") == {"passed.test": 2 * (7 + 2)}
    reasons = ("notify", "update", "dso", "opcode", "no_question", "questions", "response")
    assert other_messages(service) == dict.fromkeys(reasons, 2)
    assert unparsed(service) == {}
    assert service.stop() == 0
    entries = re.findall(r" could not read as a query \((\w+), tcp\)", service.err.read_text("utf-8"))
    # dnsmasq answers all of them, responses included.
    assert sorted(entries) == sorted(reasons)


def test_a_class_other_than_in_is_reported(start: Start, python: Callable[[str], str]) -> None:
    service = start("domains: [class.test]\nprobe: {ports: [53, 5353]}\njournal: {repeat: 1h}")
    python(f"""{ASK}
def of_class(number):
    query = message("www.class.test")
    return query[:-13] + number.to_bytes(2, "big") + query[-11:]

with socket.create_server(("127.0.0.1", 53)), connect("4") as sender:
    # IN, CH, none; the second time, each is like the one before.
    for octets in [of_class(number) for number in (1, 3, 2, 3, 2, 1)]:
        ask("127.0.0.1", 53, octets)
        sender.sendall(len(octets).to_bytes(2, "big") + octets)
# Over multicast DNS, the top bit is not part of the class. Elsewhere it is.
for number in (0x8001, 1, 0x80FF, 255):
    ask(GROUPS[4], 5353, of_class(number))
ask("127.0.0.1", 5353, of_class(0x8001))
""")
    assert service.by("dnsprobe_queries_total", "transport") == {"udp": 7, "tcp": 6, "mdns": 4}
    # At its end, it writes all entries.
    assert service.stop() == 0
    found = re.findall(r"asked for www\.class\.test \((.*?)\)", "\n".join(service.entries()))
    assert Counter(found) == dict.fromkeys(
        [
            *(f"{kind}A, {transport}" for kind in ("", "CH ", "CLASS2 ") for transport in ("udp", "tcp")),
            *("A, mdns", "ANY A, mdns", "CLASS32769 A, udp"),
        ],
        1,
    )


def test_connections_of_dns_over_tls_are_counted(start_either: Start, python: Callable[[str], str]) -> None:
    service = start_either("domains: [unseen.test]\nmetrics: {labels: [unit]}")
    python("""
listeners = [socket.create_server((address, 853), family=family) for family, address in list(FAMILIES.values())[:2]]
refused = socket.socket()
try:
    refused.connect(("127.0.0.2", 853))
except OSError:
    pass
for listener in listeners:
    for _ in range(5):
        sender = socket.socket(listener.family)
        sender.connect(listener.getsockname()[:2])
        for _ in range(3):
            sender.send(bytes([22, 3, 1]) + bytes(300))
        idle = socket.socket(listener.family)
        idle.connect(listener.getsockname()[:2])
""")
    ((labels, value),) = service.samples("dnsprobe_encrypted_connections_total")
    assert (labels["transport"], labels["process"], value) == ("dot", Path(sys.executable).name, 10)
    assert labels["tree"].endswith(f";{labels['process']}")
    assert set(labels) == {"to", "transport", "process", "tree", "unit"}
    assert service.samples("dnsprobe_queries_total") == []
    # The series stays after its process has ended.
    assert service.stop() == 0
    assert "0 queries counted" in service.err.read_text("utf-8")


def test_dot_ports_replace_the_usual_port(start: Start, python: Callable[[str], str]) -> None:
    service = start("domains: [unseen.test]\nprobe: {dot_ports: [8853]}")
    python("""
for port in (853, 8853):
    with socket.create_server(("127.0.0.1", port)) as listener, socket.socket() as sender:
        sender.connect(listener.getsockname())
        sender.send(bytes([22, 3, 1]) + bytes(port % 300))
""")
    ((labels, value),) = service.samples("dnsprobe_encrypted_connections_total")
    assert (labels["transport"], value) == ("dot", 1)
    assert unparsed(service) == {}


def test_tcp_hook_none_watches_no_tcp(start: Start, python: Callable[[str], str]) -> None:
    service = start("probe: {tcp_hook: none, ports: [53, 5353]}")
    python("""
server = Server()
server.start()
whole("4", "www.none.test")
with socket.create_server(("127.0.0.1", 853)) as listener, socket.socket() as sender:
    sender.connect(listener.getsockname())
    sender.send(bytes([22, 3, 1]))
""")
    assert service.samples("dnsprobe_encrypted_connections_total") == []
    assert service.samples("dnsprobe_queries_total") == []
    assert set(service.by("dnsprobe_path_verified", "path")) == set(ALL_PATHS) - {"tcp4", "tcp6"}


@pytest.mark.skipif(kprobes_available(), reason="this kernel has kprobes: run on one without")
def test_udp_is_watched_even_if_no_hook_for_tcp_works(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]\nprobe: {tcp_hook: tcp_sendmsg, verify_interval: 1s}")
    service.wait_for("; kprobe tcp_sendmsg: this kernel has no kprobes")
    assert service.by("dnsprobe_path_verified", "path") == {path: path[:3] != "tcp" for path in ALL_PATHS}
    assert {labels["path"] for labels, _ in service.samples("dnsprobe_hook_info")} == set(ALL_PATHS) - {"tcp4", "tcp6"}
    scene("send", "www.watched.test", 7)
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": 7}
    with pytest.raises(urllib.error.HTTPError) as not_ready:
        service.get("/-/ready")
    assert not_ready.value.code == 503
    assert b"tcp4" in not_ready.value.read()
    assert service.stop() == 0
    assert "proved again" not in service.err.read_text("utf-8")


def test_mdns_is_multicast_or_comes_from_its_port(start: Start, python: Callable[[str], str]) -> None:
    service = start("probe: {ports: [53, 5353]}\ndomains: [local, link.test]\njournal: {repeat: 0}")
    python(f"""{ASK}
query = message("printer.local")
ask(GROUPS[4], 5353, query)
ask(GROUPS[6], 5353, query)
ask("127.0.0.1", 5353, query, 5353)
ask("::1", 5353, query, 5353)
# Two questions, the second with a pointer to the name of the first (RFC 6762, section 18.14), and a known answer.
question = query[12:-11]
two = bytes.fromhex("0000 0000 0002 0001 0000 0000") + question + bytes.fromhex("c00c 001c 0001") + bytes(20)
ask(GROUPS[4], 5353, two)
ask(GROUPS[4], 5353, query[:2] + bytes([0x84]) + query[3:])
# An ordinary server has this port, too.
for family in FAMILIES.values():
    if family != FAMILIES["mapped"]:
        ask(family[1], 5353, message("www.link.test"))
ask("127.0.0.1", 5353, two)
with socket.create_server(("127.0.0.1", 5353)), connect("4", 5353) as sender:
    sender.sendall(frame("www.link.test"))
# Another port is that of no other protocol, even from port 5353 or to a multicast address.
ask("127.0.0.1", 53, message("www.link.test"), 5353)
ask(GROUPS[4], 53, message("www.link.test"))
""")
    assert by_transport(service) == {("local", "mdns"): 6, ("link.test", "udp"): 4, ("link.test", "tcp"): 1}
    assert unparsed(service) == {}
    # The message with two questions that went to an ordinary server.
    assert other_messages(service) == {"questions": 1, "response": 1}


def test_each_question_of_multicast_dns_is_read(start: Start, python: Callable[[str], str]) -> None:
    service = start("probe: {ports: [5353]}\ndomains: [many.test]\njournal: {repeat: 1h}")
    python(f"""{ASK}
import struct
def name(*labels):
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + bytes(1)
def multicast(count, *questions, behind=b""):
    return struct.pack("!6H", 0, 0, count, 0, 0, 0) + b"".join(questions) + behind
def to(target):
    return struct.pack("!H", 0xC000 | target)
A, AAAA = b"\\0\\1\\0\\1", b"\\0\\x1c\\0\\1"
many = name("many", "test")
messages = [
    # No rule matches the first one. The second one ends with a pointer, the third one is a pointer.
    multicast(3, name("other", "test") + A, many + A, b"\\1b" + to(12 + 16) + A),
    # The first one continues behind all of them. Two types of each.
    multicast(2, b"\\1c" + to(12 + 8 + 6) + A, to(12) + AAAA, behind=many),
    # More than are read.
    multicast(20, many + A, *[to(12) + A] * 19),
    # The second one is not there; it has no end; it is a loop.
    multicast(2, many + A),
    multicast(2, many + A, many[:-1]),
    multicast(2, many + A, to(12 + 15) + A),
    # A response, and one that has no question.
    struct.pack("!6H", 0, 0x8400, 2, 0, 0, 0) + (many + A) * 2,
    multicast(0, many + A),
]
for family in (4, 6):
    for octets in messages:
        ask(GROUPS[family], 5353, octets)
# Several datagrams in one packet (UDP_SEGMENT).
two = multicast(2, many + A, to(12) + AAAA)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.setsockopt(17, 103, len(two))
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("192.0.2.1"))
    sender.sendto(two * 4, (GROUPS[4], 5353))
""")
    process = Path(sys.executable).name
    queries = {"A": 2 * (2 + 1 + 16 + 3) + 4, "AAAA": 2 + 4}
    assert service.by("dnsprobe_queries_total", "qtype") == queries
    assert service.by("dnsprobe_queries_total", "process") == {process: sum(queries.values())}
    unread = {"more_questions": 2 * 4, "response": 2, "no_question": 2}
    assert service.by("dnsprobe_messages_unread_total", "reason") == unread
    assert service.by("dnsprobe_messages_unread_total", "process") == {process: sum(unread.values())}
    assert unparsed(service) == {"more_questions": 2 * 4}
    assert service.stop() == 0
    entries = service.err.read_text("utf-8")
    assert len(re.findall(r"asked for b\.many\.test \(A, mdns\)", entries)) == 1
    assert len(re.findall(r"asked for c\.many\.test \(A(?:AAA)?, mdns\)", entries)) == 2
    assert len(re.findall(r"could not read as a query \(more_questions, mdns\)", entries)) == 1


def test_llmnr_is_recognized_by_its_port(start: Start, python: Callable[[str], str]) -> None:
    service = start("probe: {ports: [53, 5355]}\ndomains: [link.test]\njournal: {repeat: 0}")
    python(f"""{ASK}
for to in ("224.0.0.252", "ff02::1:3", "127.0.0.1"):
    ask(to, 5355, message("host.link.test"))
with socket.create_server(("127.0.0.1", 5355)), connect("4", 5355) as sender:
    sender.sendall(frame("host.link.test"))
ask("127.0.0.1", 53, message("www.link.test"))
""")
    assert by_transport(service) == {("link.test", "llmnr"): 4, ("link.test", "udp"): 1}
    assert unparsed(service) == {}


def by_transport(service: Service) -> dict[tuple[str, str], int]:
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in service.samples("dnsprobe_queries_total"):
        found[labels["domain"], labels["transport"]] += int(value)
    return dict(found)
