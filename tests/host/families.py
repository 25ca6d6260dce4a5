"""Families: processes that send a query after some of their ancestors have ended. Prints the true lineage as JSON.

Each family is a function, which runs as a program in the namespace of the senders. A process is shown as pid and comm.
``gone`` has the ancestors that have ended, nearest first; ``starters`` the ancestors of the whole family.
"""

from __future__ import annotations

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

from scenes import fork_as, lineage, send, set_comm


class Gate:
    """Blocks processes until it is opened."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def wait(self) -> None:
        os.read(self._reader, 1)

    def open(self) -> None:
        os.write(self._writer, b"1" * 16)


def ask(gate: Gate, name: str, report: int) -> None:
    """Wait, send a query, and report the present ancestors."""
    gate.wait()
    result = {"pid": os.getpid(), "parents": lineage()[1:]}
    send(name, "1")
    os.write(report, json.dumps(result).encode())
    os._exit(0)


def shell_gone(sender: str) -> Any:
    """A shell starts a sender with setsid and nohup, and exits."""
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
    """A daemon forks twice, and both parents exit."""
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
    result = json.loads(os.read(reader, 65536))
    return {**result, "gone": [[middle, "middle"], [launcher, "launcher"]], "starters": lineage()}


def shell_in_another_thread(sender: str) -> Any:
    """Like :func:`shell_gone`, but another thread than the first executes the shell."""
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
    """The grandparent of the sender exits."""
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
    result = json.loads(os.read(reader, 65536))
    return {**result, "gone": [[elder, "elder"]], "starters": lineage()}


def any_runs(pids: list[int]) -> bool:
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return True
    return False


def generations(count: str) -> Any:
    """Each of ``count`` processes forks the next one and exits; the last one sends a query."""
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
    result = json.loads(os.read(reader, 65536))
    gone = [[pid, f"generation{generation}"] for generation, pid in enumerate(pids)]
    return {**result, "gone": gone[::-1], "starters": lineage()}


def renamed() -> Any:
    """The parent changes its name after the fork, and exits."""
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
    result = json.loads(os.read(reader, 65536))
    return {**result, "gone": [[middle, "last name"]], "starters": lineage()}


def pid_reused() -> Any:
    """The parent exits, and another process with its pid and a child is there when the query is sent."""
    gate, (reader, writer) = Gate(), os.pipe()
    starter = os.fork()
    if starter == 0:
        set_comm(b"starter")
        if os.fork() == 0:
            ask(gate, "www.reused.test", writer)
        os._exit(0)
    os.waitpid(starter, 0)
    # Start times are kept in clock ticks. A real pid is not reused within one tick.
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
    result = json.loads(os.read(reader, 65536))
    own.open()
    other_report = json.loads(os.read(own_reader, 65536))
    os.waitpid(impostor, 0)
    return {**result, "gone": [[starter, "starter"]], "starters": lineage(), "impostor": other_report}


def there_before() -> Any:
    """A process and its child exist before dnsprobe starts. On a line of input, the process forks again and exits."""
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
    with open(reader, encoding="utf-8") as result:
        result.read()  # until both have ended
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
