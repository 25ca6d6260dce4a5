"""TCP at egress: ways to send that change or hide what was written, and queries that leave after their process did."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Service

Start = Callable[..., Service]
Send = Callable[[str], dict[str, Any]]

GUEST = Path(__file__).parents[1] / "vm/guest"

TOOLS = """
import ctypes, json, mmap, os, socket, struct, subprocess, sys, threading, time
sys.path.append(sys.argv[1])
from stream_sender import *

def name_process(name):
    ctypes.CDLL(None).prctl(15, name.encode())  # PR_SET_NAME

def nagle(family="4"):
    sender = connect(family)
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    return sender

def arrived(names):
    deadline = time.monotonic() + 20
    while sum(server.received.values()) < names and time.monotonic() < deadline:
        time.sleep(0.02)

def padded(query, size):
    octets = query[2:] + bytes(size)
    return len(octets).to_bytes(2, "big") + octets

# A query that counts, and one of the same length that does not.
secret, decoy = frame("www.hidden.test"), frame("www.zzzzzz.test")
"""
#: The lines of a scene come behind this; SHOW follows them.
BEFORE = f"""{TOOLS}
READING.set()
server = Server()
server.start()
"""
SHOW = """
print(json.dumps({"received": server.received.get(NAME, 0)}))
"""


@pytest.fixture
def send(in_namespace: Sequence[str]) -> Send:
    """Return a function that runs a scene in the namespace, and returns what its server received."""

    def run(lines: str, name: str = "www.hidden.test") -> dict[str, Any]:
        program = f"NAME = {name!r}\n{BEFORE}\n{lines}\n{SHOW}"
        command = [*in_namespace, sys.executable, "-c", program, str(GUEST)]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=PATIENCE * 3).stdout
        result: dict[str, Any] = json.loads(output)
        return result

    return run


def started(start: Start) -> Service:
    return start("domains: [hidden.test]\njournal: {repeat: 0}\nprobe: {tcp_hook: cgroup_skb}")


def counted(service: Service) -> float:
    return sum(service.by("dnsprobe_queries_total", "domain").values())


def unparsed(service: Service) -> dict[str, float]:
    return {reason: value for reason, value in service.by("dnsprobe_packets_unparsed_total", "reason").items() if value}


SCENES = {
    "urgent octet": """
for family in FAMILIES:
    sender = connect(family)
    sender.send(b"x", socket.MSG_OOB)
    time.sleep(0.05)
    for _ in range(5):
        sender.send(secret)
    finish(sender)
""",
    "urgent octet in a query": """
sender = connect("4")
sender.send(secret[:20])
sender.send(b"x", socket.MSG_OOB)
time.sleep(0.05)
sender.send(secret[20:] + secret)
finish(sender)
""",
    "buffer of a send without a copy": """
for _ in range(5):
    sender = connect("4")
    sender.setsockopt(socket.SOL_SOCKET, 60, 1)  # SO_ZEROCOPY
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    page = mmap.mmap(-1, 4096)
    page[:len(decoy)] = decoy
    sender.send(memoryview(page)[:len(decoy)], 0x4000000)  # MSG_ZEROCOPY
    page[:len(secret)] = secret
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    finish(sender)
""",
    "write that fails": """
class Piece(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("size", ctypes.c_size_t)]
libc = ctypes.CDLL(None)
sender = connect("4")
for _ in range(5):
    whole = decoy * 2
    buffer = ctypes.create_string_buffer(whole, len(whole))
    pieces = (Piece * 2)(Piece(ctypes.addressof(buffer), len(whole)), Piece(16, 50))
    taken = max(libc.writev(sender.fileno(), pieces, 2), 0)
    sender.send((whole[taken:] if taken else b"") + secret)
finish(sender)
""",
    "tail of a write that waits": """
sender = narrow("4")
READING.clear()
size = 100
secret, decoy = padded(secret, 400), padded(decoy, 400)
page = mmap.mmap(-1, len(decoy) * size)
page[:] = decoy * size
writer = threading.Thread(target=sender.sendall, args=(memoryview(page),))
writer.start()
time.sleep(0.3)
page[len(decoy) * (size - 20):] = secret * 20
READING.set()
writer.join()
finish(sender)
""",
    "file and pipe": """
with open(os.memfd_create("query"), "r+b") as file:
    file.write(secret * 5)
    file.flush()
    sender = connect("4")
    os.sendfile(sender.fileno(), file.fileno(), 0, len(secret) * 5)
    finish(sender)
sender = connect("6")
reader, writer = os.pipe()
for _ in range(5):
    os.write(writer, secret)
    os.splice(reader, sender.fileno(), len(secret))
finish(sender)
""",
    "file that changes": """
for _ in range(5):
    sender = connect("4")
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    with open(os.memfd_create("query"), "r+b", buffering=0) as file:
        file.write(decoy)
        os.sendfile(sender.fileno(), file.fileno(), 0, len(decoy))
        file.seek(0)
        file.write(secret)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        finish(sender)
""",
    "Nagle": """
for family in FAMILIES:
    sender = nagle(family)
    for _ in range(20):
        sender.send(secret)
    for octet in secret * 5:
        sender.send(bytes([octet]))
    finish(sender)
""",
    "Multipath TCP": """
sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)  # IPPROTO_MPTCP
sender.connect(("127.0.0.1", PORT))
for _ in range(5):
    sender.send(secret)
finish(sender)
""",
    "Multipath TCP and a firewall": """
rules = "add table inet t; add chain inet t out { type filter hook output priority 0; }"
subprocess.run(["nft", rules], check=True)
sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
sender.connect(("127.0.0.1", PORT))
for _ in range(5):
    sender.send(secret)
finish(sender)
""",
    "retransmission": """
rules = "add table inet t; add chain inet t in { type filter hook input priority 0; }; "
rules += "add rule inet t in tcp dport 53 numgen inc mod 5 == 0 drop"
subprocess.run(["nft", rules], check=True)
sender = connect("4")
for _ in range(20):
    sender.send(secret)
    time.sleep(0.01)
arrived(20)
subprocess.run(["nft", "delete table inet t"], check=True)
finish(sender)
""",
}


@pytest.mark.parametrize("scene", list(SCENES))
def test_what_leaves_is_counted(scene: str, start: Start, send: Send) -> None:
    service = started(start)
    received = send(SCENES[scene])["received"]
    assert received > 0
    assert counted(service) == received
    assert unparsed(service) == {}
    assert {name for name, queries in service.by("dnsprobe_queries_total", "process").items() if queries} == {
        Path(sys.executable).name
    }
    assert sum(" asked for www.hidden.test " in entry for entry in service.entries()) == received


def test_a_second_urgent_octet_makes_a_connection_unreadable(start: Start, send: Send) -> None:
    service = started(start)
    send("""
sender = connect("4")
for _ in range(2):
    sender.send(b"x", socket.MSG_OOB)
    time.sleep(0.05)
for _ in range(3):
    sender.send(secret)
    time.sleep(0.05)
sender.shutdown(socket.SHUT_WR)
time.sleep(0.2)
""")
    assert counted(service) == 0
    assert unparsed(service)["unaligned"] >= 3
    assert service.by("dnsprobe_messages_unread_total", "process") == {
        Path(sys.executable).name: unparsed(service)["unaligned"]
    }


#: A process writes queries while the server does not read, and ends. The server reads after `meanwhile`.
GONE = """
count = 300
# An answer would end the connection, because nobody has its socket any more.
def count_quietly(self, connection):
    data = b""
    with connection:
        while READING.wait() and (more := connection.recv(65536)):
            data += more
    self.received[NAME] += data.count(secret[2:40])
Server._serve = count_quietly
# The server has looked up its function for the next connection already.
connect("4").close()
time.sleep(0.2)
READING.clear()
def leave():
    name_process("gone")
    sender = narrow("4")
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    # They fill the window, so the process counts nothing while it runs.
    for _ in range(100):
        sender.sendall(padded(decoy, 1500))
    for _ in range(count):
        sender.sendall(padded(secret, 1500))
    os._exit(0)
child = os.fork()
if not child:
    leave()
os.waitpid(child, 0)
meanwhile()
READING.set()
arrived(count)
"""


def test_what_leaves_later_counts_for_the_process_that_wrote_it(start: Start, send: Send) -> None:
    """The process has ended when its data leaves, because the server did not read before."""
    service = started(start)
    received = send("meanwhile = lambda: None" + GONE)["received"]
    assert received == 300
    assert service.by("dnsprobe_queries_total", "process") == {"gone": 300}
    assert unparsed(service) == {}
    (tree,) = service.by("dnsprobe_queries_total", "tree")
    assert tree.split(";")[-2:] == [Path(sys.executable).name, "gone"]


def test_a_process_whose_tree_was_pushed_out_by_other_writers_has_its_name(start: Start, send: Send) -> None:
    service = start("domains: [hidden.test]\nprobe: {tcp_hook: cgroup_skb, processes: 16}")
    received = send(
        """
def meanwhile():
    for _ in range(200):
        child = os.fork()
        if not child:
            connect("4")
            os._exit(0)
        os.waitpid(child, 0)
"""
        + GONE
    )["received"]
    assert received == 300
    assert service.by("dnsprobe_queries_total", "process") == {"gone": 300}
    assert unparsed(service) == {}
    (tree,) = service.by("dnsprobe_queries_total", "tree")
    assert tree == "...;gone"


def test_processes_that_share_a_socket_count_for_themselves(start: Start, send: Send) -> None:
    service = started(start)
    received = send("""
sender = connect("4")
name_process("parent")
for _ in range(5):
    sender.send(secret)
child = os.fork()
if not child:
    name_process("child")
    for _ in range(7):
        sender.send(secret)
    os._exit(0)
os.waitpid(child, 0)
sender.send(secret)
finish(sender)
""")["received"]
    assert received == 13
    assert service.by("dnsprobe_queries_total", "process") == {"parent": 6, "child": 7}


def test_many_queries_are_counted_exactly(start: Start, send: Send) -> None:
    service = start("domains: [hidden.test]\nprobe: {tcp_hook: cgroup_skb}")
    received = send("""
import fcntl, struct, termios
def ask():
    sender = connect("4")
    for number in range(2500):
        sender.sendall(secret * 2)
        # No packet gets more messages than are read at least: wait until all has arrived (SIOCOUTQ of tcp(7)).
        while number % 10 == 9 and struct.unpack("i", fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4)))[0]:
            time.sleep(0)
        if number % 50 == 49:
            sender.recv(1 << 20)
    finish(sender)
children = []
for _ in range(4):
    child = os.fork()
    if not child:
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
arrived(40000)
""")["received"]
    assert received == 40000
    assert counted(service) == received
    assert unparsed(service) == {}
