"""The words of the project: Process, Ancestry, Identity, Query, Rule, Count, Series.

All of them are immutable values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from dnsprobe.text import printable

#: The verdict on a name that matches no rule. Other verdicts are the id of a rule.
NO_RULE = 0
#: The verdict on a name that user space has to decide, and has not yet.
DECIDE = 0xFFFFFFFF

#: The process, tree or qtype of queries without a series of their own: they are above the limit on series, or the
#: kernel has counted them without their process. The server of queries for which the kernel had no room for it.
OTHER = "(other)"
#: The process and the tree of queries whose process tree is not known.
UNKNOWN = "(unknown)"
#: The rule of queries whose name took too long to decide: see the limit in :mod:`dnsprobe.pipeline.turns`.
UNDECIDED = "(undecided)"
#: The transport of connections whose queries cannot be read: DNS over TLS (RFC 7858).
DOT = "dot"
#: Where a server is: on this host, or elsewhere.
LOCAL, REMOTE = "local", "remote"


@dataclass(frozen=True, slots=True)
class Process:
    """A process at the moment of the send (``struct process``).

    ``tgid`` is the pid in the initial pid namespace. ``start_ns`` is the start in nanoseconds since boot
    (``task_struct.start_boottime`` of the group leader). ``comm`` is the name of the group leader, up to 15 arbitrary
    bytes. ``exited`` is True if the process had ended at that moment, which only occurs in a lineage.
    """

    tgid: int
    start_ns: int
    comm: bytes
    exited: bool = False


@dataclass(frozen=True, slots=True)
class Ancestry:
    """The process that asks (the asker) and its ancestors.

    ``chain`` has the asker and its parents, the nearest first; the last one is pid 1 or kthreadd. ``complete`` is False
    if the chain is cut off, because it is longer than the kernel side follows.

    ``lineage`` has the asker and the processes that started it, in the same order. It differs from the chain if one of
    them has ended, because its children then have another parent. By default, it is the chain. ``lineage_complete`` is
    False if the lineage is longer, or not known any further. If ``by_lineage`` is True, the tree shows the lineage,
    otherwise the chain.
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
        """True if the lineage is not the chain of parents, or is not known."""
        return (self.lineage, self.lineage_complete) != (self.chain, self.complete)

    @staticmethod
    def _element(comm: bytes) -> str:
        # A comm can be empty (PR_SET_NAME), an element of a tree cannot.
        text = printable(comm, also=";") or printable("\0")
        # A process can have the name of one of our marks. Its tree must not look like the mark.
        return f"\\x{ord(text[0]):02x}{text[1:]}" if text in {OTHER, UNKNOWN, "..."} else text

    def _below_init(self, *, by_lineage: bool) -> list[Process]:
        """Return the processes of a tree, oldest first: all but pid 1, unless pid 1 is the asker."""
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
        """The escaped comms from below pid 1 down to the asker, joined by ``;``. A cut-off chain begins with ``...``.

        Tools for flame graphs read this form (folded stacks).
        """
        return self._comms(by_lineage=self.by_lineage)

    @property
    def lineage_tree(self) -> str:
        """The comms of the lineage, in the form of :attr:`tree`."""
        return self._comms(by_lineage=True)

    @property
    def lineage_tree_pids(self) -> str:
        """The pids of :attr:`lineage_tree`, in the same form and order."""
        return self._pids(by_lineage=True)


class Rate(NamedTuple):
    """A number of queries that is not too many in any window of ``window_ns`` nanoseconds."""

    queries: int
    window_ns: int


class Alert(NamedTuple):
    """When an entry of a rule is an alert: if one of these conditions is met.

    - ``priority`` is the syslog level of alerts. An entry keeps the priority of its rule if that is more urgent.
    - ``rcodes`` are RCODES of answers, as in :attr:`Outcome.rcode`. ``unanswered`` is whether no answer is enough.
    - ``latency_ns`` is how long an answer has to take at least, None if that does not matter.
    - ``rate`` is the limit above which a process tree is an alert of its own (:class:`TreeAlert`), None without limit.
    """

    priority: int = 4
    rcodes: tuple[str, ...] = ()
    unanswered: bool = False
    latency_ns: int | None = None
    rate: Rate | None = None

    def reasons(self, outcome: Outcome) -> tuple[str, ...]:
        """Return the conditions that a result meets, by their keys in the configuration."""
        slow = self.latency_ns is not None and outcome.latency_ns is not None and outcome.latency_ns >= self.latency_ns
        met = {
            "rcode": outcome.rcode in self.rcodes,
            "unanswered": self.unanswered and outcome.reason != "",
            "latency": slow,
        }
        return tuple(key for key, is_met in met.items() if is_met)


@dataclass(frozen=True, slots=True)
class Rule:
    """A configured domain.

    ``id`` is positive, and stays the same across reloads if the rule does not change; the kernel counts by it. ``name``
    is shown, ``pattern`` is the text of the configuration. ``priority`` is the syslog level of the rule's journal
    entries, 0 to 7. ``alert`` says which of them are alerts, None if none is.
    """

    id: int
    name: str
    pattern: str
    priority: int = 6
    alert: Alert | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A record of an answer. Its texts are in presentation form (RFC 1035, section 5.1), printable and not too long."""

    name: str
    ttl: int
    rdclass: str
    rdtype: str
    data: str

    def __str__(self) -> str:
        return f"{self.name} {self.ttl} {self.rdclass} {self.rdtype} {self.data}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a query.

    - ``rcode`` is the label of the metric, such as ``NXDOMAIN`` or ``NODATA``; empty if there is no answer.
    - ``reason`` is why there is none: ``timeout``, ``closed``, ``unreachable`` or ``superseded``; otherwise empty.
    - ``latency_ns`` is the time from the query to its answer, None without an answer.
    - ``records`` are the first records of the answer section. ``whole`` is False if there are more.
    """

    rcode: str = ""
    reason: str = ""
    latency_ns: int | None = None
    records: tuple[Record, ...] = ()
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Query:
    """One DNS query that matches a rule.

    - ``time_ns`` is the moment of the send in nanoseconds (CLOCK_MONOTONIC).
    - ``qname`` is in wire format (RFC 1035, section 3.1): lower case, with the root byte.
    - ``qclass`` is 1 (IN) for nearly all queries. Over mDNS, it has not the bit that asks for an answer by unicast.
    - ``transport`` is ``udp``, ``tcp``, ``mdns`` or ``llmnr``.
    - ``uid`` and ``gid`` are those of the sender in the initial user namespace.
    - ``net_ns`` is the inode number of the network namespace that the query leaves, 0 if it is not known.
    - ``unread`` is the reason why the message could not be read, empty for a query. Then there is no name, type and
      class.
    - ``repeats`` is the number of equal queries (process, name, type, class, transport) without an event since the
      last event.
    - ``share`` is the user or control group of the sender, as the kernel side numbers them; 0 if it is not known.
    - ``query_id`` is a random number, 0 if it is not known what becomes of the query.
    - ``outcome`` is what became of it, None if that is not known yet. ``is_late`` is True if there was an entry without
      it before.
    - ``alerts`` are the conditions of an alert of the rule that are met (:meth:`Alert.reasons`).
    """

    time_ns: int
    rule: Rule
    qname: bytes
    qtype: int
    qclass: int
    transport: str
    server: IPv4Address | IPv6Address
    port: int
    uid: int
    gid: int
    net_ns: int
    ancestry: Ancestry
    repeats: int
    share: int = 0
    unread: str = ""
    query_id: int = 0
    outcome: Outcome | None = None
    is_late: bool = False
    alerts: tuple[str, ...] = ()

    @property
    def priority(self) -> int:
        """The syslog level of the entry: that of the rule, or that of its alert if this is one and more urgent."""
        alert = self.rule.alert
        return min(self.rule.priority, alert.priority) if alert and self.alerts else self.rule.priority


@dataclass(frozen=True, slots=True)
class TreeAlert:
    """A process tree that has sent more queries of a rule than the alert of the rule allows.

    ``time_ns`` is when that was found (CLOCK_MONOTONIC). ``tree`` is :attr:`Ancestry.tree`, OTHER or UNKNOWN. It has
    sent ``queries`` in the window of ``rate``, which is the limit.
    """

    time_ns: int
    rule: Rule
    tree: str
    queries: int
    rate: Rate

    @property
    def priority(self) -> int:
        """The syslog level of the entry: the more urgent one of the rule and its alert."""
        return min(self.rule.priority, self.rule.alert.priority) if self.rule.alert else self.rule.priority

    @property
    def share(self) -> int:
        """Nobody: a tree may have processes of several users."""
        return 0


@dataclass(frozen=True, slots=True)
class Container:
    """A container.

    - ``id`` has 64 hexadecimal digits. Runtimes that have only names use the name.
    - ``runtime`` is ``docker``, ``containerd``, ``cri-o``, ``podman``, ``systemd-nspawn`` or ``lxc``, empty if the path
      of the control group does not show it.
    - ``pod`` is the uid of its Kubernetes pod, empty if it is in none.
    - ``name``, ``pod_name`` and ``pod_namespace`` are the names in the runtime and in Kubernetes, empty if they are not
      known.
    """

    id: str
    runtime: str
    pod: str = ""
    name: str = ""
    pod_name: str = ""
    pod_namespace: str = ""

    @property
    def short_id(self) -> str:
        """The id as runtimes show it: its first 12 digits, or the name."""
        return self.id[:12] if re.fullmatch("[0-9a-f]{64}", self.id) else self.id


@dataclass(frozen=True, slots=True)
class Identity:
    """The facts about a process at the moment of its query, except its ancestry. None is unknown.

    - ``exe`` and ``cgroup`` are paths. One that begins with ``...`` was too long.
    - ``cmdline`` has the arguments separated by NUL, as in ``/proc/PID/cmdline``. If the process ended before it could
      be read there, only the beginning is known.
    - ``user`` is the name of the query's user id.
    - ``unit``, ``slice`` and ``container`` are derived from ``cgroup``.
    - ``loginuid`` is the user id that audit keeps from the login on, None without a login.
    - ``pid_ns`` and ``mnt_ns`` are inode numbers of namespaces.
    - ``user_ns`` is that of the user namespace of the process, or of the one that owns the mounts of ``exe``; None if
      both are dnsprobe's own. Whoever made another one could choose ``exe``.
    - ``from_procfs`` has the names of the facts that were read from ``/proc`` after the send. The kernel side read the
      others at the send.
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
    user_ns: int | None = None
    from_procfs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Count:
    """The number of queries of one process, by rule, type, transport and place, with the labels of the process.

    ``to`` is the place of the server, LOCAL or REMOTE. ``share`` is who takes the room of the series: a user or a
    control group, as the kernel side numbers them, 0 if that is not known. ``user`` is empty if it is not known.
    ``results`` are numbers of what became of the queries, none if answers are not tracked. ``server`` is the address
    that was asked, empty if servers are not told apart.
    """

    rule: Rule
    qtype: str
    transport: str
    to: str
    process: str
    tree: str
    unit: str
    container: str
    queries: int
    share: int = 0
    user: str = ""
    results: tuple[int, ...] = ()
    server: str = ""


class Series(NamedTuple):
    """The labels of one series of ``dnsprobe_queries_total``, in the order of the metric."""

    domain: str
    qtype: str
    transport: str
    to: str
    process: str
    tree: str
    unit: str
    container: str
    user: str = ""
    server: str = ""

    @property
    def encrypted(self) -> bool:
        """True for connections whose queries cannot be read. They have neither domain nor qtype."""
        return self.transport == DOT

    @property
    def unread(self) -> bool:
        """True for messages that could not be read. They have no domain, and the reason in place of the type."""
        return not self.domain and self.transport != DOT

    @property
    def of_queries(self) -> bool:
        """True for queries."""
        return bool(self.domain)


#: The labels of :class:`Series` that the configuration can leave out, and those that it has by default.
OPTIONAL_LABELS = ("unit", "container", "user", "server")
DEFAULT_LABELS = ("unit", "container")
