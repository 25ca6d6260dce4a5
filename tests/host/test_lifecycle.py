"""The service from start to stop: ready, reload, repeated proof, and the last events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from conftest import ALL_PATHS, HERE, IN_OWN_NET, PATIENCE, PROGRAM, Program, Service, until

from dnsprobe.kernel import libbpf

Start = Callable[..., Service]
NO_NAMESPACES = [sys.executable, str(HERE / "no_namespaces.py")]
Scene = Callable[..., Any]


def attached(pid: str = "[0-9]*") -> set[str]:
    """Return the ids of links to what sockets send that a process holds; by default, that any process holds."""
    links = set()
    for path in Path("/proc").glob(f"{pid}/fdinfo/*"):
        with suppress(OSError):
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            if (
                fields.get("link_type", "").strip() == "cgroup"
                and int(fields["attach_type"]) == libbpf.CGROUP_INET_EGRESS
            ):
                links.add(fields["link_id"].strip())
    return links


def children(pid: int, command: str = "") -> list[int]:
    """Return the children of the first thread of a process, those with a word in their command lines."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
        with suppress(OSError):  # it has ended
            if command.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def test_a_ready_service_serves_all_pages(start: Start) -> None:
    service = start("domains: [watched.test]")
    assert service.get("/-/healthy")
    assert service.get("/-/ready")
    assert "dnsprobe" in service.get("/")
    with pytest.raises(HTTPError, match="404"):
        service.get("/metric")
    assert service.by("dnsprobe_path_verified", "path") == dict.fromkeys(ALL_PATHS, 1)
    assert {labels["path"] for labels, _ in service.samples("dnsprobe_hook_info")} == set(ALL_PATHS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_writes_all_events_and_detaches(start: Start, scene: Scene, number: signal.Signals) -> None:
    service = start("domains: [oneshot.test]")
    links = attached(str(service.process.pid))
    assert links
    scene("oneshots", 300, 16)
    assert service.stop(number) == 0
    assert len(service.entries()) == 300
    assert "stopped: 300 queries counted, 300 events, 0 lost" in service.err.read_text("utf-8")
    assert not links & attached()


def test_a_kill_leaves_nothing_attached(start: Start) -> None:
    service = start("domains: [watched.test]")
    links = attached(str(service.process.pid))
    assert links
    service.stop(signal.SIGKILL)
    assert not links & attached()


def test_a_kill_during_compilation_leaves_no_child(tmp_path: Path) -> None:
    program = Program(["watch", "watched.test"], tmp_path, ["env", "--unset=CACHE_DIRECTORY"])
    until(lambda: children(program.process.pid, "loader_keeper") != [], "the keeper")
    (keeper,) = children(program.process.pid, "loader_keeper")
    until(lambda: children(keeper) != [], "the loader")
    (loader,) = children(keeper)
    program.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (keeper, loader)), "the end of both")


def test_totals_stay_when_their_processes_end(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]")
    trees = []
    for _ in range(3):
        scene("send", "www.watched.test", 101)
        trees.append(service.by("dnsprobe_queries_total", "tree"))
    (total,) = trees[-1].values()
    assert total == 303
    # The processes have ended, so a sweep removes their counters from the kernel. The totals stay.
    time.sleep(11)
    assert service.by("dnsprobe_queries_total", "tree") == trees[-1]


def test_a_sender_in_a_time_namespace_is_counted_once(start: Start, in_namespace: list[str]) -> None:
    service = start("domains: [watched.test]")
    elsewhere = [*in_namespace, "unshare", "--time", "--boottime", "100000", "sh", "-c"]
    # The shell asks, and lives on while the daemon looks for ended processes.
    script = f"{sys.executable} {HERE / 'scenes.py'} send www.watched.test 101; read line"
    with subprocess.Popen([*elsewhere, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())
        counted = service.by("dnsprobe_queries_total", "tree")
        assert sum(counted.values()) == 101
        process.communicate(b"\n", timeout=PATIENCE)
    assert service.by("dnsprobe_queries_total", "tree") == counted


def test_a_reload_under_load_loses_no_count(start: Start, scene: Scene) -> None:
    service = start("domains: [kept.test, removed.test]")
    sent: list[int] = []
    stop = threading.Event()

    def keep_sending() -> None:
        while not stop.is_set():
            sent.append(scene("send", "www.kept.test", 5003)["sent"])

    sender = threading.Thread(target=keep_sending)
    sender.start()
    scene("send", "www.removed.test", 7)
    scene("send", "www.added.test", 11)
    for round_number in range(4):
        domains = ["kept.test", "added.test", *(f"extra{number}.test" for number in range(round_number))]
        service.configuration.write_text(f"domains: [{', '.join(domains)}]")
        service.process.send_signal(signal.SIGHUP)
        service.wait_for(f"reloaded: {len(domains)} rules")
    scene("send", "www.removed.test", 13)
    scene("send", "www.added.test", 17)
    stop.set()
    sender.join()
    assert service.by("dnsprobe_queries_total", "domain") == {
        "kept.test": sum(sent),
        "removed.test": 7,
        "added.test": 17,
    }
    time.sleep(3)
    assert service.by("dnsprobe_queries_total", "domain")["removed.test"] == 7


def test_a_bad_reload_leaves_the_old_rules_in_force(start: Start, scene: Scene) -> None:
    service = start("domains: [watched.test]")
    first = service.value("dnsprobe_config_last_reload_success_timestamp_seconds")
    assert service.value("dnsprobe_config_last_reload_successful") == 1
    service.configuration.write_text("domains: [a..b]\nprobe: {ports: [none]}")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("reload failed, the old rules stay in force")
    assert ":2: probe.ports[0]" in service.err.read_text("utf-8")
    assert service.value("dnsprobe_config_last_reload_successful") == 0
    assert service.value("dnsprobe_config_last_reload_success_timestamp_seconds") == first
    scene("send", "www.watched.test", 101)
    assert service.by("dnsprobe_queries_total", "domain") == {"watched.test": 101}
    service.configuration.write_text("domains: [watched.test, other.test]")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("reloaded: 2 rules")
    assert service.value("dnsprobe_config_last_reload_successful") == 1
    assert service.value("dnsprobe_config_last_reload_success_timestamp_seconds") > first


def test_canaries_are_repeated_and_never_shown(start: Start) -> None:
    service = start("domains: [invalid]\nprobe: {verify_interval: 1s}\njournal: {repeat: 0}")
    time.sleep(4)
    assert service.by("dnsprobe_path_verified", "path") == dict.fromkeys(ALL_PATHS, 1)
    assert service.samples("dnsprobe_queries_total") == []
    assert service.value("dnsprobe_events_total") == 0
    assert service.entries() == []


def test_a_path_that_fails_later_is_not_proved_any_more(start: Start) -> None:
    """Where no namespace can be made, the canaries go over the loopback of the host."""
    prefix = [*IN_OWN_NET, *NO_NAMESPACES]
    service = start("domains: [watched.test]\nprobe: {verify_interval: 1s}", prefix)
    enter = ["nsenter", "--net", f"--target={service.process.pid}", "ip"]
    subprocess.run([*enter, "address", "flush", "dev", "lo"], check=True)
    service.wait_for("udp4 is not proved any more: sendto: the canary could not be sent")
    subprocess.run([*enter, "address", "add", "127.0.0.1/8", "dev", "lo"], check=True)
    subprocess.run([*enter, "address", "add", "::1/128", "dev", "lo"], check=True)
    for path in ALL_PATHS:
        service.wait_for(f"{path} is proved again")
    assert service.err.read_text("utf-8").count("not proved any more") == len(ALL_PATHS)


def test_the_proof_needs_no_address_of_the_host(start: Start) -> None:
    service = start("domains: [watched.test]\nprobe: {verify_interval: 1s}", IN_OWN_NET)
    enter = ["nsenter", "--net", f"--target={service.process.pid}", "ip"]
    subprocess.run([*enter, "address", "flush", "dev", "lo"], check=True)
    time.sleep(3)
    assert "not proved" not in service.err.read_text("utf-8")


NO_IPV6 = [
    "unshare",
    "--net",
    "sh",
    "-ec",
    'sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip link set lo up; exec "$@"',
    "sh",
]


def test_ipv6_of_other_namespaces_is_seen_without_ipv6_here(start: Start, scene: Scene) -> None:
    service = start("domains: [ipv6.test, ipv6connected.test]", NO_IPV6)
    scene("clients")
    assert "udp6 at" in service.err.read_text("utf-8")
    assert service.stop() == 0
    assert "stopped: 42 queries counted" in service.err.read_text("utf-8")


def test_a_missing_notify_socket_is_ignored(start: Start) -> None:
    service = start("domains: [watched.test]", ["env", "NOTIFY_SOCKET=/nonexistent/socket"])
    assert service.stop() == 0


def test_a_proof_without_free_descriptors_fails_until_there_are_some(start: Start) -> None:
    service = start("domains: [watched.test]\nprobe: {verify_interval: 1s}")
    limit = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
    subprocess.run(["prlimit", f"--pid={service.process.pid}", f"--nofile={limit}:4096"], check=True)
    service.wait_for("udp4 is not proved any more: the canary could not be sent: Too many open files")
    subprocess.run(["prlimit", f"--pid={service.process.pid}", "--nofile=4096:4096"], check=True)
    service.wait_for("udp4 is proved again")


@contextmanager
def killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Kill a process that a failed test leaves, which would wait for ever."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_log_that_nobody_reads_does_not_stop_the_service(tmp_path: Path) -> None:
    configuration = tmp_path / "dnsprobe.yaml"
    configuration.write_text("domains: [watched.test]")
    reader, writer = os.pipe()
    command = [
        str(PROGRAM),
        "run",
        "--config",
        str(configuration),
        "--listen",
        "127.0.0.1:0",
        "--log-target",
        "console",
    ]
    with os.fdopen(reader, "rb", 0) as log, killed_at_the_end(subprocess.Popen(command, stderr=writer)) as process:
        ready = next(line for line in log if b"ready after" in line).decode()
        url = ready.split(" s: ")[1].split(",")[0]
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        os.close(writer)

        def dropped() -> int:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                text = answer.read().decode()
            return int(float(text.split("\ndnsprobe_log_dropped_total ")[1].split("\n")[0]))

        assert dropped() == 0
        until = time.monotonic() + PATIENCE
        while not dropped():
            assert time.monotonic() < until
            # A reload that fails writes a line.
            configuration.write_text("domains: [")
            process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
        # Nobody reads the last lines either.
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_stop_during_a_flood_succeeds(start: Start, in_namespace: list[str], flood: Path) -> None:
    for _ in range(4):
        service = start("domains: [flood.test]")
        command = [*in_namespace, str(flood), "127.0.0.1", "53", "flood.test", "200000", "1", "4"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sender:
            until(lambda service=service: len(service.entries()) > 0, "an entry")  # type: ignore[misc]
            assert service.stop() == 0
            sender.wait(PATIENCE)


def test_a_service_without_a_proof_does_not_start(tmp_path: Path) -> None:
    # Loopback is down, and there can be no other one: canaries cannot be sent.
    configuration = tmp_path / "dnsprobe.yaml"
    configuration.write_text("domains: [watched.test]")
    arguments = ["run", "--config", str(configuration), "--listen", "0.0.0.0:0"]
    command = ["unshare", "--net", *NO_NAMESPACES, str(PROGRAM), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "no hook could be verified" in done.stderr
    assert "the canary could not be sent" in done.stderr
    assert "ready" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_time_from_exec_to_ready_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = []
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        began = time.monotonic()
        service = Service("domains: [watched.test]", folder)
        times.append(time.monotonic() - began)
        assert service.stop() == 0
    with capsys.disabled():
        print(f"\n  exec to READY, including the proofs: {', '.join(f'{seconds:.2f}' for seconds in times)} s")
