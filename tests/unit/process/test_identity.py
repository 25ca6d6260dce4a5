"""Identities: facts of the kernel side, completed from a made-up /proc."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from proc_files import START, make, process, stat_line

from dnsprobe.kernel.abi import CMDLINE_SIZE, Facts, PathNames
from dnsprobe.model import Identity
from dnsprobe.process.identity import identify
from dnsprobe.process.procfs import ProcFS


def identity(root: Path, facts: Facts | None) -> Identity:
    return identify(process(), facts, ProcFS(str(root)).identity, 4026531837)


FACTS = Facts(
    loginuid=1000,
    pid_ns=4026531836,
    mnt_ns=4026531841,
    user_ns=4026531837,
    exe_user_ns=4026531837,
    cgroup=PathNames((b"system.slice", b"nginx.service"), whole=True),
    exe=PathNames((b"usr", b"bin", b"dig"), whole=True),
    cmdline=b"dig\0www.example.test\0",
)
KNOWN = Identity(
    exe="/usr/bin/dig",
    cmdline=b"dig\0www.example.test\0",
    unit="nginx.service",
    cgroup="/system.slice/nginx.service",
    slice="system.slice",
    loginuid=1000,
    pid_ns=4026531836,
    mnt_ns=4026531841,
)
#: The same process, if the kernel side has no room for the whole of its facts.
CUT = replace(
    FACTS,
    exe=PathNames((b"bin", b"dig"), whole=False),
    cgroup=PathNames((b"nginx.service",), whole=False),
    cmdline=b"x" * CMDLINE_SIZE,
)


def test_whole_facts_need_no_proc(tmp_path: Path) -> None:
    assert identity(tmp_path, FACTS) == KNOWN


def test_a_later_program_adds_nothing(tmp_path: Path) -> None:
    make(tmp_path, cmdline=b"another\0", cgroup=b"0::/other.service\n", exe=b"/usr/bin/another")
    assert identity(tmp_path, FACTS) == KNOWN
    assert identity(tmp_path, CUT) == replace(
        KNOWN, exe=".../bin/dig", cgroup=".../nginx.service", unit=None, slice=None, cmdline=b"x" * CMDLINE_SIZE
    )


def test_a_later_program_adds_no_command_line(tmp_path: Path) -> None:
    """The kernel side could not read the first one: its page was in swap."""
    unread = replace(FACTS, cmdline=b"")
    make(tmp_path, cmdline=b"another\0", exe=b"/usr/bin/another")
    assert identity(tmp_path, unread) == replace(KNOWN, cmdline=None)
    (tmp_path / "4242/exe").unlink()
    make(tmp_path)
    assert identity(tmp_path, unread) == replace(KNOWN, from_procfs=frozenset({"cmdline"}))


def test_proc_completes_values_that_the_kernel_side_cut_off(tmp_path: Path) -> None:
    make(tmp_path, cmdline=b"x" * 1000)
    assert identity(tmp_path, CUT) == replace(
        KNOWN, cmdline=b"x" * 1000, from_procfs=frozenset({"exe", "cgroup", "cmdline"})
    )


def test_a_title_that_is_longer_than_the_arguments(tmp_path: Path) -> None:
    titled = replace(FACTS, cmdline=b"daemon: serving ada a")
    assert identity(tmp_path, titled) == replace(KNOWN, cmdline=b"daemon: serving ada a")
    make(tmp_path, cmdline=b"daemon: serving ada and bob\0")
    assert identity(tmp_path, titled) == replace(
        KNOWN, cmdline=b"daemon: serving ada and bob\0", from_procfs=frozenset({"cmdline"})
    )


def test_without_facts_everything_comes_from_proc(tmp_path: Path) -> None:
    make(tmp_path)
    assert identity(tmp_path, None) == replace(
        KNOWN, loginuid=None, pid_ns=None, mnt_ns=None, from_procfs=frozenset({"exe", "cgroup", "cmdline"})
    )
    make(tmp_path, stat=stat_line(start=START + 7), exe=None)
    assert identity(tmp_path, None) == Identity()


def test_version_1_of_cgroups_is_read_from_proc(tmp_path: Path) -> None:
    """On such a host, every process is in the root of the unified hierarchy."""
    make(tmp_path, cgroup=b"1:name=systemd:/system.slice/nginx.service\n0::/\n")
    legacy = replace(FACTS, cgroup=PathNames((), whole=True))
    assert identity(tmp_path, legacy) == replace(KNOWN, from_procfs=frozenset({"cgroup"}))


def test_a_kernel_thread_has_no_executable(tmp_path: Path) -> None:
    nothing = PathNames((), whole=False)
    facts = Facts(None, 4026531836, 4026531841, 0, 0, PathNames((b"system.slice",), whole=True), nothing, b"")
    assert identity(tmp_path, facts).exe is None


@pytest.mark.parametrize(
    ("own", "of_exe", "shown"),
    [
        (4026531837, 4026531837, None),
        (4026532000, 4026532000, 4026532000),
        # A program from the mounts of another namespace (/proc/PID/root), by a process that is not in it.
        (4026531837, 4026532000, 4026532000),
        (4026532001, 4026531837, 4026532001),
        (0, 0, None),
        (0, 4026532000, 4026532000),
    ],
)
def test_a_user_namespace_whose_maker_could_choose_the_executable(
    tmp_path: Path, own: int, of_exe: int, shown: int | None
) -> None:
    facts = replace(FACTS, user_ns=own, exe_user_ns=of_exe)
    assert identity(tmp_path, facts) == replace(KNOWN, user_ns=shown)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    odd = replace(FACTS, exe=PathNames((b"tmp", b"\xff\x1b[31m\n"), whole=True))
    exe = identity(tmp_path, odd).exe
    assert exe is not None
    assert os.fsencode(exe) == b"/tmp/\xff\x1b[31m\n"
