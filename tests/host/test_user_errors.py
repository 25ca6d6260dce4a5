"""Each mistake of a user causes one message with a hint, no traceback, and the right exit status."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import PATIENCE, PROGRAM, Service

from dnsprobe.kernel.hooks import kprobes_available
from dnsprobe.sinks.journal import journald_available

Start = Callable[..., Service]


def fails(command: Sequence[str], status: int, *texts: str) -> str:
    """Run a command that has to fail, and return its standard error."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("dnsprobe: ")
    for text in texts:
        assert text in done.stderr
    return done.stderr


def run(*arguments: str) -> list[str]:
    return [str(PROGRAM), "run", "--listen", "127.0.0.1:0", *arguments]


def configured(folder: Path, text: str) -> list[str]:
    path = folder / "dnsprobe.yaml"
    path.write_text(text)
    return ["--config", str(path)]


@pytest.fixture
def quiet(tmp_path: Path) -> list[str]:
    return configured(tmp_path, "domains: [watched.test]")


@pytest.mark.parametrize("command", ["run", "watch"])
def test_an_ordinary_user_is_told_to_be_root(command: str, quiet: list[str]) -> None:
    # Load the modules before dropping privileges: an ordinary user may not be able to read this folder.
    program = (
        "import os, sys, dnsprobe.commands.run, dnsprobe.commands.watch, dnsprobe.cli\n"
        "config = dnsprobe.cli._load\n"
        "dnsprobe.cli._load = lambda arguments: loaded\n"
        "import argparse\n"
        "loaded = config(argparse.Namespace(config=sys.argv[2]))\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(dnsprobe.cli.main([sys.argv[1]]))\n"
    )
    fails([sys.executable, "-c", program, command, quiet[1]], 1, "ordinary user", "hint: run it as root")


@pytest.mark.parametrize("limit", [16, 20, 30, 40, 50, 64, 100, 127])
@pytest.mark.parametrize("command", ["run", "watch", "doctor"])
def test_too_few_descriptors_are_an_error_that_says_how_many(command: str, limit: int, quiet: list[str]) -> None:
    limited = ["prlimit", f"--nofile={limit}:{limit}", str(PROGRAM), command, *quiet]
    fails(limited, 1, f"dnsprobe needs 128 file descriptors, and may open only {limit}", "LimitNOFILE=")


@pytest.mark.parametrize("limit", [16, 20, 30])
def test_commands_that_need_few_descriptors_have_no_limit(limit: int, quiet: list[str]) -> None:
    limited = ["prlimit", f"--nofile={limit}:{limit}", str(PROGRAM)]
    assert subprocess.run([*limited, "check", *quiet], timeout=PATIENCE, check=False).returncode == 0
    fails([*limited, "tree", "--url", "127.0.0.1:1"], 1, "connection refused")


def test_a_soft_limit_is_raised_to_what_the_hard_one_allows(start: Start) -> None:
    service = start("domains: [watched.test]", ["prlimit", "--nofile=30:200"])
    assert resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE) == (200, 200)
    assert "file descriptors for 72 of 128 connections" in service.err.read_text("utf-8")


@pytest.mark.parametrize("command", ["run", "watch", "doctor"])
def test_a_time_namespace_with_an_offset_is_an_error(command: str, quiet: list[str]) -> None:
    elsewhere = ["unshare", "--time", "--boottime", "100000", str(PROGRAM), command, *quiet]
    fails(elsewhere, 1, "in a time namespace whose clock since boot is +100000 s off", "nsenter")


def test_a_pipe_a_device_or_a_socket_as_configuration(tmp_path: Path) -> None:
    pipe, listener = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(listener))
        for path, what in ((pipe, "a FIFO"), (Path("/dev/zero"), "a device"), (listener, "a socket")):
            for command in (["check"], ["run"], ["watch"], ["tree"], ["doctor"]):
                fails(
                    [str(PROGRAM), *command, "--config", str(path)],
                    2,
                    f"{path}: cannot be read: not a file, but {what}",
                )
            fails(run("--web.config.file", str(path)), 2, f"{path}: cannot be read: not a file, but {what}")


def test_a_pipe_as_the_type_information_of_the_kernel(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "btf")
    fails(run(*configured(tmp_path, f"probe: {{btf: {tmp_path / 'btf'}}}")), 1, "not a file, but a FIFO")


def test_root_without_capabilities_cannot_make_maps(quiet: list[str]) -> None:
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    fails([*drop, *run(*quiet)], 1, "cannot make BPF maps: Operation not permitted", "CAP_BPF")


def test_missing_btf_is_an_error(tmp_path: Path) -> None:
    command = run(*configured(tmp_path, "domains: [watched.test]\nprobe: {btf: /nonexistent/btf}"))
    fails(command, 1, "/nonexistent/btf: No such file or directory", "CONFIG_DEBUG_INFO_BTF")


def test_a_file_that_is_not_btf_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "btf").write_bytes(b"something else entirely, long enough to be read")
    command = run(*configured(tmp_path, f"domains: [watched.test]\nprobe: {{btf: {tmp_path / 'btf'}}}"))
    fails(command, 1, "not BTF", "probe.btf")


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("domans: [a.test]", ["dnsprobe.yaml:1: domans", "did you mean"]),
        (
            "probe: {ports: [0, 70000]}\njournal: {repeat: soon}",
            [":1: probe.ports[0]", ":1: probe.ports[1]", ":2: journal"],
        ),
        ("domains: [a.test, A.test.]", [":1: domains[1]"]),
        ("domains: ['/(/']", [":1: domains[0]"]),
        ("domains: [", ["dnsprobe.yaml:"]),
        ("probe: {hook: udp_sendmsg}", [":1: probe.hook", "udp_send_skb"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "doctor", "watch"])
def test_a_bad_configuration_is_an_error_with_lines(
    tmp_path: Path, command: str, text: str, messages: list[str]
) -> None:
    fails([str(PROGRAM), command, *configured(tmp_path, text)], 2, *messages)


def test_closed_standard_output_is_an_error(quiet: list[str]) -> None:
    fails(["sh", "-c", 'exec "$@" >&-', "sh", str(PROGRAM), "watch", *quiet], 1, "standard output is closed")


def test_a_missing_configuration_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "not-there.yaml"
    fails(run("--config", str(missing)), 2, "not-there.yaml")


HIDE = """\
mkdir "$1/upper" "$1/work"
mount -t tmpfs none "$1/upper"
mkdir "$1/upper/u" "$1/upper/w"
mknod "$1/upper/u/bcc" c 0 0
mount -t overlay overlay -o "lowerdir=/usr/lib/python3/dist-packages,upperdir=$1/upper/u,workdir=$1/upper/w" \
	/usr/lib/python3/dist-packages
shift
exec "$@"
"""


def test_missing_bcc_is_an_error(tmp_path: Path, quiet: list[str]) -> None:
    # A whiteout of an overlay in a mount namespace hides the module from this process only.
    hide = ["unshare", "--mount", "sh", "-ec", HIDE, "sh", str(tmp_path)]
    fails([*hide, *run(*quiet)], 1, "bcc module is missing", "apt-get install python3-bpfcc")


def test_the_bcc_of_pypi_is_an_error(tmp_path: Path, quiet: list[str]) -> None:
    (tmp_path / "bcc.py").write_text('"""What PyPI calls bcc."""\n')
    command = ["env", f"PYTHONPATH={tmp_path}", *run(*quiet)]
    fails(command, 1, "is not the BPF Compiler Collection", "pip uninstall bcc")


def test_modules_in_the_current_folder_are_not_loaded(tmp_path: Path) -> None:
    for name in ("json", "socket", "ctypes", "bcc"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('loaded from a stranger')\n")
    done = subprocess.run(
        [str(PROGRAM), "doctor"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_hook_that_this_kernel_lacks_is_an_error(tmp_path: Path) -> None:
    if kprobes_available():
        pytest.skip("this kernel has kprobes; one without runs it")
    command = run(*configured(tmp_path, "domains: [watched.test]\nprobe: {hook: udp_send_skb}"))
    fails(command, 1, "; kprobe udp_send_skb: this kernel has no kprobes", "dnsprobe doctor")


def test_a_missing_journal_is_an_error(quiet: list[str]) -> None:
    if journald_available():
        pytest.skip("journald runs here; a host without it runs this")
    fails([*run(*quiet), "--log-target", "journal"], 1, "no journal here", "--log-target console")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["run", "--no-such"],
        ["run", "--listen", "localhost"],
        ["run", "--log-target", "file"],
        ["watch", "a..b"],
    ],
)
def test_wrong_usage_is_an_error_with_a_hint(arguments: list[str]) -> None:
    fails([str(PROGRAM), *arguments], 2, "hint: ")


def test_two_services_run_at_the_same_time(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    services = [Service("domains: [watched.test]", folder) for folder in (first, second)]
    assert [service.stop() for service in services] == [0, 0]
