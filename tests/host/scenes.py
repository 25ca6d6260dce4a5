"""Scenes: programs that run in the namespace of the senders, send queries, and print as JSON what they sent.

Each scene is a function. Its result does not depend on dnsprobe: it is what a DNS server received, or what the senders
know about themselves. Tests compare dnsprobe with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

PORT = 53


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def message(name: str, qtype: int = 1) -> bytes:
    return bytes.fromhex("1234 0100 0001 0000 0000 0000") + wire(name) + struct.pack("!HH", qtype, 1)


def lineage() -> list[tuple[int, str]]:
    """Return pid and comm of this process and its ancestors, nearest first, from procfs."""
    chain, pid = [], os.getpid()
    while pid:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "surrogateescape")
        comm = stat[stat.index("(") + 1 : stat.rindex(")")]
        chain.append((pid, comm))
        pid = int(stat[stat.rindex(")") + 2 :].split()[1])
    return chain


def set_comm(comm: bytes) -> None:
    ctypes.CDLL(None).prctl(15, comm, 0, 0, 0)  # PR_SET_NAME


class Server(threading.Thread):
    """Answers every query with NXDOMAIN and counts them by name and type."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.received: Counter[tuple[str, int]] = Counter()
        # Dual stack: IPv4 clients have mapped addresses.
        self.socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind(("::", PORT))

    def run(self) -> None:
        while True:
            query, client = self.socket.recvfrom(4096)
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode())
                at += 1 + query[at]
            self.received[".".join(labels).lower(), struct.unpack_from("!H", query, at + 1)[0]] += 1
            question = query[12 : at + 5]
            self.socket.sendto(query[:2] + bytes.fromhex("8183 0001 0000 0000 0000") + question, client)


MMSG = """
import ctypes, socket, sys
message, count = bytes.fromhex(sys.argv[1]), int(sys.argv[2])
class iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("len", ctypes.c_size_t))
class msghdr(ctypes.Structure):
    _fields_ = (("name", ctypes.c_void_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.POINTER(iovec)),
        ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int))
class mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", msghdr), ("len", ctypes.c_uint32))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(("127.0.0.1", 53))
vector = iovec(message, len(message))
batch = (mmsghdr * count)(*(mmsghdr(msghdr(iov=ctypes.pointer(vector), iovlen=1)) for _ in range(count)))
assert ctypes.CDLL(None).sendmmsg(sender.fileno(), batch, count, 0) == count
"""

SOCKET = """
import socket, sys
family, way, address, query, count = sys.argv[1:]
query = bytes.fromhex(query)
sender = socket.socket(getattr(socket, family), socket.SOCK_DGRAM)
target = (address, 53)
if way == "connect":
    sender.connect(target)
for _ in range(int(count)):
    {"connect": lambda: sender.send(query), "sendto": lambda: sender.sendto(query, target),
     "sendmsg": lambda: sender.sendmsg([query[:3], query[3:]], [], 0, target)}[way]()
"""

THREAD = """
import socket, sys, threading, ctypes
query = bytes.fromhex(sys.argv[1])
def send():
    ctypes.CDLL(None).prctl(15, b"other-thread", 0, 0, 0)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(int(sys.argv[2])):
        sender.sendto(query, ("127.0.0.1", 53))
thread = threading.Thread(target=send)
thread.start()
thread.join()
"""

RESOLVE = "import socket, sys\ntry: socket.getaddrinfo(sys.argv[1], 80)\nexcept OSError: pass"


def clients() -> Any:
    """Run each kind of client with a domain of its own; return what the server received for each."""
    server = Server()
    server.start()
    python = [sys.executable, "-c"]

    def query(domain: str) -> str:
        return message(f"www.{domain}.test").hex()

    runs = {
        "dig": ["dig", "@127.0.0.1", "www.dig.test"],
        "dig6": ["dig", "@::1", "www.dig6.test", "AAAA"],
        "getent": ["getent", "hosts", "www.getent.test"],
        "getaddrinfo": [*python, RESOLVE, "www.getaddrinfo.test"],
        "connected": [*python, SOCKET, "AF_INET", "connect", "127.0.0.1", query("connected"), "7"],
        "sendto": [*python, SOCKET, "AF_INET", "sendto", "127.0.0.1", query("sendto"), "11"],
        "sendmsg": [*python, SOCKET, "AF_INET", "sendmsg", "127.0.0.1", query("sendmsg"), "13"],
        "sendmmsg": [*python, MMSG, query("sendmmsg"), "17"],
        "ipv6": [*python, SOCKET, "AF_INET6", "sendto", "::1", query("ipv6"), "19"],
        "ipv6connected": [*python, SOCKET, "AF_INET6", "connect", "::1", query("ipv6connected"), "23"],
        "mapped": [*python, SOCKET, "AF_INET6", "sendto", "::ffff:127.0.0.1", query("mapped"), "29"],
        "thread": [*python, THREAD, query("thread"), "31"],
    }
    pids = {}
    for domain, command in runs.items():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pids[domain] = process.pid
        process.wait(60)
    # When the server answers the last query, it has handled all others.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(message("last.invalid"), ("127.0.0.1", PORT))
        last.recv(512)
    received = [[name, qtype, count] for (name, qtype), count in server.received.items()]
    comms = {domain: Path(command[0]).name for domain, command in runs.items()}
    return {"received": received, "pids": pids, "comms": comms, "lineage": lineage()}


def reap(running: set[int]) -> None:
    """Wait for any child, and remove it from ``running``. A sender that failed would look like a lost query."""
    pid, status = os.wait()
    if status:
        raise ChildProcessError(f"the sender {pid} failed: exit code {os.waitstatus_to_exitcode(status)}")
    running.discard(pid)


def oneshots(count: str, at_once: str) -> Any:
    """Fork processes that send one query each and exit at once; return the pid of each."""
    pids: dict[str, int] = {}
    running: set[int] = set()
    for index in range(int(count)):
        name = f"p{index}"
        pid = os.fork()
        if pid == 0:
            set_comm(name.encode())
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(message(f"{name}.oneshot.test"), ("127.0.0.1", PORT))
            os._exit(0)
        pids[name] = pid
        running.add(pid)
        if len(running) >= int(at_once):
            reap(running)
    while running:
        reap(running)
    return {"pids": pids, "lineage": lineage()}


def silence() -> None:
    """Discard standard output: only the result of the scene may appear there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def executions(sender: str, count: str, at_once: str) -> Any:
    """Run a program that sends one query, each time with other arguments and as another user; return the pids."""
    pids: dict[str, int] = {}
    running: set[int] = set()
    for index in range(int(count)):
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(20000 + index % 7)
            os.setuid(10000 + index % 11)
            silence()
            name = f"e{index}.execution.test"
            os.execv(sender, [f"own name {index}", "sendto", "4", name, "1", f"e{index}"])
        pids[f"e{index}"] = pid
        running.add(pid)
        if len(running) >= int(at_once):
            reap(running)
    while running:
        reap(running)
    namespaces = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "pid", "mnt")}
    return {"pids": pids, "lineage": lineage(), "namespaces": namespaces, "cgroup": own_cgroup()}


def own_cgroup() -> str:
    lines = dict(line.split(":", 2)[::2] for line in Path("/proc/self/cgroup").read_text().splitlines())
    return lines["0"]


def replaced(sender: str) -> Any:
    """Send one query as this program, then one each as two programs that the process executes."""
    pid = os.fork()
    if pid == 0:
        send("www.replaced.test", "1")
        silence()
        again = f"exec {sender} sendto 4 second.replaced.test 1 second"
        os.execv("/bin/sh", ["sh", "-c", f"{sender} sendto 4 child.replaced.test 1 child; {again}"])
    os.waitpid(pid, 0)
    return {"pid": pid}


def set_title(title: bytes) -> list[str]:
    """Overwrite the arguments in memory, as setproctitle(3) does; return what procfs shows then."""
    # Fields 48 and 49 of /proc/self/stat (proc(5)): start and end of the arguments.
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    assert len(title) < end - start
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, title, len(title))
    return own_cmdline()


def own_cmdline() -> list[str]:
    return Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0")


def fork_as(pid: int) -> int:
    """Fork a child with this pid, which has to be free: clone3(2), on Linux 5.5 and later."""
    wanted = ctypes.c_int(pid)
    # struct clone_args (include/uapi/linux/sched.h): the fifth is exit_signal, the ninth set_tid, the tenth its size.
    arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
    # PyDLL keeps Python's lock, so that the child holds it.
    libc = ctypes.PyDLL(None, use_errno=True)
    child = int(libc.syscall(435, arguments, ctypes.sizeof(arguments)))
    if child < 0:
        raise OSError(ctypes.get_errno(), f"clone3 for pid {pid}")
    return child


def reused(count: str) -> Any:
    """Send one query each from processes that have the same pid, one after the other, and different names."""
    first = 0
    for index in range(int(count)):
        pid = fork_as(first) if first else os.fork()
        if pid == 0:
            set_comm(f"r{index}".encode())
            set_title(f"title {index}".encode())
            send(f"r{index}.reused.test", "1")
            os._exit(0)
        first = pid
        os.waitpid(pid, 0)
    return {"pid": first, "lineage": lineage()}


def _send_from_thread(comm: bytes, name: str) -> None:
    def work() -> None:
        set_comm(comm)
        send(name, "1")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def renamed(sender: str) -> Any:
    """Send queries from a process that changes its name before each, and from one that changes it only at first."""
    reader, writer = os.pipe()
    pids = []
    for name in ("late", "early"):
        pid = os.fork()
        pids.append(pid)
        if pid == 0:
            silence()
            if name == "early":
                set_title(b"early title")
                set_comm(b"early")
                send("early.renamed.test", "1")
                os._exit(0)
            set_comm(b"first")
            send("first.renamed.test", "1")
            title = set_title(b"late title")
            set_comm(b"second")
            send("second.renamed.test", "1")
            _send_from_thread(b"thread", "thread.renamed.test")
            os.write(writer, json.dumps(title).encode())
            os.execv(sender, ["third title", "sendto", "4", "third.renamed.test", "1", "third"])
        os.waitpid(pid, 0)
    return {"pids": pids, "cmdline": own_cmdline(), "title": json.loads(os.read(reader, 4096)), "lineage": lineage()}


#: The system call exit(2), which ends one thread: include/uapi/asm-generic/unistd.h; x86-64 has a number of its own.
SYS_EXIT = {"x86_64": 60}.get(os.uname().machine, 93)


def leaderless() -> Any:
    """Send a query from a thread of a process whose first thread has ended."""
    pid = os.fork()
    if pid == 0:

        def ask() -> None:
            while Path("/proc/self/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.001)
            send("www.leaderless.test", "1")
            os._exit(0)

        threading.Thread(target=ask).start()
        ctypes.CDLL(None).syscall(SYS_EXIT, 0)
    os.waitpid(pid, 0)
    mnt_ns = os.stat("/proc/self/ns/mnt").st_ino
    # A fork has the command line of its parent.
    return {"pid": pid, "cmdline": own_cmdline(), "mnt_ns": mnt_ns, "lineage": lineage()}


def logged_in(uid: str) -> Any:
    """Send a query from a login session of this user, as pam_loginuid(8) marks it, if the kernel supports it."""
    kept = Path("/proc/self/loginuid").exists()
    pid = os.fork()
    if pid == 0:
        if kept:
            Path("/proc/self/loginuid").write_text(uid)
        send("www.login.test", "1")
        os._exit(0)
    os.waitpid(pid, 0)
    return {"kept": kept}


def contained(*paths: str) -> Any:
    """Send a query from each of these control groups, in new pid and mount namespaces, as a container does."""
    (root,) = (
        line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"
    )
    return [_send_from(Path(root) / path.lstrip("/"), f"c{number}.contained.test") for number, path in enumerate(paths)]


def _send_from(group: Path, name: str) -> dict[str, int]:
    made = [folder for folder in (*reversed(group.parents), group) if not folder.exists()]
    for folder in made:
        folder.mkdir()
    reader, writer = os.pipe()
    try:
        outer = os.fork()
        if outer == 0:
            (group / "cgroup.procs").write_text("0")
            new_pid, new_mounts = 0x20000000, 0x20000
            assert ctypes.CDLL(None, use_errno=True).unshare(new_pid | new_mounts) == 0
            inner = os.fork()
            if inner == 0:
                namespaces = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("pid", "mnt")}
                os.write(writer, json.dumps(namespaces).encode())
                send(name, "1")
                os._exit(0)
            os.waitpid(inner, 0)
            os._exit(0)
        os.waitpid(outer, 0)
        found: dict[str, int] = json.loads(os.read(reader, 4096))
    finally:
        for folder in reversed(made):
            folder.rmdir()
    return found


def many(processes: str, each: str, types: str, name: str) -> Any:
    """Fork processes that live at the same time; each sends ``each`` queries of each of ``types`` types."""
    pids, release = [], os.pipe()
    for index in range(int(processes)):
        pid = os.fork()
        if pid == 0:
            set_comm(f"many{index}".encode())
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for qtype in range(1, int(types) + 1):
                    for _ in range(int(each)):
                        sender.sendto(message(name, qtype), ("127.0.0.1", PORT))
            os.close(release[1])
            os.read(release[0], 1)
            os._exit(0)
        pids.append(pid)
    os.close(release[1])
    for _ in pids:
        os.wait()
    return {"sent": int(processes) * int(each) * int(types), "lineage": lineage()}


def deep(levels: str) -> Any:
    """Fork a chain of processes; the last one sends a query."""
    for level in range(int(levels)):
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            if level:
                os._exit(0)
            return {"lineage": lineage()}
        set_comm(f"level{level}".encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(message("www.deep.test"), ("127.0.0.1", PORT))
    os._exit(0)


def send(name: str, count: str) -> Any:
    """Send ``count`` queries for one name from this process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(int(count)):
            sender.sendto(message(name), ("127.0.0.1", PORT))
    return {"sent": int(count), "pid": os.getpid(), "lineage": lineage()}


def called(load: str) -> Any:
    """From a process of each name, send ``count`` queries for one.test, and one for two.test."""
    for comm, count in json.loads(load):
        pid = os.fork()
        if pid == 0:
            set_comm(comm.encode("utf-8", "surrogateescape"))
            send("www.one.test", count)
            send("www.two.test", "1")
            os._exit(0)
        os.waitpid(pid, 0)
    return {"lineage": lineage()}


def named(comm: str, name: str) -> Any:
    """Send a query from a process with the comm ``comm``."""
    set_comm(comm.encode())
    return send(name, "1")


def invented(uid: str, count: str, comm: str, name: str) -> Any:
    """As a user, ask ``count`` times, each time from another process with a new name, for another name."""
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    for number in range(int(count)):
        pid = os.fork()
        if pid == 0:
            set_comm(f"{comm}{number}".encode())
            send(f"n{number}.{name}", "1")
            os._exit(0)
        os.waitpid(pid, 0)
    return {"sent": int(count)}


def streams(name: str) -> Any:
    """Send a query over TCP, and open a connection of DNS over TLS."""
    query = message(name)
    for port, sent in ((PORT, len(query).to_bytes(2, "big") + query), (853, bytes([22, 3, 1]) + bytes(300))):
        address = ("127.0.0.1", port)
        with socket.create_server(address), socket.create_connection(address) as sender:
            sender.sendall(sent)
    return {"lineage": lineage()}


def send_others(count: str) -> Any:
    """Send packets that no rule of the tests matches: another name, no query, another port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(int(count)):
            sender.sendto(message("www.xwatched.test"), ("127.0.0.1", PORT))
            sender.sendto(b"\x80" * 40, ("127.0.0.1", PORT))
            sender.sendto(message("www.watched.test"), ("127.0.0.1", 9))
    return {"sent": int(count)}


SCENES: dict[str, Callable[..., Any]] = {
    scene.__name__: scene
    for scene in (
        *(clients, oneshots, executions, replaced, renamed, reused, leaderless, logged_in),
        *(contained, called, many, deep, send, named, invented, send_others, streams),
    )
}

if __name__ == "__main__":
    print(json.dumps(SCENES[sys.argv[1]](*sys.argv[2:])))
