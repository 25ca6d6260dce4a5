"""The words of the project: Process, Ancestry, Rule, Query, Count.

Everything here is a value: made once where the data enters, never changed, passed to the right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from dnsprobe.text import printable

#: What a name comes to where no rule asks for it, in place of the id of a rule.
NO_RULE = 0
#: What a name comes to where the kernel leaves the decision to user space, in place of the id of a rule.
DECIDE = 0xFFFFFFFF

#: Shown for a process, tree or qtype that is not told apart: above the series limit, or not counted by process.
OTHER = "(other)"
#: Shown for a tree that the kernel could not tell.
UNKNOWN = "(unknown)"
#: The transport of connections whose queries cannot be read: DNS over TLS (RFC 7858).
DOT = "dot"


class UdpHook(StrEnum):
    """Where UDP queries are seen, best first: what ``probe.hook`` and ``dnsprobe_hook_info`` call it."""

    IP_SEND_SKB = "ip_send_skb"
    UDP_SEND_SKB = "udp_send_skb"
    NET_DEV_QUEUE = "net_dev_queue"


class TcpHook(StrEnum):
    """Where TCP queries are seen, best first: what ``probe.tcp_hook`` and ``dnsprobe_hook_info`` call it."""

    TCP_SENDMSG_LOCKED = "tcp_sendmsg_locked"
    TCP_SENDMSG = "tcp_sendmsg"
    TCP_TRACEPOINT = "tcp_tracepoint"


@dataclass(frozen=True, slots=True)
class Process:
    """A thread group as the kernel saw it at the moment of the send (``struct process``).

    ``tgid`` is the pid in the initial pid namespace; ``start_ns`` the start in nanoseconds since boot
    (``task_struct.start_boottime`` of the group leader); ``comm`` the leader's name, up to 15 arbitrary bytes.
    ``exited``: only those who started a process can be gone before it asks.
    """

    tgid: int
    start_ns: int
    comm: bytes
    exited: bool = False


@dataclass(frozen=True, slots=True)
class Ancestry:
    """The asking process, then its parents: nearest first, pid 1 or a kernel thread's root last.

    ``complete`` is False where the chain was longer than the kernel side follows.

    ``lineage`` is who started it, in the same form: another chain where one of them is gone, as its children then have
    another parent. It is the chain of parents where nothing else is said, or known. ``lineage_complete`` is False where
    it is longer, or is not known any further. ``by_lineage`` says which of the two is shown as the tree.
    """

    chain: tuple[Process, ...]
    complete: bool = True
    lineage: tuple[Process, ...] = ()
    lineage_complete: bool = True
    by_lineage: bool = False

    def __post_init__(self) -> None:
        if not self.lineage:
            object.__setattr__(self, "lineage", self.chain)
            object.__setattr__(self, "lineage_complete", self.complete)

    @property
    def asker(self) -> Process:
        """The process that sent the query."""
        return self.chain[0]

    @property
    def differs(self) -> bool:
        """True where who started it are others than its parents, or where that is not known."""
        return (self.lineage, self.lineage_complete) != (self.chain, self.complete)

    @staticmethod
    def _element(comm: bytes) -> str:
        # A name may be empty (PR_SET_NAME); an element of a tree, and a tree, never is.
        text = printable(comm, also=";") or printable("\0")
        # A process may be called like one of our own marks; a tree is never mistaken for one.
        return f"\\x{ord(text[0]):02x}{text[1:]}" if text in {OTHER, UNKNOWN, "..."} else text

    def _below_init(self, *, by_lineage: bool) -> list[Process]:
        """Return what a tree shows, oldest first: all but pid 1, unless pid 1 itself asks."""
        chain = self.lineage if by_lineage else self.chain
        return [process for process in reversed(chain) if process.tgid != 1] or [self.asker]

    def _pids(self, *, by_lineage: bool) -> str:
        pids = [str(process.tgid) for process in self._below_init(by_lineage=by_lineage)]
        return self._joined(pids, by_lineage=by_lineage)

    def _comms(self, *, by_lineage: bool) -> str:
        comms = [self._element(process.comm) for process in self._below_init(by_lineage=by_lineage)]
        return self._joined(comms, by_lineage=by_lineage)

    def _joined(self, elements: list[str], *, by_lineage: bool) -> str:
        complete = self.lineage_complete if by_lineage else self.complete
        return ";".join(elements if complete else ["...", *elements])

    @property
    def tree_pids(self) -> str:
        """The pids of :attr:`tree`, in the same form and order."""
        return self._pids(by_lineage=self.by_lineage)

    @property
    def tree(self) -> str:
        """The comms from below pid 1 down to the asker, joined by ``;``, safe to show.

        This is the folded-stack form that flame graph tools read. A cut-off chain begins with ``...``.
        """
        return self._comms(by_lineage=self.by_lineage)

    @property
    def lineage_tree(self) -> str:
        """The comms of those who started it, in the form of :attr:`tree`."""
        return self._comms(by_lineage=True)

    @property
    def lineage_tree_pids(self) -> str:
        """The pids of :attr:`lineage_tree`, in the same form and order."""
        return self._pids(by_lineage=True)


@dataclass(frozen=True, slots=True)
class Rule:
    """A configured domain: what it matches and how it is shown.

    ``id`` is what the kernel counts by: positive, the same across reloads for an unchanged rule. ``pattern`` is the
    text from the configuration; ``priority`` a syslog level (0 to 7) for its journal entries.
    """

    id: int
    name: str
    pattern: str
    priority: int = 6


@dataclass(frozen=True, slots=True)
class Query:
    """One DNS query that a rule asks for.

    ``transport`` is ``udp`` or ``tcp``, or what the port stands for: ``mdns`` or ``llmnr``.

    ``qname`` is in wire format (RFC 1035, section 3.1), lower case, root byte included; ``uid`` and ``gid`` those of
    the sender in the initial user namespace; ``net_ns`` the inode number of the network namespace that the query left,
    0 where it is not known; ``time_ns`` the moment of the send (CLOCK_MONOTONIC); ``repeats`` how
    many queries like it (process, name, type, transport) went without an event since the last one.
    """

    time_ns: int
    rule: Rule
    qname: bytes
    qtype: int
    transport: str
    server: IPv4Address | IPv6Address
    port: int
    uid: int
    gid: int
    net_ns: int
    ancestry: Ancestry
    repeats: int


@dataclass(frozen=True, slots=True)
class Container:
    """A container.

    ``id`` has 64 hexadecimal digits, or is a name where the runtime has names only. ``runtime`` is ``docker``,
    ``containerd``, ``cri-o``, ``podman``, ``systemd-nspawn`` or ``lxc``, empty where the form does not say; ``pod`` the
    uid of its Kubernetes pod, empty if it is in none. ``name``, ``pod_name`` and ``pod_namespace`` are what runtime and
    Kubernetes call them, empty where that is not known.
    """

    id: str
    runtime: str
    pod: str = ""
    name: str = ""
    pod_name: str = ""
    pod_namespace: str = ""

    @property
    def short_id(self) -> str:
        """The id as commands of runtimes show it: the first 12 of its digits, or the name."""
        return self.id[:12] if re.fullmatch("[0-9a-f]{64}", self.id) else self.id


@dataclass(frozen=True, slots=True)
class Identity:
    """What a process is besides its tree, at the moment of its query; None where it is not known.

    ``cmdline`` has its arguments separated by NUL, as ``/proc/PID/cmdline`` has them; of a process that is gone, the
    first octets. ``exe`` and ``cgroup`` are paths; one that begins with ``...`` was too long. ``unit``, ``slice`` and
    ``container`` are what ``cgroup`` says. ``loginuid`` is the user id that audit keeps from the login on, None if
    there was none; ``pid_ns`` and ``mnt_ns`` are inode numbers. The kernel told all of it at the send, but for those in
    ``from_procfs``, which were read afterwards.
    """

    exe: str | None = None
    cmdline: bytes | None = None
    user: str | None = None
    unit: str | None = None
    cgroup: str | None = None
    slice: str | None = None
    container: Container | None = None
    loginuid: int | None = None
    pid_ns: int | None = None
    mnt_ns: int | None = None
    from_procfs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Count:
    """So many queries of one rule, type and transport by one process tree."""

    rule: Rule
    qtype: str
    transport: str
    process: str
    tree: str
    unit: str
    container: str
    queries: int


class Series(NamedTuple):
    """What one counter is kept for: the labels of ``dnsprobe_queries_total``, in their order."""

    domain: str
    qtype: str
    transport: str
    process: str
    tree: str
    unit: str
    container: str

    @property
    def encrypted(self) -> bool:
        """True for connections whose queries cannot be read, with neither domain nor qtype."""
        return self.transport == DOT


#: The labels of :class:`Series` that can be left out.
OPTIONAL_LABELS = ("unit", "container")
