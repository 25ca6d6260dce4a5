"""Processes in /proc: made-up files, and those of this process."""

import os
import subprocess
import threading
from pathlib import Path

import pytest
from proc_files import START, make, process, stat_line

from dnsprobe.kernel.clock import TICK_NS
from dnsprobe.model import Identity, Process
from dnsprobe.process.procfs import ProcFS, Stat, cgroup_path, parse_stat


def procfs(root: Path) -> ProcFS:
    return ProcFS(str(root))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (stat_line(pid=4242, parent=17, comm=b"dig"), Stat(4242, b"dig", b"S", 17, 1, START)),
        (stat_line(pid=1, parent=0, comm=b"systemd"), Stat(1, b"systemd", b"S", 0, 1, START)),
        (stat_line(pid=7, parent=1, comm=b"a) S 9 (b"), Stat(7, b"a) S 9 (b", b"S", 1, 1, START)),
        (stat_line(pid=7, parent=1, comm=b")"), Stat(7, b")", b"S", 1, 1, START)),
        (stat_line(pid=7, parent=1, comm=b"a\nb \xff"), Stat(7, b"a\nb \xff", b"S", 1, 1, START)),
        (stat_line(pid=7, parent=1, comm=b""), Stat(7, b"", b"S", 1, 1, START)),
        (
            stat_line(pid=7, parent=2, comm=b"kworker/0:1-events_power_efficient"),
            Stat(7, b"kworker/0:1-eve", b"S", 2, 1, START),
        ),
        (b"", None),
        (b"7 (sh", None),
        (b"7 (sh) S 1 1", None),
        (b"7 (sh) " + b"x " * 40, None),
        (b"x" + stat_line(), None),
    ],
)
def test_parse_stat(line: bytes, expected: Stat | None) -> None:
    assert parse_stat(line) == expected


def test_processes_include_this_one() -> None:
    (own,) = [stat for stat in ProcFS().processes() if stat.tgid == os.getpid()]
    assert (own.parent, own.start_ticks * TICK_NS) == (os.getppid(), own_start_ns())


def test_identity_has_executable_command_line_and_cgroup(tmp_path: Path) -> None:
    make(tmp_path)
    assert procfs(tmp_path).identity(process()) == Identity(
        exe="/usr/bin/dig", cmdline=b"dig\0www.example.test\0", cgroup="/system.slice/nginx.service"
    )


@pytest.mark.parametrize(
    ("stat", "alive"),
    [
        (stat_line(), True),
        (stat_line(comm=b"a) S 1 (b)"), True),
        (stat_line(comm=b"a\nb c"), True),
        (stat_line(comm=b")"), True),
        (stat_line(comm=b"\xff\x1b[31m"), True),
        (stat_line(comm=b""), True),
        (stat_line(comm=b") Z 1 1 1 0 -1 0 0 "), True),
        (stat_line(start=START + 1), False),
        (stat_line(start=START - 1), False),
        (stat_line(state="Z"), False),
        (stat_line(state="X"), False),
        (stat_line(state="Z", threads=3), True),
        (b"", False),
        (b"4242 (dig", False),
        (b"4242 (dig) S 1 1", False),
        (b"4242 (dig) " + b"x " * 40, False),
    ],
)
def test_alive_depends_on_state_and_start(tmp_path: Path, stat: bytes, alive: bool) -> None:
    make(tmp_path, stat=stat)
    assert procfs(tmp_path).alive(process()) is alive


@pytest.mark.parametrize(
    ("start_ns", "alive"),
    [
        (START * TICK_NS, True),
        (START * TICK_NS + TICK_NS - 1, True),
        (START * TICK_NS + TICK_NS, False),
        (START * TICK_NS - 1, False),
    ],
)
def test_start_is_rounded_down_to_a_tick(tmp_path: Path, start_ns: int, alive: bool) -> None:
    make(tmp_path)
    assert procfs(tmp_path).alive(process(start_ns)) is alive


def test_a_process_that_is_gone_has_no_identity(tmp_path: Path) -> None:
    assert procfs(tmp_path).alive(process()) is False
    assert procfs(tmp_path).identity(process()) == Identity()


def test_an_unreadable_process_counts_as_alive(tmp_path: Path) -> None:
    (tmp_path / "4242").mkdir()
    (tmp_path / "4242" / "stat").mkdir()  # EISDIR, as one of the errors that say nothing about the process
    assert procfs(tmp_path).alive(process()) is True


def test_a_hidden_process_is_alive(tmp_path: Path) -> None:
    """As with hidepid=2 and without CAP_SYS_PTRACE: /proc has no folder, but there is a process."""
    assert procfs(tmp_path).alive(Process(os.getpid(), START, b"")) is True
    with subprocess.Popen(["true"]) as ended:
        pass
    assert procfs(tmp_path).alive(Process(ended.pid, START, b"")) is False


def test_a_reused_pid_has_no_identity(tmp_path: Path) -> None:
    make(tmp_path, stat=stat_line(start=START + 7))
    assert procfs(tmp_path).identity(process()) == Identity()


def test_a_pid_that_is_reused_while_it_is_read_has_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    readlink = os.readlink

    def reuse(path: str) -> str:
        make(tmp_path, stat=stat_line(start=START + 7), cmdline=b"another\0", exe=None)
        return readlink(path)

    monkeypatch.setattr(os, "readlink", reuse)
    assert procfs(tmp_path).identity(process()) == Identity()


def test_a_kernel_thread_has_only_a_cgroup(tmp_path: Path) -> None:
    make(tmp_path, cmdline=b"", exe=None, cgroup=b"0::/\n")
    assert procfs(tmp_path).identity(process()) == Identity(cgroup="/")


def test_a_deleted_executable_keeps_its_mark(tmp_path: Path) -> None:
    make(tmp_path, exe=b"/usr/bin/dig (deleted)")
    assert procfs(tmp_path).identity(process()).exe == "/usr/bin/dig (deleted)"


def test_an_executable_whose_name_is_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, exe=b"/tmp/\xff\x1b[31m\n")
    exe = procfs(tmp_path).identity(process()).exe
    assert exe is not None
    assert os.fsencode(exe) == b"/tmp/\xff\x1b[31m\n"


def test_a_command_line_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "4242" / "cmdline"
    path.unlink()
    # To open a FIFO waits for a writer, as to read memory waits for a file system in user space.
    os.mkfifo(path)
    before = set(threading.enumerate())
    # While this clock stands still, no read is slow, so only the number of those that wait is a limit.
    reader = ProcFS(str(tmp_path), clock=lambda: 0.0)
    for _ in range(10):
        identity = reader.identity(process())
        assert (identity.exe, identity.cmdline) == ("/usr/bin/dig", None)
    waiting = set(threading.enumerate()) - before
    assert len(waiting) == 4
    # Once they end, command lines are read again.
    path.open("wb").close()
    for thread in waiting:
        thread.join(60)
    path.unlink()
    path.write_bytes(b"dig\0")
    assert reader.identity(process()).cmdline == b"dig\0"


def test_cmdline_is_cut(tmp_path: Path) -> None:
    make(tmp_path, cmdline=b"dig\0" + b"\n\x1b\xff" * 10000)
    cmdline = procfs(tmp_path).identity(process()).cmdline
    assert cmdline is not None
    assert cmdline == (b"dig\0" + b"\n\x1b\xff" * 10000)[:4096]


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (b"0::/system.slice/nginx.service\n", "/system.slice/nginx.service"),
        (b"0::/\n", "/"),
        (b"12:pids:/x\n1:name=systemd:/user.slice/a\n0::/user.slice/a\n", "/user.slice/a"),
        (b"12:pids:/x\n1:name=systemd:/user.slice/a\n0::/\n", "/user.slice/a"),
        (b"12:pids:/x\n1:name=systemd:/user.slice/a\n", "/user.slice/a"),
        (b"12:pids:/x\n9:name=systemd:/\n0::/\n", "/"),
        (b"12:pids:/x\n1:name=systemd:/a\n0::/b\n", "/b"),
        (b"5:devices:/docker/0123\n", None),
        (b"0::/a:b:c/d.service\n", "/a:b:c/d.service"),
        (b"0::/system.slice/gone.service (deleted)\n", "/system.slice/gone.service"),
        (b"0::/\xff\x1b\n", "/\udcff\x1b"),
        (b"", None),
        (b"garbage\n\n::\n", None),
    ],
)
def test_cgroup_path_prefers_the_unified_hierarchy(content: bytes, path: str | None) -> None:
    assert cgroup_path(content) == path


def own_start_ns() -> int:
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[19]) * TICK_NS


def test_this_process_is_alive_and_has_an_identity() -> None:
    me = Process(os.getpid(), own_start_ns(), b"python3")
    proc = ProcFS()
    assert proc.alive(me) is True
    identity = proc.identity(me)
    assert identity.exe == os.readlink("/proc/self/exe")
    assert identity.cmdline == Path("/proc/self/cmdline").read_bytes()[:4096]
    assert identity.cgroup is not None
    assert proc.alive(Process(os.getpid(), own_start_ns() + TICK_NS, b"python3")) is False


def test_a_zombie_is_not_alive() -> None:
    proc = ProcFS()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        fields = Path(f"/proc/{child.pid}/stat").read_bytes().rpartition(b")")[2].split()
        process = Process(child.pid, int(fields[19]) * TICK_NS, b"cat")
        assert proc.alive(process) is True
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert proc.alive(process) is False
    assert proc.alive(process) is False


def test_the_ancestry_of_this_process_leads_to_pid_1() -> None:
    ancestry = ProcFS().ancestry(Process(os.getpid(), own_start_ns(), b""))
    assert ancestry is not None
    chain, pid = [], os.getpid()
    while pid:
        stat = Path(f"/proc/{pid}/stat").read_text()
        chain.append((pid, stat[stat.index("(") + 1 : stat.rindex(")")]))
        pid = int(stat[stat.rindex(")") + 2 :].split()[1])
    assert [(process.tgid, process.comm.decode()) for process in ancestry.chain] == chain


def test_ancestry_is_cut_where_a_parent_is_not_readable(tmp_path: Path) -> None:
    make(tmp_path, stat=stat_line(parent=17))
    make(tmp_path, stat=stat_line(comm=b"bash", parent=16, pid=17), pid=17)
    ancestry = procfs(tmp_path).ancestry(process())
    assert ancestry is not None
    assert (ancestry.tree, [entry.start_ns for entry in ancestry.chain]) == ("...;bash;dig", [process().start_ns, 0])


def test_ancestry_is_cut_where_the_pid_of_a_parent_was_reused(tmp_path: Path) -> None:
    make(tmp_path, stat=stat_line(parent=17))
    make(tmp_path, stat=stat_line(comm=b"bash", parent=1, pid=17, start=START + 100), pid=17)
    ancestry = procfs(tmp_path).ancestry(process())
    assert ancestry is not None
    assert ancestry.tree == "...;dig"


def test_no_ancestry_if_the_process_is_gone_or_its_pid_reused() -> None:
    assert ProcFS().ancestry(Process(os.getpid(), 1, b"")) is None
    assert ProcFS().ancestry(Process(2**22 + 1, 1, b"")) is None


def test_an_ancestry_reads_one_file_for_each_ancestor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever makes a flood of processes must not make us list all of them.
    make(tmp_path, stat=stat_line(parent=17))
    make(tmp_path, stat=stat_line(comm=b"bash", parent=1, pid=17), pid=17)
    make(tmp_path, stat=stat_line(comm=b"init", parent=0, pid=1), pid=1)
    monkeypatch.setattr(os, "listdir", lambda *_: pytest.fail("a list of all processes"))
    monkeypatch.setattr(os, "scandir", lambda *_: pytest.fail("a list of all processes"))
    ancestry = procfs(tmp_path).ancestry(process())
    assert ancestry is not None
    assert (ancestry.tree, ancestry.complete) == ("bash;dig", True)
