"""Families whose elders go, in the namespace of the senders: run as a program, prints one JSON object with the truth.

Each process is told as pid and comm. What it sends, it sends when those have gone who are to be gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scenes import lineage, send, set_comm

CLONE3 = 435  # include/uapi/asm-generic/unistd.h, on all architectures


class Gate:
    """Holds processes up until it is opened."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def wait(self) -> None:
        os.read(self._reader, 1)

    def open(self) -> None:
        os.write(self._writer, b"1" * 16)


def ask(gate: Gate, name: str, report: int) -> None:
    """Wait, send a query, and tell who the ancestors are now."""
    gate.wait()
    told = {"pid": os.getpid(), "parents": lineage()[1:]}
    send(name, "1")
    os.write(report, json.dumps(told).encode())
    os._exit(0)


def shell_gone(sender: str) -> Any:
    """Have a shell start a sender as users do who mean it to outlive the shell."""
    reader, writer = os.pipe()
    wait_and_send = 'read line; exec "$0" sendto 4 www.orphan.test 1 orphan'
    script = f"setsid nohup sh -c '{wait_and_send}' {sender} <&{reader} & echo $!"
    with subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[reader]
    ) as shell:
        assert shell.stdout
        pid = int(shell.stdout.readline())
        shell.wait()
        os.write(writer, b"\n")
        shell.stdout.read()  # until the sender ends
    return {"pid": pid, "shell": [shell.pid, "bash"], "starters": lineage()}


def daemonised() -> Any:
    """Fork twice, as daemons do, and let the two that forked go."""
    gate, (reader, writer) = Gate(), os.pipe()
    launcher = os.fork()
    if launcher == 0:
        set_comm(b"launcher")
        middle = os.fork()
        if middle == 0:
            os.setsid()
            set_comm(b"middle")
            if os.fork() == 0:
                set_comm(b"daemon")
                ask(gate, "www.daemon.test", writer)
            os._exit(0)
        os.waitpid(middle, 0)
        os.write(writer, f"{middle} ".encode())
        os._exit(0)
    os.waitpid(launcher, 0)
    middle = int(os.read(reader, 64))
    gate.open()
    told = json.loads(os.read(reader, 65536))
    return {**told, "gone": [[middle, "middle"], [launcher, "launcher"]], "starters": lineage()}


def shell_in_another_thread(sender: str) -> Any:
    """As :func:`shell_gone`, where not the first thread of a process becomes the shell."""
    reader, writer = os.pipe()
    out_reader, out_writer = os.pipe()
    shell = os.fork()
    if shell == 0:
        os.set_inheritable(reader, True)
        os.dup2(out_writer, 1)
        script = f"(read line; exec {sender} sendto 4 www.orphan.test 1 orphan) <&{reader} & echo $!"
        threading.Thread(target=os.execv, args=("/bin/bash", ["bash", "-c", script])).start()
        signal.pause()
    os.close(out_writer)
    os.waitpid(shell, 0)
    with open(out_reader, encoding="utf-8") as out:
        pid = int(out.readline())
        os.write(writer, b"\n")
        out.read()  # until the sender ends
    return {"pid": pid, "shell": [shell, "bash"], "starters": lineage()}


def elder_gone() -> Any:
    """Let the one go that forked the one that forked who asks."""
    gate, (reader, writer) = Gate(), os.pipe()
    elder = os.fork()
    if elder == 0:
        set_comm(b"elder")
        if os.fork() == 0:
            set_comm(b"parent")
            child = os.fork()
            if child == 0:
                ask(gate, "www.elder.test", writer)
            os.waitpid(child, 0)
        os._exit(0)
    os.waitpid(elder, 0)
    gate.open()
    told = json.loads(os.read(reader, 65536))
    return {**told, "gone": [[elder, "elder"]], "starters": lineage()}


def any_runs(pids: list[int]) -> bool:
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return True
    return False


def generations(count: str) -> Any:
    """Have each process fork the next one and go, so many times; the last one asks."""
    gate, (reader, writer) = Gate(), os.pipe()
    first = os.fork()
    if first == 0:
        pids = []
        for generation in range(int(count)):
            pids.append(os.getpid())
            set_comm(f"generation{generation}".encode())
            if os.fork():
                os._exit(0)
        os.write(writer, json.dumps(pids).encode())
        set_comm(b"last")
        ask(gate, "www.generations.test", writer)
    os.waitpid(first, 0)
    pids = json.loads(os.read(reader, 65536))
    while any_runs(pids):
        time.sleep(0.01)
    gate.open()
    told = json.loads(os.read(reader, 65536))
    gone = [[pid, f"generation{generation}"] for generation, pid in enumerate(pids)]
    return {**told, "gone": gone[::-1], "starters": lineage()}


def renamed() -> Any:
    """Let a process go that was called otherwise when it forked the one that asks."""
    gate, (reader, writer) = Gate(), os.pipe()
    middle = os.fork()
    if middle == 0:
        set_comm(b"first name")
        if os.fork() == 0:
            ask(gate, "www.renamed.test", writer)
        set_comm(b"last name")
        os._exit(0)
    os.waitpid(middle, 0)
    gate.open()
    told = json.loads(os.read(reader, 65536))
    return {**told, "gone": [[middle, "last name"]], "starters": lineage()}


class CloneArguments(ctypes.Structure):
    """``struct clone_args`` (clone3(2)) up to ``set_tid_size``."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid set_tid_size".split()  # noqa: SIM905
        )
    )


def fork_as(pid: int) -> int:
    """Fork a child with this pid, which nobody has."""
    wanted = ctypes.c_int(pid)
    arguments = CloneArguments(exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(wanted), set_tid_size=1, flags=0)
    libc = ctypes.CDLL(None, use_errno=True)
    child = int(libc.syscall(CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments)))
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return child


def pid_reused() -> Any:
    """Let the one that forked go, and another process have its pid and a child when the query is sent."""
    gate, (reader, writer) = Gate(), os.pipe()
    starter = os.fork()
    if starter == 0:
        set_comm(b"starter")
        if os.fork() == 0:
            ask(gate, "www.reused.test", writer)
        os._exit(0)
    os.waitpid(starter, 0)
    # A pid does not come round within a tick of the clock, in which start times are kept.
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))
    own, (own_reader, own_writer) = Gate(), os.pipe()
    impostor = fork_as(starter)
    if impostor == 0:
        set_comm(b"impostor")
        child = os.fork()
        if child == 0:
            ask(own, "www.impostor.test", own_writer)
        own.wait()
        os.waitpid(child, 0)
        os._exit(0)
    gate.open()
    told = json.loads(os.read(reader, 65536))
    own.open()
    told_by_other = json.loads(os.read(own_reader, 65536))
    os.waitpid(impostor, 0)
    return {**told, "gone": [[starter, "starter"]], "starters": lineage(), "impostor": told_by_other}


def there_before() -> Any:
    """Have a process and its child before dnsprobe starts; told to on standard input, fork another one, and go."""
    gate, (reader, writer) = Gate(), os.pipe()
    go_reader, go_writer = os.pipe()
    elder = os.fork()
    if elder == 0:
        set_comm(b"elder")
        if os.fork() == 0:
            ask(gate, "www.before.test", writer)
        os.write(writer, b"ready")
        os.read(go_reader, 1)
        if os.fork() == 0:
            ask(gate, "www.after.test", writer)
        os._exit(0)
    os.read(reader, 64)
    print("ready", flush=True)
    sys.stdin.readline()
    os.write(go_writer, b"\n")
    os.waitpid(elder, 0)
    gate.open()
    os.close(writer)
    with open(reader, encoding="utf-8") as told:
        told.read()  # until both have ended
    return {"gone": [[elder, "elder"]], "starters": lineage()}


FAMILIES: dict[str, Callable[..., Any]] = {
    family.__name__: family
    for family in (
        shell_gone,
        shell_in_another_thread,
        daemonised,
        renamed,
        elder_gone,
        generations,
        pid_reused,
        there_before,
    )
}

if __name__ == "__main__":
    print(json.dumps(FAMILIES[sys.argv[1]](*sys.argv[2:])))
