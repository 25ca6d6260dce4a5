"""Hostile comms, names and arguments: every output escapes them, shows them truly, and counts them exactly."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Program, Service
from reference import message, wire

from dnsprobe.kernel.abi import COMM_SIZE
from dnsprobe.kernel.canary import CanaryPort
from dnsprobe.names.wire import to_text
from dnsprobe.text import printable

#: Arguments of prctl(2). The kernel keeps the first 15 octets.
COMMS = [
    b'a"b\\c',
    b"a\nb",
    b"a\r\nb 7",
    b"\x1b[2J\x1b[31mred",
    b"\x1b]0;title\x07",
    b"\xff\xfe\x80\xc3",
    b"semi;colon",
    b";",
    b"\\",
    b"\\x41",
    b"\\\\",
    "\u202egnp.exe\u2066".encode(),
    "\u200b\u2028\u2029".encode(),
    "\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9".encode(),
    "\ud800".encode("utf-8", "surrogatepass"),
    b'"} 99\n# EOF',
    b"$(id)`id`",
    b"<b>&amp;",
    b"\x00hidden",
    b"",
    b" ",
    b"a\tb\x7f\x08",
    b"(other)",
    b") R 1 1 1 (",
]

#: The labels of each name. The first two names have every value of an octet.
NAMES = [
    [bytes(range(start, start + 63)) for start in (0, 63, 126)],
    [bytes(range(start, min(start + 63, 256))) for start in (189, 252)],
    [b'a"b', b"\\", b"x\ny", b"\x1b[2J"],
    [b"a.b", b";", b"=", b" "],
    ["\u202eexe".encode(), b"\xff\xfe", b"\x00"],
    [b'{"a": 1}', b"</script><b>", b"%s%n"],
    [],
]

ARGUMENT = b"\x1b[2J'\"\n\\ \xff;\xe2\x80\xae"

PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]

# The sender waits at its end, so that /proc still has it.
SENDER = """
import ctypes, socket, sys
comm, port, count = bytes.fromhex(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
payloads = [bytes.fromhex(line) for line in iter(sys.stdin.readline, "end\\n")]
if ctypes.CDLL(None).prctl(15, comm, 0, 0, 0):
    sys.exit("prctl failed")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for index in range(count):
        sender.sendto(payloads[index % len(payloads)], ("127.0.0.1", port))
print("sent", flush=True)
sys.stdin.read()
"""

RULE_NAME = 'a "quoted" \\n name\\ {é}'


@dataclass(frozen=True)
class Observed:
    """What the senders did (``pids`` has comm and number of queries), and every output about it."""

    pids: dict[int, tuple[bytes, int]]
    port: int
    service: Service
    metrics: bytes
    watch: Program
    tree: Program

    @property
    def queries(self) -> int:
        return sum(count for _, count in self.pids.values())


def seen_comm(comm: bytes) -> bytes:
    return comm.split(b"\0", 1)[0][: COMM_SIZE - 1]


def in_tree(comm: bytes) -> str:
    """Return a comm as a tree shows it: never empty, and never one of dnsprobe's own marks."""
    text = printable(seen_comm(comm), also=";") or r"\x00"
    return f"\\x{ord(text[0]):02x}{text[1:]}" if text in {"(other)", "(unknown)", "..."} else text


def asked_names(count: int) -> Counter[str]:
    return Counter(to_text(wire(NAMES[index % len(NAMES)]).lower()) for index in range(count))


def count_lines(path: Path, text: str) -> int:
    return sum(text in line for line in path.read_text("utf-8", "backslashreplace").split("\n"))


def wait_for_lines(path: Path, text: str, lines: int) -> None:
    until = time.monotonic() + PATIENCE
    while count_lines(path, text) < lines and time.monotonic() < until:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """Run hostile senders while the service and both forms of watch run, then stop the latter two."""
    folder = tmp_path_factory.mktemp("hostile")
    port = CanaryPort()
    configuration = (
        f"domains: [{{pattern: ., name: {json.dumps(RULE_NAME, ensure_ascii=False)}}}]\n"
        f"probe: {{ports: [{port.port}]}}\njournal: {{repeat: 0}}\n"
    )
    programs: list[Program] = []
    senders: list[subprocess.Popen[bytes]] = []
    folders = [folder / name for name in ("service", "watch", "tree")]
    for each in folders:
        each.mkdir()
    try:
        service = Service(configuration, folders[0])
        programs.append(service)
        for each, options in zip(folders[1:], (["--json"], []), strict=True):
            programs.append(Program(["watch", *options, "--config", str(service.configuration)], each))
        _, watch, tree = programs
        for program in (watch, tree):
            program.wait_for("watching ")
        payloads = "".join(f"{message(wire(labels)).hex()}\n" for labels in NAMES)
        pids = {}
        for index, comm in enumerate(COMMS):
            count = PRIMES[index % len(PRIMES)]
            arguments: list[str | bytes] = [comm.hex(), str(port.port), str(count), ARGUMENT]
            command = [sys.executable, "-I", "-S", "-c", SENDER, *arguments]
            sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            senders.append(sender)
            pids[sender.pid] = (comm, count)
            assert sender.stdin
            assert sender.stdout
            sender.stdin.write(f"{payloads}end\n".encode())
            sender.stdin.flush()
            assert sender.stdout.readline() == b"sent\n"
        queries = sum(count for _, count in pids.values())
        metrics = service.get("/metrics").encode()
        wait_for_lines(service.err, " asked for ", queries)
        wait_for_lines(watch.out, '"qname"', queries)
        wait_for_lines(tree.out, "127.0.0.1#", queries)
        assert (watch.stop(), tree.stop()) == (0, 0)
        yield Observed(pids, port.port, service, metrics, watch, tree)
    finally:
        for sender in senders:
            sender.communicate(timeout=PATIENCE)
        for program in programs:
            program.kill()
        port.close()


def test_different_comms_are_shown_differently() -> None:
    shown = [in_tree(comm) for comm in COMMS]
    # These two are empty in the kernel.
    same = {in_tree(b"\x00hidden")}
    assert {text for text, times in Counter(shown).items() if times > 1} == same


def test_promtool_accepts_the_metrics(observed: Observed) -> None:
    places = [str(Path(sys.executable).parents[1] / "prometheus" / "usr" / "bin"), os.environ.get("PATH", os.defpath)]
    tool = shutil.which("promtool", path=os.pathsep.join(places))
    if tool is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    result = subprocess.run([tool, "check", "metrics"], input=observed.metrics, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_metrics_have_exact_counts_and_escaped_labels(observed: Observed) -> None:
    expected: Counter[str] = Counter()
    for comm, count in observed.pids.values():
        expected[in_tree(comm)] += count
    samples = [(labels, int(value)) for labels, value in observed.service.samples("dnsprobe_queries_total")]
    counted: Counter[str] = Counter()
    for labels, value in samples:
        assert all(text.isprintable() for text in labels.values())
        assert (labels["domain"], labels["qtype"], labels["transport"]) == (RULE_NAME, "A", "udp")
        # The process is the last element of the tree, whatever it contains.
        assert labels["tree"].split(";")[-1] == labels["process"]
        assert labels["tree"].count(";") == samples[0][0]["tree"].count(";")
        counted[labels["process"]] += value
    assert counted == expected


def test_log_lines_are_printable_and_complete(observed: Observed) -> None:
    text = observed.service.err.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    for pid, (comm, count) in observed.pids.items():
        begin = f"{printable(seen_comm(comm))}[{pid}] asked for "
        own = [line for line in lines if line.startswith(begin)]
        assert len(own) == count, comm
        assert all(line.endswith(f" {shlex.quote(printable(ARGUMENT))}") for line in own)
        asked = Counter(line.removeprefix(begin).split(" (A, udp)")[0] for line in own)
        assert asked == asked_names(count)
    # And nothing else: no name has forged a line.
    assert sum(" asked for " in line for line in lines) == observed.queries
    assert len(lines) == observed.queries + sum(line.startswith("dnsprobe: ") for line in lines)


def test_json_lines_have_the_true_values(observed: Observed) -> None:
    data = observed.watch.out.read_bytes()
    assert data.isascii()
    lines = data.decode("ascii").removesuffix("\n").split("\n")
    assert len(lines) == observed.queries
    seen: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        assert line.isprintable()
        query = json.loads(line)
        assert isinstance(query, dict)
        seen.setdefault(query["pid"], []).append(query)
    assert seen.keys() == observed.pids.keys()
    for pid, queries in seen.items():
        comm, count = observed.pids[pid]
        assert len(queries) == count
        assert Counter(query["qname"] for query in queries) == asked_names(count)
        for query in queries:
            assert query["comm"] == printable(seen_comm(comm))
            assert query["tree"].split(";")[-1] == in_tree(comm)
            assert (query["domain"], query["qtype"], query["transport"]) == (RULE_NAME, "A", "udp")
            assert (query["server"], query["port"]) == ("127.0.0.1", observed.port)
            assert (query["uid"], query["gid"]) == (os.getuid(), os.getgid())
            assert query["ancestors"][0]["pid"] == os.getpid()
            assert query["complete"] is True
            assert query["repeats"] == 0
            assert query["cmdline"][-4:] == [comm.hex(), str(observed.port), str(count), printable(ARGUMENT)]
            assert query["exe"] == printable(str(Path(sys.executable).resolve()))
    assert f"{observed.queries} queries" in observed.watch.err.read_text("utf-8")


def test_trees_on_the_terminal_are_printable(observed: Observed) -> None:
    lines = observed.tree.out.read_bytes().decode("utf-8").split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert sum(f"127.0.0.1#{observed.port}" in line for line in lines) == observed.queries
    for pid, (comm, count) in observed.pids.items():
        assert sum(f"{printable(seen_comm(comm))}[{pid}]" in line for line in lines) == count


def test_the_page_escapes_names(observed: Observed) -> None:
    page = observed.service.get("/")
    assert "<b>&amp;" not in page
    assert "</script><b>" not in page
    assert "\x1b" not in page


@pytest.fixture
def reserved_port() -> Iterator[CanaryPort]:
    with contextlib.closing(CanaryPort()) as port:
        yield port


def test_each_hostile_parent_is_one_element_of_the_tree(
    reserved_port: CanaryPort, tmp_path: Path, start: Callable[..., Service], start_watch: Callable[..., Program]
) -> None:
    port = reserved_port
    service = start(f"domains: [.]\nprobe: {{ports: [{port.port}]}}")
    watch = start_watch("--json", "--config", str(service.configuration))
    chain = [comm for comm in COMMS if seen_comm(comm)][:12]

    child = os.fork()
    if child == 0:
        try:
            descend(chain, port.port)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    expected = ";".join(in_tree(comm) for comm in chain)
    ((labels, value),) = service.samples("dnsprobe_queries_total")
    assert value == 1
    assert labels["tree"].endswith(f";{expected}")
    wait_for_lines(watch.out, '"qname"', 1)
    assert watch.stop() == 0
    (query,) = [json.loads(line) for line in watch.out.read_text("ascii").splitlines()]
    assert query["tree"] == labels["tree"]
    assert [parent["comm"] for parent in query["ancestors"]][: len(chain) - 1] == [
        printable(seen_comm(comm)) for comm in reversed(chain[:-1])
    ]


def descend(chain: list[bytes], port: int) -> None:
    """Take the first comm, and fork a child that takes the next one, and so on. The last process sends a query."""
    ctypes.CDLL(None).prctl(15, chain[0], 0, 0, 0)  # PR_SET_NAME
    if len(chain) > 1:
        child = os.fork()
        if child == 0:
            try:
                descend(chain[1:], port)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(message(wire([b"www", b"test"])), ("127.0.0.1", port))
