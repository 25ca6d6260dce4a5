"""Scenes behind a firewall: ``firewall.py SCENE SENDER`` plays one in a network namespace with loopback.

Each asker is a process with a name of its own. A scene ends when all of its queries have left.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from scenes import message, set_comm
from ways_out.firewalls import accept_all

#: A port that dnsprobe does not watch. The resolver listens there.
RESOLVER = 40053
LOCAL4, LOCAL6 = "127.0.0.1", "::1"


def nft(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def receiver(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_DGRAM)
    bound.bind((address, port))
    bound.settimeout(30)
    return bound


def play(comm: str, ask: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Run ``ask`` in a process with this name, to its end, and ``meanwhile`` here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            set_comm(comm.encode())
            ask()
            status = 0
        finally:
            os._exit(status)
    meanwhile()
    assert os.waitpid(pid, 0)[1] == 0, comm


def send(name: str, server: str, port: int = 53, *, connect: bool = False, count: int = 1) -> socket.socket:
    """Send queries, and return the socket."""
    sender = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    if connect:
        sender.connect((server, port))
    for _ in range(count):
        if connect:
            sender.send(message(name, 1))
        else:
            sender.sendto(message(name, 1), (server, port))
    return sender


def translated(_sender: str) -> None:
    """NAT replaces the destination."""
    nft(f"""
        table inet t {{ chain out {{ type nat hook output priority -100;
            ip daddr 127.0.0.11 udp dport 53 dnat ip to {LOCAL4}:{RESOLVER}
            ip daddr 127.0.0.12 udp dport 1053 dnat ip to {LOCAL4}:53
            ip daddr 127.0.0.13 udp dport 53 dnat ip to 127.0.0.9
            ip6 daddr ::1 udp dport 53 redirect to :{RESOLVER}
        }}
        }}""")
    bound = [receiver(LOCAL4, RESOLVER), receiver(LOCAL6, RESOLVER), receiver(LOCAL4, 53), receiver("127.0.0.9", 53)]
    for connect in (False, True):
        way = "connect" if connect else "sendto"
        for tag, server, port, resolver in (
            ("port", "127.0.0.11", 53, bound[0]),
            ("mapped", "::ffff:127.0.0.11", 53, bound[0]),
            ("six", "::1", 53, bound[1]),
            ("unwatched", "127.0.0.12", 1053, bound[2]),
            ("address", "127.0.0.13", 53, bound[3]),
            ("untouched", LOCAL4, RESOLVER, bound[0]),
        ):
            name = f"{tag}-{way}.nat.test"
            # The second and the third one find what became of the first one.
            play(f"{tag}-{way}", lambda: send(name, server, port, connect=connect, count=3))  # noqa: B023 - runs now
            for _ in range(3):
                resolver.recv(4096)


def rewritten(_sender: str) -> None:
    """A rule replaces the destination, and conntrack does not know."""
    nft(f"""
        table ip t {{ chain out {{ type filter hook output priority -300;
            ip daddr 127.0.0.14 udp dport 53 notrack ip daddr set {LOCAL4} udp dport set {RESOLVER}
        }}
        }}""")
    resolver = receiver(LOCAL4, RESOLVER)
    play("rewritten", lambda: send("www.nat.test", "127.0.0.14", connect=True))
    resolver.recv(4096)


def elsewhere(_sender: str) -> None:
    """A socket that is connected to a port that is not watched sends to one that is. Conntrack does not see it."""
    nft("table inet t { chain out { type filter hook output priority 0; accept\n}\n}")
    for server in (LOCAL4, LOCAL6):
        resolver = receiver(server, 53)
        with send("www.other.test", server, RESOLVER, connect=True, count=0) as sender:
            for _ in range(3):
                sender.sendto(message("www.nat.test", 1), (server, 53))
                resolver.recv(4096)


@contextmanager
def queued(own: Callable[[], object] = lambda: None, protocol: str = "udp") -> Iterator[int]:
    """A firewall in user space accepts all queries. It calls ``own`` in a thread of its own, and yields its pid."""
    for program in ("iptables", "ip6tables"):
        for port in (53, 853):
            match = [program, "-A", "OUTPUT", "-p", protocol, "--dport", str(port)]
            subprocess.run([*match, "-j", "NFQUEUE", "--queue-num", "0"], check=True)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            set_comm(b"the-firewall")

            def ready() -> None:
                threading.Thread(target=own, daemon=True).start()
                os.write(writer, b"1")

            accept_all(ready)
        finally:
            os._exit(1)
    os.read(reader, 1)
    yield pid
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def recv(asking: socket.socket) -> None:
    asking.recv(4096)


def recv_beside_a_thread(asking: socket.socket) -> None:
    # In a process of several threads, a call that waits keeps a reference to the socket.
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    asking.recv(4096)


def poll(asking: socket.socket) -> None:
    poller = select.poll()
    poller.register(asking, select.POLLIN)
    poller.poll()


def epoll(asking: socket.socket) -> None:
    with select.epoll() as poller:
        poller.register(asking, select.EPOLLIN)
        poller.poll()


def held_back(_sender: str) -> None:
    """A firewall in user space sends all queries on."""
    server = receiver(LOCAL4, 53)

    def answer(count: int = 1) -> None:
        for _ in range(count):
            _, client = server.recvfrom(4096)
            server.sendto(b"answer", client)

    def ask(name: str, wait: Callable[[socket.socket], object]) -> None:
        wait(send(name, LOCAL4))

    def share() -> None:
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        asking.sendto(message("shared.queue.test", 1), (LOCAL4, 53))
        asking.recv(4096)

    own: list[socket.socket] = []
    # The firewall has asked for this name itself, and is remembered with it.
    with queued(lambda: own.append(send("same.queue.test", LOCAL4, count=2))) as firewall:
        answer(2)
        for _ in range(3):
            play("same-name", lambda: ask("same.queue.test", recv), answer)
        for wait in (recv, recv_beside_a_thread, poll, epoll):
            play(wait.__name__[:15], lambda: ask("www.queue.test", wait), answer)  # noqa: B023 - runs now
        play("undecided", lambda: ask("ads1.wild.test", recv), answer)
        # It is not certain who asks for these.
        play("shared", share, answer)
        for comm, name in (("closed", "closed.queue.test"), ("closed-wild", "ads2.wild.test")):
            os.kill(firewall, signal.SIGSTOP)
            play(comm, lambda: ask(name, socket.socket.close))  # noqa: B023 - runs now
            os.kill(firewall, signal.SIGCONT)
            answer()


def connect(port: int = 53) -> socket.socket:
    return socket.create_connection((LOCAL4, port), 30)


def write(connection: socket.socket, name: str) -> None:
    query = message(name, 1)
    connection.sendall(len(query).to_bytes(2, "big") + query)


def held_back_streams(_sender: str) -> None:
    """A firewall in user space sends all queries over TCP on."""
    servers = {port: socket.create_server((LOCAL4, port)) for port in (53, 853)}

    def answer(port: int = 53) -> None:
        """Answer a connection when it has the first octets, and read it to its end."""
        connection, _ = servers[port].accept()
        # The client may have closed it.
        with connection, suppress(ConnectionError):
            connection.settimeout(30)
            connection.recv(4096)
            connection.sendall(b"answer")
            while connection.recv(4096):
                pass

    def write_and_wait(asking: socket.socket, name: str, wait: Callable[[socket.socket], object] = recv) -> None:
        write(asking, name)
        wait(asking)

    def ask(wait: Callable[[socket.socket], object], port: int = 53) -> None:
        with connect(port) as asking:
            write_and_wait(asking, "www.queue.test", wait)

    def ask_twice() -> None:
        with connect() as asking:
            for _ in range(2):
                write(asking, "twice.queue.test")
            # The second one may wait until the first has arrived (Nagle). The server reads to the end.
            recv(asking)
            asking.shutdown(socket.SHUT_WR)
            recv(asking)

    def ask_among_others() -> None:
        asking = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for _ in range(10_000):
            socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
        with asking:
            asking.connect((LOCAL4, 53))
            write_and_wait(asking, "others.queue.test")

    def write_in_child() -> None:
        with connect() as asking:
            play("child", lambda: write_and_wait(asking, "shared.queue.test"))

    def write_in_child_later() -> None:
        # The first packet is not held back, so it leaves while its process runs.
        let_pass = ["OUTPUT", "-p", "tcp", "-j", "ACCEPT"]
        subprocess.run(["iptables", "-I", *let_pass], check=True)
        asking = connect()
        subprocess.run(["iptables", "-D", *let_pass], check=True)
        with asking:
            play("child", lambda: write_and_wait(asking, "later.queue.test"))

    def close_unsent(firewall: int) -> None:
        with connect() as asking:
            os.kill(firewall, signal.SIGSTOP)
            write(asking, "closed.queue.test")
        os.kill(firewall, signal.SIGCONT)

    with queued(lambda: ask(recv), "tcp") as firewall:
        answer()
        for wait in (recv, poll):
            play(wait.__name__, lambda: ask(wait), answer)  # noqa: B023 - runs now
        play("twice", ask_twice, answer)
        play("among-others", ask_among_others, answer)
        play("dot", lambda: ask(recv, 853), lambda: answer(853))
        # It is not certain who asks for these.
        play("shared", write_in_child, answer)
        play("shared-later", write_in_child_later, answer)
        play("closed", lambda: close_unsent(firewall), answer)


def in_front(sender: str) -> None:
    """The network namespace has a firewall that holds nothing back, so that the open files of askers matter."""
    nft("table inet t { chain out { type filter hook output priority 0; accept\n}\n}")
    bound = [receiver(LOCAL4, 53), receiver(LOCAL6, 53)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (12000, 12000))

    def crowded(before: int, behind: int) -> None:
        others = [os.open("/dev/null", os.O_RDONLY) for _ in range(before)]
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        others += [os.open("/dev/null", os.O_RDONLY) for _ in range(behind)]
        if before:
            os.close(others[2])
        for _ in range(3):
            asking.sendto(message("crowded.front.test", 1), (LOCAL4, 53))

    for before, behind in ((0, 0), (0, 100), (100, 0), (1000, 1000), (2035, 0), (3000, 10)):
        play(f"files-{before}-{behind}", lambda: crowded(before, behind))  # noqa: B023 - runs now
        for _ in range(3):
            bound[0].recv(4096)
    for way in ("sendto", "send", "sendmmsg", "thread", "uring", "uringasync", "uringfixed", "uringasyncfixed"):
        for family in "46":
            comm = f"{family}{way}"
            subprocess.run([sender, way, family, f"{way}.front.test", "3", comm], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
