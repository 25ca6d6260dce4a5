"""Ask real resolvers in thousands of odd messages: whatever they answer, the kernel side must have counted.

Usage, as root: .venv/bin/python tests/fuzz/resolvers.py [MESSAGES [SEED]]

Sends MESSAGES (20000) odd and mutated queries over UDP, and a quarter of that over TCP, to unbound and to dnsmasq, in
network namespaces of their own. Each that gets an answer, with any code but FORMERR and NOTIMP, must have caused an
event of the programs: a query or an unread message. So a response, which has no event over UDP, must not be answered
there. Each name in an event of a query that was answered must also be in the log of the resolver, unless the log
cannot have it.

Prints the seed, and how many messages had which answer and which event. At a difference, it prints the message, and
ends with status 1.
"""

from __future__ import annotations

import os
import random
import re
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "host"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vm/guest"))

from odd_messages import Messages
from real_resolvers import ADDRESSES, OTHER, RESOLVERS, Resolver, Zone
from test_kernel_parser import ALL_NAMES
from ways_out.place import sender_to
from ways_to_hide import framed, read_answers

from dnsprobe.kernel.abi import Kind
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions

_ZONE = Zone("fuzz.test", {"www": "192.0.2.1"})
_AT_ONCE = 50
_NOT_READ = {1: "FORMERR", 4: "NOTIMP"}
_RCODES = {0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED", **_NOT_READ}


@contextmanager
def _running() -> Iterator[Probe]:
    """Attach a probe that watches port 53, by one rule for all names, with an event for each query."""
    sizes = Sizes(ring=1 << 20, processes=64, counters=65536, names=1, recent=1)
    probe = Probe(ProbeOptions([53]), sizes, repeat_ns=0)
    try:
        probe.set_rules([ALL_NAMES])
        probe.start()
        yield probe
    finally:
        probe.close()
        probe.release()


@dataclass(frozen=True)
class _Seen:
    """What the programs made of a message: the kind of event, and the name of a query in wire format."""

    kind: str = "none"
    name: bytes = b""
    qclass: int = 0

    def text(self) -> str | None:
        """Return the name as resolvers log it, None if they do not log it as it is."""
        labels, at = [], 0
        while at < len(self.name) and (length := self.name[at]):
            labels.append(self.name[at + 1 : at + 1 + length])
            at += 1 + length
        plain = all(re.fullmatch(rb"[a-z0-9_-]+", label) for label in labels)
        # unbound cuts the longest names. dnsmasq does not log other classes than IN.
        logged = labels and plain and len(self.name) < 240 and self.qclass == 1
        return b".".join(labels).decode() if logged else None


def _own_event(probe: Probe) -> _Seen:
    """Return what this process has caused since the last call: an event at most."""
    seen = []
    while more := probe.maps.events.read():
        seen += [event for event in more if event.chain.processes[0].tgid == os.getpid()]
    if not seen:
        return _Seen()
    return _Seen("+".join(Kind(event.kind).name for event in seen), seen[0].name, seen[0].qclass)


def _name(answer: bytes) -> str:
    """Return the name of the response code."""
    code = answer[3] & 15
    return _RCODES.get(code, str(code))


def _ask_over_udp(probe: Probe, sender: socket.socket, messages: Sequence[bytes]) -> Iterator[tuple[bytes, str, _Seen]]:
    """Send messages; yield each with the code of its answer and its event."""
    events = []
    _own_event(probe)
    for number, message in enumerate(messages, 1):
        # On loopback, a packet has passed the hook when the call returns.
        sender.send(number.to_bytes(2, "big") + message[2:])
        events.append(_own_event(probe))
    sender.send(OTHER)
    answers: dict[int, str] = {}
    while (answer := sender.recv(65535))[:2] != OTHER[:2]:
        answers[int.from_bytes(answer[:2], "big")] = _name(answer)
    for number, (message, event) in enumerate(zip(messages, events, strict=True), 1):
        yield message, answers.get(number, "no answer"), event


def _ask_over_tcp(probe: Probe, address: str, messages: Sequence[bytes]) -> Iterator[tuple[bytes, str, _Seen]]:
    """As :func:`_ask_over_udp`, with a connection for each message."""
    for message in messages:
        with socket.create_connection((address, 53), 60) as sender:
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _own_event(probe)
            sender.sendall(framed(message))
            event = _own_event(probe)
            answers = read_answers(sender)
            with suppress(OSError):  # the server has closed the connection
                sender.sendall(framed(OTHER))
            answer = next(answers, OTHER)
        yield message, "no answer" if answer[:2] == OTHER[:2] else _name(answer), event


def _compare(probe: Probe, resolver: Resolver, rng: random.Random, count: int, *, tcp: bool) -> None:
    made = Messages(rng, tuple(label.encode() for label in _ZONE.name.split(".")))
    found: Counter[tuple[str, str]] = Counter()
    names: dict[str, bytes] = {}
    for number in range(count // _AT_ONCE):
        messages = [message for _ in range(_AT_ONCE) if len(message := made.next()) >= 2]
        address = ADDRESSES[number % len(ADDRESSES)]
        with resolver.net.entered(), sender_to(address) as sender:
            sender.settimeout(60)
            asked = _ask_over_tcp(probe, address, messages) if tcp else _ask_over_udp(probe, sender, messages)
            for message, answer, seen in asked:
                found[answer, seen.kind] += 1
                if seen.kind == "none" and answer not in {"no answer", *_NOT_READ.values()}:
                    sys.exit(f"answered with {answer}, but not seen: {message.hex()}")
                if answer in {"NOERROR", "NXDOMAIN"} and (text := seen.text()):
                    names[text] = message
    for name in names.keys() - resolver.received().keys():
        sys.exit(f"answered, but not for {name}: {names[name].hex()}")
    for (answer, event), times in found.most_common():
        print(f"{times:8} {answer:10} event: {event}")
    print(f"{len(names):8} names that were answered are the same in the log of the resolver")


def main(count: int = 20000, seed: int | None = None) -> None:
    seed = random.randrange(1 << 32) if seed is None else seed
    print(f"seed {seed}", flush=True)
    for name, start in RESOLVERS.items():
        with tempfile.TemporaryDirectory() as folder, _running() as probe:
            resolver = start(Path(folder), _ZONE)
            try:
                for transport, messages in (("UDP", count), ("TCP", count // 4)):
                    print(f"{name}, {transport}: {messages} messages", flush=True)
                    _compare(probe, resolver, random.Random(seed), messages, tcp=transport == "TCP")
            finally:
                resolver.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
