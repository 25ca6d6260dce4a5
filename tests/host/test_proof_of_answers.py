"""The hooks of answers: their proof, what the daemon does without them, and their exchange when they fail.

dnsprobe counts queries in any case. While it does not see their answers, they are untracked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import ALL_PATHS, ANSWER_PATHS, HERE, IN_OWN_NET, PATIENCE, PROGRAM, UNPRIVILEGED, Service, until
from test_lifecycle import NO_NAMESPACES
from test_proof_under_attack import LINK_DETACH, LINK_GET_FD_BY_ID, bpf

from dnsprobe.kernel import libbpf

Start = Callable[..., Service]

pytestmark = pytest.mark.usefixtures("readable")

CONFIGURATION = "domains: [one.test]\nanswers: {timeout: 300ms}\nprobe: {verify_interval: 1s}"
#: Asks for a name that does not exist, over UDP, and reads the answers.
ASK = """\
import socket, sys
name = b"".join(bytes([len(label)]) + label.encode() for label in "www.one.test".split(".")) + bytes([0, 0, 1, 0, 1])
with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
    server.bind(("127.0.0.1", 53))
    client.connect(("127.0.0.1", 53))
    for number in range(int(sys.argv[1])):
        client.send(number.to_bytes(2, "big") + bytes.fromhex("0100 0001 0000 0000 0000") + name)
        message, asker = server.recvfrom(512)
        server.sendto(message[:2] + bytes.fromhex("8183") + message[4:], asker)
        client.recv(512)
"""


def ask(count: int) -> None:
    command = [*IN_OWN_NET, sys.executable, "-c", ASK, str(count)]
    subprocess.run(command, check=True, timeout=PATIENCE)


def results(service: Service) -> dict[str, int]:
    """Return what became of all queries. Their sum is the number of queries, at each scrape."""
    found = {
        **service.by("dnsprobe_responses_total", "rcode"),
        **service.by("dnsprobe_unanswered_total", "reason"),
        "untracked": sum(service.by("dnsprobe_queries_untracked_total", "transport").values()),
    }
    return {name: number for name, number in found.items() if number}


def links_of(service: Service, attach_type: int) -> list[int]:
    """Return the ids of links of a kind that a service holds at the root of the control groups."""
    links = set()
    for path in Path(f"/proc/{service.process.pid}/fdinfo").iterdir():
        with suppress(OSError):
            fields = dict(line.split(":", 1) for line in path.read_text("utf-8").splitlines() if ":" in line)
            if fields.get("link_type", "").strip() == "cgroup" and int(fields["attach_type"]) == attach_type:
                links.add(int(fields["link_id"]))
    return sorted(links)


def proved(service: Service) -> dict[str, int]:
    return service.by("dnsprobe_path_verified", "path")


@pytest.mark.parametrize("prefix", [[], UNPRIVILEGED, NO_NAMESPACES], ids=["root", "service", "no_namespaces"])
def test_answers_are_proved_for_both_versions_of_ip(start: Start, prefix: list[str]) -> None:
    service = start(CONFIGURATION, prefix)
    assert proved(service) == dict.fromkeys((*ALL_PATHS, *ANSWER_PATHS), 1)
    assert "answers4 at cgroup ingress, answers6 at cgroup ingress" in service.err.read_text("utf-8")
    hooks = {labels["path"]: labels for labels, _ in service.samples("dnsprobe_hook_info")}
    assert (hooks["answers6"]["hook"], hooks["answers6"]["symbol"]) == ("cgroup_skb", "ingress")
    ask(7)
    assert results(service) == {"NXDOMAIN": 7}
    # Canaries are no answers to anybody. Other programs of the host may get answers that cannot be read.
    unmatched = service.by("dnsprobe_responses_unmatched_total", "reason")
    assert {reason for reason, number in unmatched.items() if number} <= {"unreadable"}
    assert service.stop() == 0
    if prefix is not NO_NAMESPACES:  # there, the port is held, so that no error comes back
        assert "is not proved" not in service.err.read_text("utf-8")


def test_a_hook_of_answers_that_is_detached_is_replaced_without_a_restart(start: Start) -> None:
    service = start(CONFIGURATION)
    ask(3)
    (link,) = links_of(service, libbpf.CGROUP_INET_INGRESS)
    bpf(LINK_DETACH, bpf(LINK_GET_FD_BY_ID, link))
    # Nobody has noticed yet.
    ask(5)
    service.wait_for("answers4 is not proved any more: answered: ")
    service.wait_for("answers4 is proved again, at cgroup ingress")
    until(lambda: proved(service) == dict.fromkeys((*ALL_PATHS, *ANSWER_PATHS), 1))
    ask(11)
    until(lambda: sum(service.by("dnsprobe_queries_waiting", "transport").values()) == 0)
    found = results(service)
    assert found.pop("NXDOMAIN") == 14
    # The socket was closed before the timeout, or the round of canaries was first.
    assert sum(found.values()) == 5
    assert found.keys() <= {"closed", "timeout", "untracked"}
    assert service.by("dnsprobe_queries_total", "transport") == {"udp": 19}
    assert len(links_of(service, libbpf.CGROUP_INET_INGRESS)) == 1
    assert service.get("/-/ready") == "ready\n"
    assert service.stop() == 0


def test_the_hook_of_socket_ends_is_replaced_as_well(start: Start) -> None:
    service = start(CONFIGURATION)
    (link,) = links_of(service, libbpf.CGROUP_INET_SOCK_RELEASE)
    bpf(LINK_DETACH, bpf(LINK_GET_FD_BY_ID, link))
    service.wait_for("closed4 is not proved any more: closed: the hook did not report the result")
    service.wait_for("closed4 is proved again, at cgroup sock_release")
    assert len(links_of(service, libbpf.CGROUP_INET_SOCK_RELEASE)) == 1
    # The hook of answers was not touched.
    assert "answers4 is not proved" not in service.err.read_text("utf-8")


@contextmanager
def blocked_ingress() -> Iterator[subprocess.Popen[bytes]]:
    """Attach a program to ingress that allows no other one there."""
    command = [sys.executable, str(HERE / "ingress_blocker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as blocker:
        try:
            assert blocker.stdout is not None
            assert blocker.stdout.readline() == b"attached\n"
            yield blocker
        finally:
            blocker.communicate(timeout=PATIENCE)


def test_without_the_hook_queries_are_counted_and_the_reason_is_said(start: Start, tmp_path: Path) -> None:
    refused = "cannot attach to the root of the control groups, where another program may allow no others"
    with blocked_ingress():
        service = start(CONFIGURATION)
        ask(7)
        assert service.by("dnsprobe_queries_total", "transport") == {"udp": 7}
        assert results(service) == {"untracked": 7}
        assert sum(service.by("dnsprobe_queries_waiting", "transport").values()) == 0
        assert proved(service) == {**dict.fromkeys(ALL_PATHS, 1), **dict.fromkeys(ANSWER_PATHS, 0)}
        ready = service.get("/-/ready")
        assert ready.startswith("ready; answers4: queries are counted, but not what became of them: cgroup ingress: ")
        log = service.err.read_text("utf-8")
        (line,) = [line for line in log.splitlines() if refused in line]
        assert "answers6: queries are counted, but not what became of them" in line
        config = tmp_path / "doctor.yaml"
        config.write_text(CONFIGURATION, "utf-8")
        command = [str(PROGRAM), "doctor", "--config", str(config)]
        done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=True)
        paths = {line["path"]: line for line in map(json.loads, done.stdout.splitlines()) if "path" in line}
        assert {path: paths[path]["proved"] for path in (*ALL_PATHS, *ANSWER_PATHS)} == proved(service)
        assert refused in paths["answers4"]["tried"][0]
    # The hook is tried again, as soon as nobody is in its place.
    service.wait_for("answers4 is proved again, at cgroup ingress")
    until(lambda: service.get("/-/ready") == "ready\n")
    ask(5)
    assert results(service) == {"untracked": 7, "NXDOMAIN": 5}
    assert service.stop() == 0
