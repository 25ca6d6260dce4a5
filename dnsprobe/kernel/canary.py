"""Canaries: queries with a random name that dnsprobe sends itself. A hook is proved if it reports them correctly.

They go over loopback, in a network namespace of their own that no other program can enter. If the kernel refuses such a
namespace, they go over the loopback of the host, to a port that dnsprobe holds. So no DNS server receives them, and no
other user can receive or block them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from dnsprobe.kernel.abi import TRANSPORTS, CanaryResult, Event, Result
from dnsprobe.kernel.hooks import PATHS

_LOOPBACK = {"4": (socket.AF_INET, "127.0.0.1"), "6": (socket.AF_INET6, "::1")}
_TYPES = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
_WAYS = {
    "udp": ("sendto", "connected"),
    "tcp": ("whole", "split"),
    "parts": ("cut-header", "cut-name"),
    "answers": ("answered", "answered-stream"),
    "closed": ("closed",),
    "unreachable": ("refused",),
}
#: Ways over TCP.
_STREAMS = ("whole", "split", "answered-stream")
#: What becomes of a canary that is sent in such a way. Answers have one of _RCODES, at random.
_RESULTS = {"closed": Result.CLOSED, "refused": Result.UNREACHABLE}
_RCODES = (Result.FORMERR, Result.SERVFAIL, Result.NXDOMAIN, Result.NOTIMP, Result.REFUSED)
_TYPE_A = 1
#: The first half of 127.0.0.1. On this port, a hook that reads part of an address as the port would be proved.
_MISLEADING_PORT = 0x7F00
#: How often a port is looked for that is free for all protocols and IP versions, and the first port otherwise.
_ATTEMPTS, _FIRST_PORT = 20, 1024
_SENDER = Path(__file__).with_name("canary_sender.py")
_SENDER_SECONDS = 20

#: Labels of :func:`canary_suffix`, root excluded.
SUFFIX_LABELS = 3


class CanaryPort:
    """The port of the canaries, the same number for IPv4 and IPv6, and none of ``watched``.

    It is held on the loopback of this network namespace until :meth:`close`, for the case that the sender of the
    canaries gets no namespace of its own: it is bound, so that no other user can bind it. For TCP, only a socket of the
    same user can listen on it. Datagrams that arrive are not read: when a buffer is full, the kernel drops the rest.

    ``paths`` are the paths over ``protocols`` that this host has: without IPv6 there is no udp6. ``held`` is False if
    other programs hold all ports. Then the canaries need a namespace of their own.
    """

    def __init__(self, watched: Sequence[int] = (), protocols: Sequence[str] = ("udp",)) -> None:
        self._protocols = protocols
        self._sockets: list[socket.socket] = []
        self.held = False
        for _ in range(_ATTEMPTS):
            self.port = 0
            self.paths: list[str] = []
            try:
                for version in _LOOPBACK:
                    for protocol in protocols:
                        self._bind(protocol, version)
            except OSError:
                self.close()  # the port that was free for IPv4 is taken for IPv6, or for TCP
                continue
            if self.port not in watched and self.port != _MISLEADING_PORT:
                self.held = True
                return
            self.close()  # queries to a watched port must be counted
        unusable = {*watched, _MISLEADING_PORT}
        self.port = secrets.choice([port for port in range(_FIRST_PORT, 1 << 16) if port not in unusable])
        self.paths = [protocol + version for version in _LOOPBACK if _has_family(version) for protocol in protocols]

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that hold the port for UDP. Answers are sent from there."""
        return [bound.fileno() for bound in self._sockets if bound.type == socket.SOCK_DGRAM]

    def _bind(self, protocol: str, version: str) -> None:
        family, address = _LOOPBACK[version]
        path = protocol + version
        if not _has_family(version):
            return
        bound = socket.socket(family, _TYPES[protocol])
        self._sockets.append(bound)
        if protocol == "tcp":
            # The sender listens on it as well. This option allows that to the same user, and to no other.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            bound.bind((address, self.port))
        except OSError:
            # IPv6 is off in this network namespace, but may be on in others.
            if version != "6" or not self.port or _has_address(family, address):
                raise
            self.paths.append(path)
            return
        self.port = bound.getsockname()[1]
        self.paths.append(path)

    def close(self) -> None:
        """Release the port."""
        for bound in self._sockets:
            bound.close()
        self._sockets = []


def _has_family(version: str) -> bool:
    """Return whether the kernel has an IP version. A process may have no descriptor left to find out: then it has."""
    if version == "6" and not Path("/proc/net/if_inet6").exists():
        return False
    try:
        socket.socket(_LOOPBACK[version][0], socket.SOCK_DGRAM).close()
    except OSError as error:
        return error.errno not in {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}
    return True


def _has_address(family: socket.AddressFamily, address: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as test:
        try:
            test.bind((address, 0))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Canary:
    """One canary: its path, how it is sent (one of ``_WAYS``), and its name in wire format.

    ``result`` is what becomes of it, None if that is not compared.
    """

    path: str
    way: str
    name: bytes
    result: Result | None = None

    @property
    def address(self) -> str:
        """The destination address."""
        return _LOOPBACK[self.path[-1]][1]

    @property
    def transport(self) -> str:
        """The protocol of its path."""
        return "tcp" if self.way in _STREAMS else "udp"

    @property
    def line(self) -> str:
        """What the sender is told, without the port: the message, and the answer to it or ``-``."""
        message = _message(self.name)
        is_answered = self.result is not None and self.way not in _RESULTS
        answer = _answer(message, self.result or 0).hex() if is_answered else "-"
        return f"{self.way} {self.address} {message.hex()} {answer}"


class Canaries:
    """One round of canaries, one for each path and way, sent by a child of this process.

    The child starts at once, but sends nothing before :meth:`release`. Raises OSError if it cannot be started.
    ``port`` is where the canaries go, ``suffix`` is the end of their names in wire format. ``streams`` are the paths of
    TCP whose queries are seen: of others, answers are not asked for.
    """

    def __init__(self, paths: Iterable[str], port: CanaryPort, suffix: bytes, streams: Collection[str] = PATHS) -> None:
        # The label of the round distinguishes its canaries from late ones of an earlier round.
        round_label = secrets.token_hex(8).encode()
        self._port = port.port
        self._canaries = [
            Canary(path, way, _label(f"{path}-{way}".encode()) + _label(round_label) + suffix, _result(path, way))
            for path in paths
            for way in _ways(path, {*streams} & {*port.paths})
        ]
        self._unsent: dict[Canary, str] = {}
        # -I -S: isolated from the environment, and starts in a third of the time.
        self._sender = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SENDER), *(["held", *map(str, port.descriptors)] if port.held else [])],
            pass_fds=port.descriptors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C at a terminal must not stop it: its canaries would count as lost
        )

    def release(self, paths: Collection[str] | None = None) -> None:
        """Make the child send the canaries of some paths, or of all."""
        if paths is not None:
            self._canaries = [canary for canary in self._canaries if canary.path in paths]
        lines = [f"{self._port} {canary.line}\n" for canary in self._canaries]
        assert self._sender.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # if the sender died, its canaries do not come back
            self._sender.stdin.write("".join(lines).encode())
            self._sender.stdin.flush()
            self._sender.stdin.close()

    def wait(self) -> None:
        """Wait until the child has sent. Its canaries have passed the hooks by then."""
        assert self._sender.stdout is not None
        try:
            self._sender.wait(_SENDER_SECONDS)
        except subprocess.TimeoutExpired:
            self._sender.kill()
            self._sender.wait()
        # A few lines, which fit into the pipe, so the child never blocks on writing them.
        problems = self._sender.stdout.read().decode("utf-8", "replace").splitlines()
        self._sender.stdout.close()
        # A sender that died has written fewer lines.
        died = [f"their sender died ({self._sender.returncode})"] * (len(self._canaries) - len(problems))
        self._unsent = dict(zip(self._canaries, [*problems, *died], strict=False))

    @property
    def unsent(self) -> set[str]:
        """The paths of canaries that could not be sent. What comes back says nothing about their hooks."""
        return {canary.path for canary, problem in self._unsent.items() if problem}

    def kill(self) -> None:
        """End the child, in any thread. :meth:`wait` returns soon, and what was not sent counts as such."""
        self._sender.kill()

    def dismiss(self) -> None:
        """End the child, whether it has sent or not."""
        if self._sender.poll() is None:
            self._sender.kill()
            self._sender.wait()
        for pipe in (self._sender.stdin, self._sender.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what a sender that died did not read is still in the file
                    pipe.close()

    def judge(self, reports: Sequence[Event | CanaryResult]) -> dict[str, str]:
        """Return the problem of each path, an empty text if the path is proved."""
        events = [report for report in reports if isinstance(report, Event)]
        results = [report for report in reports if isinstance(report, CanaryResult)]
        verdicts: dict[str, str] = {}
        for canary in self._canaries:
            of_canary = [event for event in events if event.name == canary.name]
            problem = self._problem(canary, of_canary)
            if canary.result is not None and not problem:
                problem = self._problem_of_result(canary, of_canary[0], results)
            if problem or canary.path not in verdicts:
                verdicts[canary.path] = verdicts.get(canary.path) or (f"{canary.way}: {problem}" if problem else "")
        return verdicts

    def _problem(self, canary: Canary, reports: Sequence[Event]) -> str:
        if not reports:
            unsent = self._unsent.get(canary)
            return f"the canary could not be sent: {unsent}" if unsent else "the hook did not report the canary"
        if len(reports) > 1:
            return f"the hook reported one canary {len(reports)} times"
        event = reports[0]
        chain = [process.tgid for process in event.chain.processes]
        expected = [self._sender.pid, os.getpid()]
        server = str(ip_address(event.server))
        facts = (
            ("port", event.port, self._port),
            ("server", server, canary.address),
            ("transport", TRANSPORTS[event.transport], canary.transport),
            ("type", event.qtype, _TYPE_A),
            ("process and parent", chain[:2], expected),
            ("uid", event.uid, os.getuid()),
        )
        return _differences(facts)

    def _problem_of_result(self, canary: Canary, event: Event, results: Sequence[CanaryResult]) -> str:
        """Return the problem of what became of a canary. ``event`` is the report of its query."""
        if unsent := self._unsent.get(canary):
            return unsent
        seen = [report for report in results if report.name_hash == event.name_hash]
        if len(seen) != 1:
            return f"the hook reported {len(seen)} results" if seen else "the hook did not report the result"
        sender = event.chain.processes[0]
        facts = (
            ("result", Result(seen[0].result).name, Result(canary.result or 0).name),
            ("process", (seen[0].tgid, seen[0].start_ns), (sender.tgid, sender.start_ns)),
        )
        return _differences(facts)


def _differences(facts: Iterable[tuple[str, object, object]]) -> str:
    """Return what is wrong: a fact has its name, what was seen, and what is right."""
    return "; ".join(f"{fact} is {seen}, not {right}" for fact, seen, right in facts if seen != right)


def _ways(path: str, streams: Collection[str]) -> list[str]:
    return [way for way in _WAYS[path[:-1]] if way != "answered-stream" or f"tcp{path[-1]}" in streams]


def _result(path: str, way: str) -> Result | None:
    return secrets.choice(_RCODES) if path.startswith("answers") else _RESULTS.get(way)


def _label(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _message(name: bytes) -> bytes:
    """Return a query for the A record of a name in wire format: RFC 1035, section 4.1."""
    return secrets.token_bytes(2) + bytes.fromhex("0000 0001 0000 0000 0000") + name + bytes([0, _TYPE_A, 0, 1])


def _answer(message: bytes, rcode: int) -> bytes:
    """Return an answer to a query, without records: RFC 1035, section 4.1.1."""
    return message[:2] + bytes([0x80, rcode]) + message[4:]


def canary_suffix() -> bytes:
    """Return a random name below ``invalid`` (RFC 6761, section 6.4), in wire format. It has SUFFIX_LABELS labels."""
    return _label(secrets.token_hex(12).encode()) + _label(b"dnsprobe") + _label(b"invalid") + b"\0"
