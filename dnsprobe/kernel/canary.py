"""The proof that a hook works: queries of our own with a random name, which have to come back through it.

They go over loopback to a port of their own, where a socket of ours takes them in: no DNS server is bothered, and
nothing else on the host is sent there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from dnsprobe.kernel.abi import TRANSPORTS, Event

_LOOPBACK = {"4": (socket.AF_INET, "127.0.0.1"), "6": (socket.AF_INET6, "::1")}
_TYPES = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
_WAYS = {"udp": ("sendto", "connected"), "tcp": ("whole", "split")}
_TYPE_A = 1
#: The first half of 127.0.0.1: a hook that takes an address for the port must not be proved by chance.
_MISLEADING_PORT = 0x7F00
_SENDER = Path(__file__).with_name("canary_sender.py")
_SENDER_SECONDS = 20


class CanaryPort:
    """A port on loopback that is ours for as long as this lives: one number for IPv4 and IPv6, none of ``watched``.

    What arrives is never read: the sockets keep what fits, and the kernel throws the rest away.

    ``paths`` are the paths that this host has, of those over ``protocols``: without IPv6 there is no udp6 to prove.
    """

    def __init__(self, watched: Sequence[int] = (), protocols: Sequence[str] = ("udp",)) -> None:
        self._protocols = protocols
        self._sockets: list[socket.socket] = []
        self._listeners: list[socket.socket] = []
        for _ in range(20):
            self.port = 0
            self.paths: list[str] = []
            try:
                for version in _LOOPBACK:
                    for protocol in protocols:
                        self._bind(protocol, version)
            except OSError:
                self.close()  # taken by another in the other family
                continue
            if self.port not in watched and self.port != _MISLEADING_PORT:
                return
            self.close()  # queries to it have to be counted
        raise OSError("found no port that is free for both IPv4 and IPv6")

    def _bind(self, protocol: str, version: str) -> None:
        family, address = _LOOPBACK[version]
        path = protocol + version
        try:
            taker = socket.socket(family, _TYPES[protocol])
        except OSError:
            return
        self._sockets.append(taker)
        try:
            taker.bind((address, self.port))
        except OSError:
            if version == "6" and not Path("/proc/net/if_inet6").exists():
                return
            # IPv6 is off here, but not in each namespace of the host: the sender goes to one of its own.
            if version != "6" or not self.port or _has_address(family, address):
                raise
            self.paths.append(path)
            return
        if protocol == "tcp":
            taker.listen()
            taker.setblocking(False)
            self._listeners.append(taker)
        self.port = taker.getsockname()[1]
        self.paths.append(path)

    def dismiss(self) -> None:
        """End the connections that canaries made: only so many can wait."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

    def close(self) -> None:
        """Give the port back."""
        for taker in self._sockets:
            taker.close()
        self._sockets, self._listeners = [], []


def _has_address(family: socket.AddressFamily, address: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as test:
        try:
            test.bind((address, 0))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Canary:
    """One canary: the path that it takes, the way that it is sent, its name in wire format."""

    path: str
    way: str
    name: bytes

    @property
    def address(self) -> str:
        """Where it is sent to."""
        return _LOOPBACK[self.path[-1]][1]


class Canaries:
    """One round: a canary for each path and way, sent by a child of this process."""

    def __init__(self, paths: Iterable[str], port: int, suffix: bytes) -> None:
        # A label of its own for each round keeps late ones of an earlier round apart.
        round_label = secrets.token_hex(8).encode()
        self._port = port
        self._canaries = [
            Canary(path, way, _label(f"{path}-{way}".encode()) + _label(round_label) + suffix)
            for path in paths
            for way in _WAYS[path[:-1]]
        ]
        self._unsent: dict[Canary, str] = {}
        # -I -S: nothing of the environment, and a third of the start time.
        self._sender = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SENDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C at a terminal must not look like a canary that got lost
        )

    def release(self, paths: Collection[str] | None = None) -> None:
        """Have the child send, down some of the paths or all."""
        if paths is not None:
            self._canaries = [canary for canary in self._canaries if canary.path in paths]
        lines = [
            f"{canary.way} {canary.address} {self._port} {_message(canary.name).hex()}\n" for canary in self._canaries
        ]
        assert self._sender.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a sender that died is seen by what does not come back
            self._sender.stdin.write("".join(lines).encode())
            self._sender.stdin.flush()
            self._sender.stdin.close()

    def wait(self) -> None:
        """Return when the child has sent; what it sent has then passed the hooks."""
        assert self._sender.stdout is not None
        try:
            self._sender.wait(_SENDER_SECONDS)
        except subprocess.TimeoutExpired:
            self._sender.kill()
            self._sender.wait()
        # A few lines: they fit the pipe, so the child never waits for us to read them.
        problems = self._sender.stdout.read().decode("utf-8", "replace").splitlines()
        self._sender.stdout.close()
        self._unsent = dict(zip(self._canaries, problems, strict=False))

    def dismiss(self) -> None:
        """End the child, whether it was released or not."""
        if self._sender.poll() is None:
            self._sender.kill()
            self._sender.wait()
        for pipe in (self._sender.stdin, self._sender.stdout):
            if pipe is not None:
                pipe.close()

    def judge(self, events: Sequence[Event]) -> dict[str, str]:
        """Return what is wrong with each path, an empty text if it is proved."""
        verdicts: dict[str, str] = {}
        for canary in self._canaries:
            back = [event for event in events if event.name == canary.name]
            problem = self._problem(canary, back)
            if problem or canary.path not in verdicts:
                verdicts[canary.path] = verdicts.get(canary.path) or (f"{canary.way}: {problem}" if problem else "")
        return verdicts

    def _problem(self, canary: Canary, back: Sequence[Event]) -> str:
        if not back:
            unsent = self._unsent.get(canary)
            return f"the canary could not be sent: {unsent}" if unsent else "the canary did not come back"
        if len(back) > 1:
            return f"one canary came back {len(back)} times"
        event = back[0]
        chain = [process.tgid for process in event.chain.processes]
        expected = [self._sender.pid, os.getpid()]
        server = str(ip_address(event.server))
        facts = (
            ("port", event.port, self._port),
            ("server", server, canary.address),
            ("transport", TRANSPORTS[event.transport], canary.path[:-1]),
            ("type", event.qtype, _TYPE_A),
            ("process and parent", chain[:2], expected),
            ("uid", event.uid, os.getuid()),
        )
        return "; ".join(f"{what} is {seen}, not {right}" for what, seen, right in facts if seen != right)


def _label(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _message(name: bytes) -> bytes:
    """Return a query for the A record of a name in wire format: RFC 1035, section 4.1."""
    return secrets.token_bytes(2) + bytes.fromhex("0000 0001 0000 0000 0000") + name + bytes([0, _TYPE_A, 0, 1])


def canary_suffix() -> bytes:
    """Return a random name below ``invalid`` (RFC 6761, section 6.4), in wire format."""
    return _label(secrets.token_hex(12).encode()) + _label(b"dnsprobe") + _label(b"invalid") + b"\0"
