"""What /proc tells, from a made-up one and from this process's own."""

import os
import pwd
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from proc_files import START, stat_line

from dnsprobe.kernel.abi import CMDLINE_SIZE, Facts, PathNames
from dnsprobe.model import Identity, Process
from dnsprobe.process.procfs import ProcFS, cgroup_path, unit_of

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

SERVICE = b"0::/system.slice/nginx.service\n"


def make(
    root: Path,
    stat: bytes | None = None,
    cmdline: bytes = b"dig\0www.example.test\0",
    cgroup: bytes = SERVICE,
    exe: bytes | None = b"/usr/bin/dig",
    pid: int = 4242,
) -> None:
    folder = root / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_bytes(stat_line() if stat is None else stat)
    (folder / "cmdline").write_bytes(cmdline)
    (folder / "cgroup").write_bytes(cgroup)
    if exe is not None:
        os.symlink(exe, bytes(folder / "exe"))


def process(start_ns: int = START * TICK_NS + 1234) -> Process:
    return Process(tgid=4242, start_ns=start_ns, comm=b"dig")


def procfs(root: Path) -> ProcFS:
    return ProcFS(str(root), user_name={0: "root", 1000: "ada"}.get)


def test_everything(tmp_path: Path) -> None:
    make(tmp_path)
    assert procfs(tmp_path).identify(process(), None) == Identity(
        exe="/usr/bin/dig",
        cmdline=b"dig\0www.example.test\0",
        unit="nginx.service",
        cgroup="/system.slice/nginx.service",
        slice="system.slice",
        from_procfs=frozenset({"exe", "cmdline", "cgroup"}),
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
def test_alive(tmp_path: Path, stat: bytes, alive: bool) -> None:
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


def test_gone(tmp_path: Path) -> None:
    assert procfs(tmp_path).alive(process()) is False
    assert procfs(tmp_path).identify(process(), None) == Identity()
    assert procfs(tmp_path).identify(process(), None) == Identity()


def test_alive_where_it_cannot_be_told(tmp_path: Path) -> None:
    (tmp_path / "4242").mkdir()
    (tmp_path / "4242" / "stat").mkdir()  # EISDIR, as one of the errors that say nothing about the process
    assert procfs(tmp_path).alive(process()) is True


def test_reused_pid_lends_nothing(tmp_path: Path) -> None:
    make(tmp_path, stat=stat_line(start=START + 7))
    assert procfs(tmp_path).identify(process(), None) == Identity()


def test_reuse_while_reading_lends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    readlink = os.readlink

    def reuse(path: str) -> str:
        make(tmp_path, stat=stat_line(start=START + 7), cmdline=b"another\0", exe=None)
        return readlink(path)

    monkeypatch.setattr(os, "readlink", reuse)
    assert procfs(tmp_path).identify(process(), None) == Identity()


def test_kernel_thread(tmp_path: Path) -> None:
    make(tmp_path, cmdline=b"", exe=None, cgroup=b"0::/\n")
    assert procfs(tmp_path).identify(process(), None) == Identity(cgroup="/", from_procfs=frozenset({"cgroup"}))


def test_deleted_executable(tmp_path: Path) -> None:
    make(tmp_path, exe=b"/usr/bin/dig (deleted)")
    assert procfs(tmp_path).identify(process(), None).exe == "/usr/bin/dig (deleted)"


def test_executable_that_is_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, exe=b"/tmp/\xff\x1b[31m\n")
    exe = procfs(tmp_path).identify(process(), None).exe
    assert exe is not None
    assert os.fsencode(exe) == b"/tmp/\xff\x1b[31m\n"


def test_cmdline_is_cut(tmp_path: Path) -> None:
    make(tmp_path, cmdline=b"dig\0" + b"\n\x1b\xff" * 10000)
    cmdline = procfs(tmp_path).identify(process(), None).cmdline
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
def test_cgroup_path(content: bytes, path: str | None) -> None:
    assert cgroup_path(content) == path


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/nginx.service/worker", "nginx.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/system.slice/docker-0123.scope/init.scope", "docker-0123.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", "user@1000.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        (r"/system.slice/system-a\x2db.slice/a\x2db@c.service", r"a\x2db@c.service"),
        ("/init.scope", "init.scope"),
        ("/system.slice/_cgroup.mount", "cgroup.mount"),
        ("/kubepods.slice/kubepods-pod1.slice/cri-containerd-0123.scope", "cri-containerd-0123.scope"),
        ("/", None),
        ("", None),
        ("/system.slice", None),
        ("/docker/0123456789", None),
        ("/system.slice/no-unit/evil.service", None),
        ("/system.slice/template@.service", None),
        ("/system.slice/@x.service", None),
        ("/system.slice/.service", None),
        ("/system.slice/a b.service", None),
        ("/system.slice/a\n.service", None),
        ("/system.slice/a.service\n", None),
        ("/system.slice/\u202ea.service", None),
        ("/system.slice/" + "a" * 248 + ".service", None),
        ("/system.slice/" + "a" * 247 + ".service", "a" * 247 + ".service"),
    ],
)
def test_unit_of(cgroup: str, unit: str | None) -> None:
    assert unit_of(cgroup) == unit


def test_user_names_are_kept_for_a_minute_and_not_without_bound() -> None:
    asked: list[int] = []
    now = 0.0

    def user_name(uid: int) -> str | None:
        asked.append(uid)
        return f"u{uid}" if uid else None

    proc = ProcFS("/nonexistent", user_name=user_name, clock=lambda: now)
    for _ in range(3):
        assert proc.user(7) == "u7"
        assert proc.user(0) is None
    assert asked == [7, 0]
    now = 61.0
    assert proc.user(7) == "u7"
    assert asked == [7, 0, 7]
    for uid in range(1000, 11000):
        proc.user(uid)
    assert len(proc._users) <= 256


def test_unknown_user() -> None:
    assert ProcFS("/nonexistent").user(4294967294) is None
    assert ProcFS("/nonexistent").user(1 << 40) is None


def own_start_ns() -> int:
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[19]) * TICK_NS


def test_own_process() -> None:
    me = Process(os.getpid(), own_start_ns(), b"python3")
    proc = ProcFS()
    assert proc.alive(me) is True
    identity = proc.identify(me, None)
    assert identity.exe == os.readlink("/proc/self/exe")
    assert identity.cmdline == Path("/proc/self/cmdline").read_bytes()[:4096]
    assert proc.user(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name
    assert identity.cgroup is not None
    assert proc.alive(Process(os.getpid(), own_start_ns() + TICK_NS, b"python3")) is False


def test_own_child_is_gone_once_it_is_a_zombie() -> None:
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


def test_ancestry_of_the_living() -> None:
    start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    here = Process(os.getpid(), start * 1_000_000_000 // os.sysconf("SC_CLK_TCK"), b"")
    ancestry = ProcFS().ancestry(here)
    assert ancestry is not None
    chain, pid = [], os.getpid()
    while pid:
        stat = Path(f"/proc/{pid}/stat").read_text()
        chain.append((pid, stat[stat.index("(") + 1 : stat.rindex(")")]))
        pid = int(stat[stat.rindex(")") + 2 :].split()[1])
    assert [(process.tgid, process.comm.decode()) for process in ancestry.chain] == chain


def test_no_ancestry_of_the_gone_or_of_another_with_its_pid() -> None:
    assert ProcFS().ancestry(Process(os.getpid(), 1, b"")) is None
    assert ProcFS().ancestry(Process(2**22 + 1, 1, b"")) is None


FACTS = Facts(
    loginuid=1000,
    pid_ns=4026531836,
    mnt_ns=4026531841,
    cgroup=PathNames((b"system.slice", b"nginx.service"), whole=True),
    exe=PathNames((b"usr", b"bin", b"dig"), whole=True),
    cmdline=b"dig\0www.example.test\0",
)
TOLD = Identity(
    exe="/usr/bin/dig",
    cmdline=b"dig\0www.example.test\0",
    unit="nginx.service",
    cgroup="/system.slice/nginx.service",
    slice="system.slice",
    loginuid=1000,
    pid_ns=4026531836,
    mnt_ns=4026531841,
)
#: The same, where the kernel side had no room for all of it.
CUT = replace(
    FACTS,
    exe=PathNames((b"bin", b"dig"), whole=False),
    cgroup=PathNames((b"nginx.service",), whole=False),
    cmdline=b"x" * CMDLINE_SIZE,
)


def test_what_the_kernel_told_needs_no_proc(tmp_path: Path) -> None:
    assert procfs(tmp_path).identify(process(), FACTS) == TOLD


def test_what_runs_now_lends_nothing_to_what_ran_then(tmp_path: Path) -> None:
    make(tmp_path, cmdline=b"another\0", cgroup=b"0::/other.service\n", exe=b"/usr/bin/another")
    assert procfs(tmp_path).identify(process(), FACTS) == TOLD
    assert procfs(tmp_path).identify(process(), CUT) == replace(
        TOLD, exe=".../bin/dig", cgroup=".../nginx.service", unit=None, slice=None, cmdline=b"x" * CMDLINE_SIZE
    )


def test_a_command_line_that_was_not_read_is_not_that_of_a_later_program(tmp_path: Path) -> None:
    """Its page may have been in swap."""
    unread = replace(FACTS, cmdline=b"")
    make(tmp_path, cmdline=b"another\0", exe=b"/usr/bin/another")
    assert procfs(tmp_path).identify(process(), unread) == replace(TOLD, cmdline=None)
    (tmp_path / "4242/exe").unlink()
    make(tmp_path)
    assert procfs(tmp_path).identify(process(), unread) == replace(TOLD, from_procfs=frozenset({"cmdline"}))


def test_proc_completes_what_the_kernel_cut_off(tmp_path: Path) -> None:
    make(tmp_path, cmdline=b"x" * 1000)
    assert procfs(tmp_path).identify(process(), CUT) == replace(
        TOLD, cmdline=b"x" * 1000, from_procfs=frozenset({"exe", "cgroup", "cmdline"})
    )


def test_a_title_that_is_longer_than_the_arguments_were(tmp_path: Path) -> None:
    titled = replace(FACTS, cmdline=b"daemon: serving ada a")
    assert procfs(tmp_path).identify(process(), titled) == replace(TOLD, cmdline=b"daemon: serving ada a")
    make(tmp_path, cmdline=b"daemon: serving ada and bob\0")
    assert procfs(tmp_path).identify(process(), titled) == replace(
        TOLD, cmdline=b"daemon: serving ada and bob\0", from_procfs=frozenset({"cmdline"})
    )


def test_proc_tells_what_the_kernel_side_could_not(tmp_path: Path) -> None:
    make(tmp_path)
    nothing = Facts(None, 0, 0, PathNames((), whole=False), PathNames((), whole=False), b"")
    read = procfs(tmp_path).identify(process(), nothing)
    assert read == replace(
        TOLD, loginuid=None, pid_ns=None, mnt_ns=None, from_procfs=frozenset({"exe", "cgroup", "cmdline"})
    )
    make(tmp_path, stat=stat_line(start=START + 7), exe=None)
    assert procfs(tmp_path).identify(process(), nothing) == Identity()


def test_version_1_of_cgroups_is_read_from_proc(tmp_path: Path) -> None:
    """There the unified hierarchy has every process in its root."""
    make(tmp_path, cgroup=b"1:name=systemd:/system.slice/nginx.service\n0::/\n")
    legacy = replace(FACTS, cgroup=PathNames((), whole=True))
    assert procfs(tmp_path).identify(process(), legacy) == replace(TOLD, from_procfs=frozenset({"cgroup"}))


def test_a_kernel_thread_has_no_executable(tmp_path: Path) -> None:
    nothing = PathNames((), whole=False)
    facts = Facts(None, 4026531836, 4026531841, PathNames((b"system.slice",), whole=True), nothing, b"")
    assert procfs(tmp_path).identify(process(), facts).exe is None


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    odd = replace(FACTS, exe=PathNames((b"tmp", b"\xff\x1b[31m\n"), whole=True))
    exe = procfs(tmp_path).identify(process(), odd).exe
    assert exe is not None
    assert os.fsencode(exe) == b"/tmp/\xff\x1b[31m\n"
