"""One user floods, another one asks for names: what benchmarks/fair_shares.py and tests/host/test_fair_shares.py play.

Usage, as root in a network namespace of its own: python3 attacks.py ATTACK

Both users are only numbers, without an account. The attack is under way before the victim begins, and goes on until the
victim has sent all. Prints what the victim has sent, as JSON. Guests use this, too, so it needs only the standard
library.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

ATTACKER, VICTIM = 64001, 64002
SERVER = ("127.0.0.1", 53)
#: Seconds. Nothing here takes as long; what goes on after it is ended.
LONGEST = 60
_PR_SET_NAME = 15  # include/uapi/linux/prctl.h
_CLONE_NEWUSER = 0x10000000  # include/uapi/linux/sched.h


def message(name: str, qtype: int = 1) -> bytes:
    """Return a query in wire format."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return bytes([0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + labels + b"\0" + qtype.to_bytes(2, "big") + b"\0\1"


def _set_comm(comm: str) -> None:
    # Not through /proc: after a change of user, its files belong to root.
    ctypes.CDLL(None).prctl(_PR_SET_NAME, comm.encode(), 0, 0, 0)


def _as_user(uid: int, comm: str, work: Callable[[], None]) -> int:
    """Run a function as a user in a child process, as root with 0; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(LONGEST)
        _set_comm(comm)
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        work()
        status = 0
    finally:
        os._exit(status)


def _ask(names: int, name: str = "w{}-{}.wild.test", *, per_second: int = 0, seconds: float = 0, start: int = 0) -> int:
    """Ask for different names, a number of them or for a time; return how many were sent."""
    sent, began = 0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while sent < names if names else time.monotonic() - began < seconds:
            sender.sendto(message(name.format(os.getpid(), start + sent)), SERVER)
            sent += 1
            if per_second:
                time.sleep(max(0.0, began + sent / per_second - time.monotonic()))
    return sent


def _types() -> None:
    """Ask for one name with all types there are."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for qtype in range(1, 65536):
            sender.sendto(message("types.plain.test", qtype), SERVER)


def _processes(count: int, types: int = 1) -> None:
    """Keep processes, each of which asks for a number of types, and return when all have asked."""
    reader, writer = os.pipe()
    for _ in range(count):
        if os.fork() == 0:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for qtype in range(1, types + 1):
                    sender.sendto(message("p.plain.test", qtype), SERVER)
            os.close(writer)
            signal.pause()
    os.close(writer)
    os.read(reader, 1)  # the end of the pipe: no child has it open
    os.close(reader)


def _with_subordinate_ids(count: int) -> None:
    """Keep processes that have asked, each with another user id, in a user namespace inside another one.

    Such ids are those that newuidmap(1) gives a user; here, root gives them.
    """
    pid = os.getpid()
    ready, mapped = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.setresuid(0, 0, 0)
        os.read(ready[0], 1)
        for file in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{file}", "w", encoding="ascii") as written:
                written.write(f"0 {ATTACKER} 1\n1 100000 65000")
        os.write(mapped[1], b".")
        os._exit(0)
    os.setresgid(ATTACKER, ATTACKER, ATTACKER)
    os.setresuid(ATTACKER, ATTACKER, ATTACKER)
    assert ctypes.CDLL(None).unshare(_CLONE_NEWUSER) == 0
    os.write(ready[1], b".")
    os.read(mapped[0], 1)
    for number in range(1, count):
        if os.fork() == 0:
            os.setresuid(number, number, number)
            ctypes.CDLL(None).unshare(_CLONE_NEWUSER)
            _ask(1, "u{}-{}.plain.test")
            signal.pause()


def _to_dead_neighbours(packets: int) -> None:
    """Send queries to hosts that do not answer ARP: the packets wait in the kernel."""
    # The packets that wait fill the buffer of their socket, so there are many sockets.
    senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(200)]
    for number in range(packets):
        address = f"198.18.{1 + number % 400 // 200}.{1 + number % 200}"
        senders[number % len(senders)].sendto(message("same.plain.test"), (address, 53))


def _make_dead_neighbours() -> None:
    """Make a network whose other end is silent."""
    for command in (
        "link add out type veth peer name silent",
        "addr add 198.18.0.1/16 dev out",
        "link set silent up arp off",
        "link set out up",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def _end_of_chain(length: int, written: int) -> None:
    """Fork a child and end, again and again; the last child stays."""
    for _ in range(length):
        if os.fork():
            os._exit(0)
    os.write(written, b".")
    signal.pause()


def _chain(length: int) -> None:
    reader, writer = os.pipe()
    if os.fork() == 0:
        _end_of_chain(length, writer)
    os.read(reader, 1)


def _sleepers(count: int) -> None:
    """Keep processes that do nothing."""
    for _ in range(count):
        if os.fork() == 0:
            signal.pause()


def _orphans(count: int) -> int:
    """Ask from processes whose parent, which is called `starter`, has ended. Return how many asked."""
    for number in range(count):
        reader, writer = os.pipe()
        starter = os.fork()
        if starter == 0:
            _set_comm("starter")
            if os.fork():
                os._exit(0)
            os.close(writer)
            os.read(reader, 1)  # until the starter has ended, and was waited for
            _set_comm("orphan")
            _ask(1, "o{}-{}.plain.test", start=number)
            os._exit(0)
        os.waitpid(starter, 0)
        os.close(writer)
        os.close(reader)
    return count


def _newcomers(count: int) -> int:
    """Ask once from each of several processes that live at the same time."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            _ask(1, "c{}-{}.plain.test", start=number)
            time.sleep(3)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    return count


def _repeated() -> int:
    """Ask for one name again and again."""
    return _ask(100, "same.plain.test", per_second=25)


#: What the attacker does; then whether it goes on, so that the victim begins after two seconds; then the victim.
ATTACKS: dict[str, tuple[Callable[[], object], bool, Callable[[], int]]] = {
    "names": (lambda: _ask(0, per_second=10_000, seconds=LONGEST), True, lambda: _ask(1000, per_second=200)),
    "events": (
        lambda: _ask(0, "e{}-{}.plain.test", seconds=LONGEST),
        True,
        lambda: _ask(110, "v{}-{}.plain.test", per_second=20),
    ),
    "types": (_types, False, lambda: _newcomers(100)),
    "processes": (lambda: _processes(1200), False, lambda: _newcomers(100)),
    "counters": (lambda: _processes(600, 4), False, lambda: _newcomers(100)),
    "namespace": (lambda: _with_subordinate_ids(1200), False, lambda: _newcomers(100)),
    "chain": (lambda: _chain(6000), False, lambda: _orphans(50)),
    "sleepers": (lambda: _sleepers(4500), False, lambda: _orphans(50)),
    "neighbours": (lambda: _to_dead_neighbours(8000), False, lambda: _ask(1000, "same.plain.test")),
    "recent": (lambda: _ask(0, "r{}-{}.plain.test", seconds=LONGEST), True, _repeated),
}


def _report(victim: Callable[[], int], written: int) -> None:
    os.write(written, str(victim()).encode())


def play(attack: str) -> dict[str, object]:
    """Play one attack with its victim. The attacker's processes have ended when this returns."""
    flood, goes_on, victim = ATTACKS[attack]
    if attack == "neighbours":
        _make_dead_neighbours()
    reader, writer = os.pipe()

    def attacker() -> None:
        os.setpgid(0, 0)
        flood()
        os.write(writer, b".")
        signal.pause()

    result_reader, result_writer = os.pipe()
    attacking = _as_user(0 if attack == "namespace" else ATTACKER, "attacker", attacker)
    try:
        if goes_on:
            time.sleep(2)
        else:
            os.read(reader, 1)
        asking = _as_user(VICTIM, "victim", lambda: _report(victim, result_writer))
        os.close(result_writer)
        os.waitpid(asking, 0)
    finally:
        os.killpg(attacking, signal.SIGKILL)
        os.waitpid(attacking, 0)
    return {"sent": int(os.read(result_reader, 64))}


if __name__ == "__main__":
    print(json.dumps(play(sys.argv[1])))
