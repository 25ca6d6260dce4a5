"""Shared by the tests in a guest: the installed service, as an operator uses it through systemd, journald and HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scraped import add_up, samples_of

HERE = Path(__file__).parent
OUT = Path("/mnt/out")
CONFIGURATION = Path("/etc/dnsprobe/dnsprobe.yaml")
#: Programs that the service has compiled.
CACHE = Path("/var/cache/dnsprobe")
TREE = HERE.parent
SENDERS = TREE / "senders"
#: The types of the BPF programs of dnsprobe, as bpftool calls them.
HOOK_TYPES = {"kprobe", "raw_tracepoint", "tracing", "cgroup_skb", "cgroup_sock"}
#: The tracepoint that recent kernels have for writes to TCP sockets.
TRACEPOINT = b"\0btf_trace_tcp_sendmsg_locked\0" in Path("/sys/kernel/btf/vmlinux").read_bytes()
#: In the section `probe` of all tests that watch port 5353 or start dnsprobe with a hook that they choose: programs are
#: compiled for a set of ports, which takes an emulated processor ten seconds.
PORTS = "ports: [53, 5353]"
#: Seconds. No step takes as long on an emulated processor, even on a busy host; a test that waits as long has failed.
PATIENCE = 900.0


def run(*command: str | Path, check: bool = True, **more: Any) -> str:
    """Run a command to its end, and return its standard output and error."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}")
    return done.stdout


def status(*command: str | Path) -> int:
    return subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, check=False).returncode


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:.0f} s"
        # On an emulated processor, checking costs more than waiting.
        time.sleep(1)


class Unit:
    """A unit of systemd."""

    def __init__(self, name: str) -> None:
        self.name = name

    def show(self, what: str) -> str:
        return run("systemctl", "show", "--value", "-p", what, self.name).strip()

    @property
    def state(self) -> str:
        """Return the state in the form of ``systemctl status``: ``active (running)``."""
        shown = run("systemctl", "show", "-p", "ActiveState,SubState", self.name)
        found = dict(line.split("=", 1) for line in shown.splitlines())
        return f"{found['ActiveState']} ({found['SubState']})"


class Service(Unit):
    """dnsprobe.service."""

    def __init__(self) -> None:
        super().__init__("dnsprobe.service")

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    def signal(self, number: int) -> int:
        """Send a signal to the process, and return its pid."""
        pid = self.pid
        assert pid > 0, "the service does not run"  # 0 stands for all processes of this test
        os.kill(pid, number)
        return pid

    def configure(self, text: str) -> None:
        """Write the configuration. A reader sees either the old file or the new one."""
        new = CONFIGURATION.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.rename(CONFIGURATION)

    def restart(self, configuration: str) -> None:
        self.configure(configuration)
        run("systemctl", "restart", self.name)

    def reload(self, configuration: str) -> None:
        """Reload, and wait until the new rules are in force: the unit reloads with kill(1), which does not wait."""
        before = self.value("dnsprobe_config_last_reload_success_timestamp_seconds")
        self.configure(configuration)
        run("systemctl", "reload", self.name)
        until(
            lambda: self.value("dnsprobe_config_last_reload_success_timestamp_seconds") != before, "the rules in force"
        )

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:10059{path}", timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    def samples(self, metric: str) -> list[tuple[dict[str, str], float]]:
        return samples_of(metric, self.get("/metrics"))

    def value(self, metric: str, **labels: str) -> float:
        """Return the only value of a metric with these labels."""
        (value,) = [value for found, value in self.samples(metric) if labels.items() <= found.items()]
        return value

    def by(self, label: str, metric: str = "dnsprobe_queries_total") -> dict[str, int]:
        """Return the values of a metric, added up by a label."""
        return add_up(self.samples(metric), label)

    @property
    def missed_runs(self) -> int:
        """Return how many runs of programs the kernel has skipped: at most as many queries are not counted.

        On a preemptible kernel, such as Linux 7, two processes that send can interrupt each other in the middle of a
        run. Then the kernel skips the run of the second one.
        """
        return self.by("reason", "dnsprobe_events_lost_total")["run_missed"]

    def programs(self) -> list[str]:
        """Return the names of all BPF programs in the kernel that are hooks."""
        listed = json.loads(run("bpftool", "--json", "prog", "show") or "[]")
        # systemd has programs at control groups, too.
        return [
            program["name"]
            for program in listed
            if program.get("type") in HOOK_TYPES and not program.get("name", "").startswith("sd_")
        ]


def entries(*matches: str) -> list[dict[str, Any]]:
    """Return the journal entries of dnsprobe from this boot that match, oldest first."""
    text = run("journalctl", "-b", "-t", "dnsprobe", "-o", "json", "--all", *matches)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def send(name: str, count: int, family: str = "4") -> None:
    """Send queries for a name to loopback, from one process called ``send``."""
    run(SENDERS / "send", "sendto", family, name, str(count))


def ancestors() -> list[tuple[int, str]]:
    """Return pid and comm of this process and its ancestors, from ``/proc``."""
    chain, pid = [], os.getpid()
    while pid:
        text = Path(f"/proc/{pid}/stat").read_text()
        chain.append((pid, text[text.index("(") + 1 : text.rindex(")")]))
        pid = int(text[text.rindex(")") + 2 :].split()[1])
    return chain


def own_unit() -> str:
    """Return the unit of this process."""
    return Path("/proc/self/cgroup").read_text().strip().rpartition("/")[2]


def query(name: str) -> bytes:
    """Return a query for the A record of a name (RFC 1035, section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return bytes.fromhex("0001 0100 0001 0000 0000 0000") + labels + bytes([0, 0, 1, 0, 1])


@pytest.fixture(scope="session")
def service() -> Service:
    return Service()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache for dnsprobe that a test starts itself, with the programs that the service has compiled by now."""
    return shutil.copytree(CACHE, tmp_path_factory.mktemp("compiled") / "cache")


class Server:
    """A DNS server on 127.0.0.1 and ::1 that answers with these addresses, and counts what it received."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, HERE / "dns_server.py"], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def close(self) -> Counter[tuple[str, int]]:
        """End it, and return the number of queries for each name and type."""
        self._process.terminate()
        assert self._process.stdout is not None
        asked = json.loads(self._process.stdout.read())
        self._process.wait()
        return Counter({(name, qtype): count for name, qtype, count in asked})


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    if server._process.poll() is None:
        server._process.kill()


def keep(name: str, value: object) -> None:
    """Save a result for docs/kernels.md."""
    (OUT / f"{name}.json").write_text(json.dumps(value, indent=1), encoding="utf-8")


def kernel() -> str:
    return os.uname().release
