"""``dnsprobe tree`` and a real daemon: exact numbers in every format, on a terminal and in a pipe."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from askers import PLANS
from conftest import HERE, PATIENCE, PROGRAM, Program, Service, free_ports
from test_responses import RCODES, REASONS

from dnsprobe.text import printable

Start = Callable[..., Service]
Scene = Callable[..., Any]

#: Names of processes, and the number of queries of each: prime numbers.
LOAD = {b"crawler": 31, b"mailer": 7, b"\x1b[31mred": 3, b"a;b": 5, "漢字".encode(): 11, b"\xff\xfe": 2}


def run(*arguments: str, prefix: list[str] | None = None, status: int = 0, **environment: str) -> str:
    """Run ``dnsprobe tree`` and return its output."""
    command = [*(prefix or []), str(PROGRAM), "tree", *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (status, ""), done
    return done.stdout


def failure(*arguments: str, status: int = 1, **environment: str) -> str:
    """Run ``dnsprobe tree``, which has to fail, and return its error."""
    command = [str(PROGRAM), "tree", *arguments]
    done = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout) == (status, "")
    return done.stderr


@pytest.fixture
def loaded(start: Start, in_namespace: list[str]) -> tuple[Service, dict[str, int]]:
    """Return a daemon that has counted queries, and their number for each tree."""
    service = start("domains: [one.test, two.test]")
    sent: dict[str, int] = {}
    load = json.dumps([[comm.decode("utf-8", "surrogateescape"), count] for comm, count in LOAD.items()])
    done = subprocess.run(
        [*in_namespace, sys.executable, str(HERE / "scenes.py"), "called", load],
        stdout=subprocess.PIPE,
        check=True,
        timeout=PATIENCE,
    )
    above = [printable(comm, also=";") for pid, comm in reversed(json.loads(done.stdout)["lineage"]) if pid != 1]
    for comm, count in LOAD.items():
        sent[";".join([*above, printable(comm, also=";")])] = count
    return service, sent


def stacks(nodes: list[dict[str, Any]], above: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    for node in nodes:
        path = (*above, node["name"])
        assert node["total"] == node["own"] + sum(child["total"] for child in node["children"])
        if node["own"]:
            yield ";".join(path), node["own"]
        yield from stacks(node["children"], path)


def test_every_format_adds_up_to_the_queries_that_were_sent(loaded: tuple[Service, dict[str, int]]) -> None:
    service, sent = loaded
    # Each tree sent its queries for one.test, and one query for two.test.
    both = {tree: count + 1 for tree, count in sent.items()}
    folded = run("--url", service.url, "--folded")
    assert dict(line.rsplit(" ", 1) for line in folded.splitlines()) == {
        tree: str(count) for tree, count in both.items()
    }
    counts = json.loads(run("--url", f"http://{service.url}/", "--json"))
    assert dict(stacks(counts["queries"]["children"])) == both
    assert counts["queries"]["total"] == sum(both.values())
    assert counts["encrypted_connections"] == {"total": 0, "children": []}
    counts = json.loads(run("--url", service.url, "--json", "--domain", "one.test"))
    assert dict(stacks(counts["queries"]["children"])) == sent
    tree = run("--url", service.url)
    assert tree.startswith(f"{sum(both.values())} queries by {len(both)} process trees, dnsprobe ")
    own = {
        comm.rpartition(";")[2]: int(number)
        for number, comm in re.findall(r"^ *\d+ +(\d+) +\S+% +\S+ +.*─ (.+)$", tree, re.M)
    }
    assert own == {comm.rpartition(";")[2]: count for comm, count in both.items()}
    by_domain = json.loads(run("--url", service.url, "--json", "--by", "domain"))["queries"]["children"]
    assert {node["name"]: node["total"] for node in by_domain} == {
        "one.test": sum(sent.values()),
        "two.test": len(sent),
    }


def test_results_add_up_to_the_queries_that_were_sent(start: Start, in_namespace: list[str]) -> None:
    service = start("domains: [answers.test, silent.test]\nanswers: {timeout: 1s}")
    command = [*in_namespace, sys.executable, str(HERE / "askers.py")]
    expected: dict[str, Counter[str]] = {name: Counter() for name in PLANS}
    for name, plan in PLANS.items():
        for kind, _, times in plan:
            expected[name][result_of(kind)] += times
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as askers:
        assert askers.stdin is not None
        assert askers.stdout is not None
        askers.stdin.write(b"\n")
        askers.stdin.flush()
        for _ in PLANS:
            askers.stdout.readline()
        until = time.monotonic() + PATIENCE
        while (queries := json.loads(run("--url", service.url, "--json"))["queries"])["without_result"]:
            assert queries["waiting"] == queries["without_result"]
            assert queries["total"] == sum(queries["results"].values()) + queries["without_result"]
            assert time.monotonic() < until
        askers.stdin.write(b"\n\n")
        askers.stdin.close()
        askers.stdout.read()
    for name, results in expected.items():
        (node,) = named(queries, name)
        assert node["results"] == results
        failures = results - Counter({good: results[good] for good in ("NOERROR", "NODATA", "NXDOMAIN")})
        assert node["failed"] == failures.total()
    by_rcode = json.loads(run("--url", service.url, "--json", "--by", "rcode"))["queries"]
    assert {node["name"]: node["total"] for node in by_rcode["children"]} == sum(expected.values(), Counter())
    for name, results in expected.items():
        assert {
            of_result["name"]: node["own"] for of_result in by_rcode["children"] for node in named(of_result, name)
        } == results
    assert re.search(r"^ *total  own +share  failed  negative", run("--url", service.url), re.MULTILINE)


def result_of(kind: str) -> str:
    kind = kind.partition("-")[0]
    return RCODES.get(kind) or REASONS[kind]


def named(node: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the nodes below a node that have a name."""
    return [each for child in node["children"] for each in ([child] if child["name"] == name else named(child, name))]


def test_a_daemon_that_does_not_track_answers(start: Start, in_namespace: list[str]) -> None:
    service = start("domains: [one.test]\nanswers: off")
    subprocess.run([*in_namespace, sys.executable, str(HERE / "scenes.py"), "send", "one.test", "3"], check=True)
    assert "does not track answers" in failure("--url", service.url, "--by", "rcode")
    assert run("--url", service.url).startswith("3 queries by 1 process tree, dnsprobe ")
    assert "failed" not in run("--url", service.url)
    assert "failed" not in run("--url", service.url, "--json")


def test_the_default_address_is_that_of_the_configuration(
    loaded: tuple[Service, dict[str, int]], tmp_path: Path
) -> None:
    service, _ = loaded
    configuration = tmp_path / "tree.yaml"
    port = service.url.rpartition(":")[2]
    configuration.write_text(f"metrics: {{listen: '0.0.0.0:{port}'}}")
    assert run("--config", str(configuration), "--folded") == run("--url", service.url, "--folded")


def test_the_command_needs_no_privilege(loaded: tuple[Service, dict[str, int]]) -> None:
    service, sent = loaded
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
    # This user cannot read a clone in the home of root.
    if subprocess.run([*nobody, str(PROGRAM), "--version"], capture_output=True, check=False).returncode:
        pytest.skip("another user cannot read this clone: put it below a folder that others may enter")
    text = run("--url", service.url, "--folded", prefix=nobody)
    assert len(text.splitlines()) == len(sent)


def test_no_kernel_module_is_imported(loaded: tuple[Service, dict[str, int]]) -> None:
    service, _ = loaded
    code = "import sys; from dnsprobe.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, "tree", "--url", service.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    loaded_modules = set(done.stderr.split())
    assert "dnsprobe.commands.tree" in loaded_modules
    assert {name for name in loaded_modules if re.match(r"bcc|tornado|dnsprobe\.kernel", name)} == set()


def test_a_pipe_and_a_dumb_terminal_get_plain_text(loaded: tuple[Service, dict[str, int]]) -> None:
    service, _ = loaded
    text = run("--url", service.url, COLUMNS="20")
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) > 20
    assert r"\x1b[31mred" in text
    assert run("--url", service.url, LC_ALL="C").isascii()
    assert "\x1b" not in on_terminal("tree", "--url", service.url, TERM="dumb")
    assert "\x1b" not in on_terminal("tree", "--url", service.url, NO_COLOR="1")
    assert "\x1b[1m" in on_terminal("tree", "--url", service.url)


def test_a_pipe_that_is_closed_early_causes_no_traceback(loaded: tuple[Service, dict[str, int]]) -> None:
    service, _ = loaded
    for options in (["--watch", "0.1"], ["--watch", "0.1", "--json"]):
        command = [str(PROGRAM), "tree", "--url", service.url, *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(PATIENCE) == 1


class Terminal:
    """A program on a new terminal, and all of its output."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None, program: Path = PROGRAM) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            # The size of the terminal has to come from the terminal, not from the environment.
            kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.execve(program, [str(program), *arguments], kept | {"TERM": "xterm-256color"} | dict(environment or {}))
        self.text = ""
        self.read_from = 0
        # A read may end in the middle of a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read(self) -> bool:
        """Read more output; return False at its end."""
        assert select.select([self.fd], [], [], PATIENCE)[0], self.text
        try:
            octets = os.read(self.fd, 65536)
        except OSError:  # EIO: the program has ended
            return False
        self.text += self._decoder.decode(octets)
        return bool(octets)

    def wait_for(self, text: str) -> None:
        """Read until ``text`` appears after the previous text."""
        until = time.monotonic() + PATIENCE
        while (at := self.text.find(text, self.read_from)) < 0:
            assert time.monotonic() < until, self.text[-4000:]
            assert self.read(), self.text[-4000:]
        self.read_from = at + len(text)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def end(self) -> int:
        """Read to the end and return the exit status."""
        until = time.monotonic() + PATIENCE
        while self.read():
            assert time.monotonic() < until, self.text[-4000:]
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def on_terminal(*arguments: str, **environment: str) -> str:
    terminal = Terminal(*arguments, environment=environment)
    assert terminal.end() == 0
    return terminal.text


def test_watch_redraws_in_place(loaded: tuple[Service, dict[str, int]], scene: Scene) -> None:
    service, sent = loaded
    terminal = Terminal("tree", "--url", service.url, "--watch", "0.2")
    terminal.wait_for("\x1b[?1049h")
    terminal.wait_for("\x1b[H65 queries by 6 process trees")
    terminal.wait_for("1/s")
    scene("send", "www.one.test", 1009)
    terminal.wait_for("\x1b[H1,074 queries by 7 process trees")
    assert "\x1b[2J" not in terminal.text
    terminal.resize(60, 9)
    terminal.wait_for("more lines")
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.end() == 0
    assert terminal.text.count("\x1b[?1049l") == 1
    # Only the last tree stays on the screen.
    last = terminal.text.rpartition("\x1b[?1049l")[2]
    assert last.startswith("1,074 queries")
    assert "Traceback" not in terminal.text
    assert sum(sent.values()) + len(sent) + 1009 == 1074


def test_ctrl_z_returns_the_screen_to_the_shell(loaded: tuple[Service, dict[str, int]]) -> None:
    service, _ = loaded
    script = f"{PROGRAM} tree --url {service.url} --watch 0.2; echo a shell again; fg"
    terminal = Terminal("-mc", script, program=Path("/bin/bash"))
    for _ in range(2):
        terminal.wait_for("\x1b[?1049h")
        terminal.wait_for("\x1b[H65 queries by 6 process trees")
        if "a shell again" in terminal.text:
            break
        os.write(terminal.fd, b"\x1a")  # Ctrl-Z
        terminal.wait_for("\x1b[?1049l")
        terminal.wait_for("a shell again")
    os.write(terminal.fd, b"\x03")
    assert terminal.end() == 0
    assert terminal.text.count("\x1b[?1049h") == terminal.text.count("\x1b[?1049l") == 2
    assert "Traceback" not in terminal.text


def test_watch_in_a_pipe_prints_each_tree(loaded: tuple[Service, dict[str, int]], scene: Scene, tmp_path: Path) -> None:
    service, _ = loaded
    program = Program(["tree", "--url", service.url, "--watch", "0.2", "--json"], tmp_path)
    program.wait_for("per_second", program.out)
    scene("send", "www.one.test", 1009)
    program.wait_for('"total": 1074', program.out)
    # The program waits for a daemon that has stopped.
    assert service.stop() == 0
    program.wait_for("connection refused, still trying")
    assert program.process.poll() is None
    assert program.stop(signal.SIGINT) == 0
    counts = [json.loads(line) for line in program.out.read_text("utf-8").splitlines()]
    grown: Counter[int] = Counter(document["queries"]["total"] for document in counts)
    assert set(grown) <= set(range(65, 1075))
    assert max(document["queries"].get("per_second", 0) for document in counts) > 0
    assert "Traceback" not in program.err.read_text("utf-8")


def test_no_daemon_is_an_error() -> None:
    (port,) = free_ports(1)
    error = failure("--url", f"127.0.0.1:{port}")
    assert error == (
        f"dnsprobe: no dnsprobe at 127.0.0.1:{port}: connection refused\n"
        "  hint: check that it runs: systemctl status dnsprobe; if it listens elsewhere, use --url\n"
    )


def test_encrypted_connections_have_a_tree_of_their_own(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]")
    scene("streams", "www.watched.test")
    counts = json.loads(run("--url", service.url, "--json"))
    assert (counts["queries"]["total"], counts["encrypted_connections"]["total"]) == (1, 1)
    assert "connections of DNS over TLS" in run("--url", service.url)
    assert "connections of DNS over TLS" not in run("--url", service.url, "--domain", "watched.test")


def test_queries_above_the_limit_come_last(start: Start, scene: Scene) -> None:
    service = start("domains: [oneshot.test]\nmetrics: {max_series: 16}")
    scene("oneshots", 101, 8)
    counts = json.loads(run("--url", service.url, "--json"))["queries"]
    assert counts["total"] == 101
    assert (counts["children"][-1]["name"], counts["children"][-1]["own"]) == ("(other)", 101 - 14)
    text = run("--url", service.url)
    assert "(other): trees counted together, above the limit on series (metrics.max_series)" in text
