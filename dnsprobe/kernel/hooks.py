"""The ladder of hooks: for each path that a query can take, where it can be seen, best first."""

from __future__ import annotations

import os
from dataclasses import dataclass

#: The ways out of the host that are told apart, each with hooks and proofs of its own.
PATHS = ("udp4", "udp6")

KPROBE_TYPE = "/sys/bus/event_source/devices/kprobe/type"


@dataclass(frozen=True, slots=True)
class Rung:
    """One kind of hook.

    ``functions`` gives, for each path, the kernel function or tracepoint that it stands at; ``helpers`` are tracepoints
    that it needs beside it.
    """

    name: str
    kind: str
    functions: dict[str, str]
    helpers: tuple[str, ...] = ()


LADDER = (
    Rung("ip_send_skb", "kprobe", {"udp4": "ip_send_skb", "udp6": "ip6_send_skb"}),
    Rung("udp_send_skb", "kprobe", {"udp4": "udp_send_skb", "udp6": "udp_v6_send_skb"}),
    Rung(
        "net_dev_queue",
        "raw_tracepoint",
        {"udp4": "net_dev_queue", "udp6": "net_dev_queue"},
        helpers=("neigh_event_send_done",),
    ),
)
RUNGS = {rung.name: rung for rung in LADDER}


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
