"""The ladder of hooks: for each path that a query can take, where it can be seen, best first."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dnsprobe.model import TcpHook, UdpHook

#: The ways out of the host that are told apart, each with hooks and proofs of its own.
PATHS = ("udp4", "udp6", "tcp4", "tcp6")

#: Macros that have the program for TCP compiled: at a function, at a tracepoint; and a second one at the tracepoint.
STREAM_FUNCTION, STREAM_TRACEPOINT, STREAM_TWICE = "STREAM_FUNCTION", "STREAM_TRACEPOINT", "STREAM_TWICE"

#: Octets: more than the process that attaches them and the daemon ever say to each other at once.
MESSAGE_SIZE = 1 << 20

KPROBE_TYPE = "/sys/bus/event_source/devices/kprobe/type"


@dataclass(frozen=True, slots=True)
class Rung:
    """One kind of hook.

    ``functions`` gives, for each path, the kernel function or tracepoint that it stands at; ``helpers`` are tracepoints
    that it needs beside it. ``macro`` has its program compiled, and ``entry`` is the program's name where it is not
    that of the function.
    """

    name: str
    kind: str
    functions: dict[str, str]
    helpers: tuple[str, ...] = ()
    entry: str = ""
    macro: str = ""

    def program(self, function: str) -> str:
        """Return the name of the BPF program for a function."""
        return self.entry or f"{function}_entry"

    @property
    def reads_streams(self) -> bool:
        """True for TCP, whose program calls itself for the next message in a write."""
        return self.macro in {STREAM_FUNCTION, STREAM_TRACEPOINT}


def _both(function: str) -> dict[str, str]:
    return {"tcp4": function, "tcp6": function}


UDP_LADDER = (
    Rung(UdpHook.IP_SEND_SKB, "kprobe", {"udp4": "ip_send_skb", "udp6": "ip6_send_skb"}, macro="HOOK_IP_SEND_SKB"),
    Rung(
        UdpHook.UDP_SEND_SKB, "kprobe", {"udp4": "udp_send_skb", "udp6": "udp_v6_send_skb"}, macro="HOOK_UDP_SEND_SKB"
    ),
    Rung(
        UdpHook.NET_DEV_QUEUE,
        "raw_tracepoint",
        {"udp4": "net_dev_queue", "udp6": "net_dev_queue"},
        helpers=("neigh_event_send_done",),
        macro="HOOK_NET_DEV_QUEUE",
    ),
)
#: Inside tcp_sendmsg_locked() nobody else writes to the socket, so that is where a write's place in the stream is sure.
TCP_LADDER = (
    Rung(
        TcpHook.TCP_SENDMSG_LOCKED,
        "kprobe",
        _both("tcp_sendmsg_locked"),
        entry="tcp_sendmsg_entry",
        macro=STREAM_FUNCTION,
    ),
    Rung(TcpHook.TCP_SENDMSG, "kprobe", _both("tcp_sendmsg"), macro=STREAM_FUNCTION),
    # Since Linux 6.16 (kernel commit 0f08335ade71).
    Rung(TcpHook.TCP_TRACEPOINT, "raw_tracepoint", _both("tcp_sendmsg_locked"), macro=STREAM_TRACEPOINT),
)
RUNGS = {rung.name: rung for rung in (*UDP_LADDER, *TCP_LADDER)}


def kprobes_available() -> bool:
    """True where the kernel has kprobes (CONFIG_KPROBES) and lets perf use them."""
    return os.path.exists(KPROBE_TYPE)


@dataclass(slots=True)
class Hook:
    """An attached hook. It lives as long as its descriptors: nothing stays behind when the process dies."""

    rung: str
    paths: tuple[str, ...]
    symbol: str
    programs: list[int]
    links: list[int]

    def close(self) -> None:
        """Detach."""
        for fd in (*self.links, *self.programs):
            os.close(fd)
        self.links, self.programs = [], []
