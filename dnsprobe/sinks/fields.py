"""The one table of facts about a query and its process.

The journal entry, the JSON line of ``dnsprobe watch`` and the tables in docs/journal.md and
docs/man/dnsprobe-journal.7 are made from :data:`FACTS`. "Add a fact" in docs/architecture.md has all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dnsprobe.model import Container, Identity, Outcome, Process, Query, Record, TreeAlert
from dnsprobe.names.qclass import IN, qclass_name
from dnsprobe.names.qtype import qtype_name
from dnsprobe.names.wire import to_text
from dnsprobe.sinks.wording import arguments, command
from dnsprobe.text import printable, shown

Raw = TypeVar("Raw")


@dataclass(frozen=True, slots=True)
class Form(Generic[Raw]):
    """How a value is written: as a JSON value, and as the values of a journal field, which may be repeated."""

    json: Callable[[Raw], object]
    journal: Callable[[Raw], Iterable[str]]


def _ancestor(process: Process) -> dict[str, object]:
    return {"pid": process.tgid, "comm": printable(process.comm), "start_ns": process.start_ns}


def _starter(process: Process) -> str:
    # The mark comes first: no process can put its name there.
    return f"{'exited ' if process.exited else ''}{process.tgid} {printable(process.comm)}"


#: Raw text from outside: escaped.
RAW: Form[str | bytes] = Form(printable, lambda raw: [printable(raw)])
#: Text that has its escapes already.
TEXT: Form[str] = Form(shown, lambda text: [shown(text)])
NUMBER: Form[int] = Form(int, lambda value: [str(value)])
#: A query class: only another one than IN is worth a field.
CLASS: Form[int] = Form(qclass_name, lambda qclass: [] if qclass == IN else [qclass_name(qclass)])
#: A command line separated by NUL: a list of arguments in JSON, quoted as for a shell in the journal.
COMMAND: Form[bytes] = Form(arguments, lambda cmdline: [command(cmdline)])
#: Words in a fixed order: a list in JSON, one field for each in the journal.
EACH: Form[Sequence[str]] = Form(list, list)
#: Words in alphabetical order: a list in JSON, separated by spaces in the journal.
WORDS: Form[Iterable[str]] = Form(sorted, lambda words: [" ".join(sorted(words))])
ANCESTORS: Form[Sequence[Process]] = Form(
    lambda processes: [_ancestor(process) for process in processes],
    lambda processes: [f"{process.tgid} {printable(process.comm)}" for process in processes],
)
STARTERS: Form[Sequence[Process]] = Form(
    lambda processes: [{**_ancestor(process), "exited": process.exited} for process in processes],
    lambda processes: [_starter(process) for process in processes],
)
#: A number that tells queries apart, in 16 hexadecimal digits: not all JSON readers have integers of 64 bits.
ID: Form[int] = Form(lambda value: f"{value:016x}", lambda value: [f"{value:016x}"])
RECORDS: Form[Sequence[Record]] = Form(
    lambda records: [
        {"name": shown(record.name), "ttl": record.ttl, "type": shown(record.rdtype), "data": shown(record.data)}
        for record in records
    ],
    lambda records: [shown(str(record)) for record in records],
)
#: A boolean: the field is ``yes`` or absent.
FLAG: Form[bool] = Form(bool, lambda value: ["yes"] if value else [])


@dataclass(frozen=True, slots=True)
class Fact(Generic[Raw]):
    """One fact.

    ``field`` is its name in the journal and ``key`` its name in JSON; an empty name leaves it out there. ``get``
    returns the value, None if it is not known: the journal then has no field, JSON has null. ``meaning`` and ``absent``
    (when there is no field) are Markdown for the documents.
    """

    field: str
    key: str
    get: Callable[[Query, Identity], Raw | None]
    form: Form[Raw]
    meaning: str
    absent: str = ""


def _of_container(attribute: Callable[[Container], str]) -> Callable[[Query, Identity], str | None]:
    def get(_query: Query, identity: Identity) -> str | None:
        return (attribute(identity.container) or None) if identity.container else None

    return get


def _starters(query: Query, _identity: Identity) -> Sequence[Process]:
    return query.ancestry.lineage[1:] if query.ancestry.differs else ()


def _of_outcome(attribute: Callable[[Outcome], Raw]) -> Callable[[Query, Identity], Raw | None]:
    def get(query: Query, _identity: Identity) -> Raw | None:
        return attribute(query.outcome) if query.outcome is not None else None

    return get


_NOT_READ = "the message could not be read as a query"

FACTS: tuple[Fact[Any], ...] = (
    Fact(
        "DNSPROBE_DOMAIN",
        "domain",
        lambda query, _: query.rule.name or None,
        TEXT,
        "the name of the rule that counts the query; `.` if all names are watched; `(undecided)` if it took too "
        "long to find out",
        _NOT_READ,
    ),
    Fact(
        "DNSPROBE_QNAME",
        "qname",
        lambda query, _: None if query.unread else to_text(query.qname),
        TEXT,
        "the name that was asked for, in lower case, without the trailing dot; `.` for the root",
        _NOT_READ,
    ),
    Fact(
        "DNSPROBE_QTYPE",
        "qtype",
        lambda query, _: None if query.unread else qtype_name(query.qtype),
        TEXT,
        "the query type, such as `AAAA`, or `TYPE65280` for a type without a mnemonic",
        _NOT_READ,
    ),
    Fact(
        "DNSPROBE_CLASS",
        "qclass",
        lambda query, _: None if query.unread else query.qclass,
        CLASS,
        "the query class, such as `CH`, or `CLASS2` for a class without a mnemonic",
        "it is `IN`, or the message could not be read",
    ),
    Fact(
        "DNSPROBE_UNREAD",
        "unread",
        lambda query, _: query.unread or None,
        TEXT,
        "why the message [could not be read as a query](metrics.md#messages-that-are-not-read): the label `reason`",
        "it is a query",
    ),
    Fact(
        "DNSPROBE_TRANSPORT",
        "transport",
        lambda query, _: query.transport,
        TEXT,
        "`udp`, `tcp`, [`mdns` or `llmnr`](how-it-works.md#multicast-dns-and-llmnr)",
    ),
    Fact(
        "DNSPROBE_SERVER",
        "server",
        lambda query, _: str(query.server),
        TEXT,
        "the address of the server that the process asked",
    ),
    Fact("DNSPROBE_PORT", "port", lambda query, _: query.port, NUMBER, "the port of that server"),
    Fact(
        "DNSPROBE_QUERY_ID",
        "query_id",
        lambda query, _: query.query_id or None,
        ID,
        "a random number of the query in 16 hexadecimal digits: the entry of a [later result](#results) has the same",
        "[answers](configuration.md#answers-what-became-of-queries) are off, or the answer to the query cannot be "
        "recognized",
    ),
    Fact(
        "DNSPROBE_RCODE",
        "rcode",
        _of_outcome(lambda outcome: outcome.rcode or None),
        TEXT,
        "the RCODE of the answer, such as `NXDOMAIN`: the label `rcode` of [the metrics]"
        "(metrics.md#what-became-of-the-queries); `NODATA` if it has no record of the type that was asked for",
        "[the result](#results) is not known yet, or there is no answer",
    ),
    Fact(
        "DNSPROBE_LATENCY_USEC",
        "latency_usec",
        _of_outcome(lambda outcome: None if outcome.latency_ns is None else outcome.latency_ns // 1000),
        NUMBER,
        "the time from the query to its answer, in microseconds",
        "as `DNSPROBE_RCODE`",
    ),
    Fact(
        "DNSPROBE_ANSWER",
        "answer",
        _of_outcome(lambda outcome: outcome.records if outcome.rcode else None),
        RECORDS,
        "a record of the answer, as in zone files: `www.example.test. 300 IN A 192.0.2.7`; one field for each record, "
        "at most 32",
        "the answer has no records, or as `DNSPROBE_RCODE`",
    ),
    Fact(
        "DNSPROBE_ANSWER_CUT",
        "answer_cut",
        _of_outcome(lambda outcome: not outcome.whole if outcome.rcode else None),
        FLAG,
        "`yes`: the answer has more records, or some that could not be read",
        "all records are there, or as `DNSPROBE_RCODE`",
    ),
    Fact(
        "DNSPROBE_UNANSWERED",
        "unanswered",
        _of_outcome(lambda outcome: outcome.reason or None),
        TEXT,
        "why there is no answer: the label `reason` of [`dnsprobe_unanswered_total`]"
        "(metrics.md#what-became-of-the-queries)",
        "there is an answer, or it may still come",
    ),
    Fact(
        "DNSPROBE_ALERT",
        "alert",
        lambda query, _: query.alerts,
        EACH,
        "what makes this entry an [alert](#alerts) of its rule: `rcode`, `unanswered` or `latency`, or `rate` if it is "
        "about a process tree; one field for each",
        "it is no alert",
    ),
    Fact(
        "DNSPROBE_LATE",
        "late",
        lambda query, _: query.is_late,
        FLAG,
        "`yes`: this is the result of a query that had an entry before, with the same `DNSPROBE_QUERY_ID`",
        "it is the first entry of the query",
    ),
    Fact(
        "DNSPROBE_PID",
        "pid",
        lambda query, _: query.ancestry.asker.tgid,
        NUMBER,
        "the pid of the process in the host's pid namespace",
    ),
    Fact(
        "DNSPROBE_COMM",
        "comm",
        lambda query, _: query.ancestry.asker.comm,
        RAW,
        "the name of the process (comm), at most 15 bytes",
        "it is empty",
    ),
    Fact(
        "",
        "start_ns",
        lambda query, _: query.ancestry.asker.start_ns,
        NUMBER,
        "when the process started, in nanoseconds since boot",
    ),
    Fact(
        "DNSPROBE_EXE",
        "exe",
        lambda _, identity: identity.exe,
        RAW,
        "the executable; a path that begins with `...` was too long",
        "the process has none",
    ),
    Fact(
        "DNSPROBE_CMDLINE",
        "cmdline",
        lambda _, identity: identity.cmdline or None,
        COMMAND,
        "the command line, quoted as for a shell: its first 4096 bytes, or 512 if the process has exited",
        "the process has none",
    ),
    Fact(
        "DNSPROBE_UID",
        "uid",
        lambda query, _: query.uid,
        NUMBER,
        "the user id of the sender in the host's user namespace",
    ),
    Fact(
        "DNSPROBE_GID",
        "gid",
        lambda query, _: query.gid,
        NUMBER,
        "the group id of the sender in the host's user namespace",
    ),
    Fact(
        "DNSPROBE_LOGINUID",
        "loginuid",
        lambda _, identity: identity.loginuid,
        NUMBER,
        "the user id of the login that the process comes from, as audit keeps it: sudo(8) and su(1) do not change it",
        "the process comes from no login",
    ),
    Fact(
        "DNSPROBE_USER",
        "user",
        lambda _, identity: identity.user,
        RAW,
        "the user name of `DNSPROBE_UID`",
        "the host has no name for this user id, or does not find it in 0.1 s",
    ),
    Fact("DNSPROBE_UNIT", "unit", lambda _, identity: identity.unit, RAW, "the systemd unit", "the process is in none"),
    Fact(
        "DNSPROBE_SLICE",
        "slice",
        lambda _, identity: identity.slice,
        RAW,
        "the systemd slice that the unit is in",
        "the process is in none",
    ),
    Fact(
        "DNSPROBE_CGROUP",
        "cgroup",
        lambda _, identity: identity.cgroup,
        RAW,
        "the control group, as a path from the root of the hierarchy",
        "it is not known",
    ),
    Fact(
        "DNSPROBE_CONTAINER",
        "container",
        _of_container(lambda container: container.id),
        RAW,
        "the container: 64 hexadecimal digits, or a name (systemd-nspawn, LXC)",
        "the process is in none",
    ),
    Fact(
        "DNSPROBE_CONTAINER_RUNTIME",
        "container_runtime",
        _of_container(lambda container: container.runtime),
        TEXT,
        "`docker`, `containerd`, `cri-o`, `podman`, `systemd-nspawn` or `lxc`",
        "the process is in no container, or the path of its control group does not name the runtime",
    ),
    Fact(
        "DNSPROBE_CONTAINER_NAME",
        "container_name",
        _of_container(lambda container: container.name),
        RAW,
        "the name of the container in the runtime, or in Kubernetes if it is in a pod",
        "the process is in no container, or the name [is not known](#names-of-containers)",
    ),
    Fact(
        "DNSPROBE_POD",
        "pod",
        _of_container(lambda container: container.pod),
        TEXT,
        "the uid of the Kubernetes pod",
        "the process is in none",
    ),
    Fact(
        "DNSPROBE_POD_NAME",
        "pod_name",
        _of_container(lambda container: container.pod_name),
        RAW,
        "the name of the Kubernetes pod",
        "the process is in none, or the name is not known",
    ),
    Fact(
        "DNSPROBE_POD_NAMESPACE",
        "pod_namespace",
        _of_container(lambda container: container.pod_namespace),
        RAW,
        "the Kubernetes namespace of the pod",
        "the process is in no pod, or the name is not known",
    ),
    Fact(
        "DNSPROBE_NET_NS",
        "net_ns",
        lambda query, _: query.net_ns or None,
        NUMBER,
        "the network namespace from which the query was sent: the inode number of `/proc/PID/ns/net`",
        "the kernel did not report it",
    ),
    Fact(
        "DNSPROBE_PID_NS",
        "pid_ns",
        lambda _, identity: identity.pid_ns,
        NUMBER,
        "the pid namespace of the process",
        "the kernel did not report it",
    ),
    Fact(
        "DNSPROBE_MNT_NS",
        "mnt_ns",
        lambda _, identity: identity.mnt_ns,
        NUMBER,
        "the mount namespace of the process",
        "the kernel did not report it",
    ),
    Fact(
        "DNSPROBE_USER_NS",
        "user_ns",
        lambda _, identity: identity.user_ns,
        NUMBER,
        "the user namespace of the process, or that which owns the mounts from which its executable comes, if it is "
        "another one than that of dnsprobe: whoever made it could mount any file at the path in `exe`",
        "it is that of dnsprobe, or the kernel did not report it",
    ),
    Fact(
        "DNSPROBE_FROM_PROCFS",
        "from_procfs",
        lambda _, identity: identity.from_procfs,
        WORDS,
        "which of `exe`, `cmdline`, `cgroup` the daemon read from `/proc` after the send",
        "the kernel reported all of them",
    ),
    Fact(
        "DNSPROBE_TREE",
        "tree",
        lambda query, _: query.ancestry.tree,
        TEXT,
        "the names from below pid 1 down to the process, joined by `;`: the label `tree` of the [metrics](metrics.md)",
    ),
    Fact(
        "DNSPROBE_TREE_PIDS",
        "",
        lambda query, _: query.ancestry.tree_pids,
        TEXT,
        "the pids of `DNSPROBE_TREE`, in the same order and form",
    ),
    Fact(
        "DNSPROBE_REPEATS",
        "repeats",
        lambda query, _: query.repeats,
        NUMBER,
        "how many queries like this one (same process, name, type, class and transport) made no entry since the last "
        "entry",
    ),
    Fact(
        "DNSPROBE_ANCESTOR",
        "ancestors",
        lambda query, _: query.ancestry.chain[1:],
        ANCESTORS,
        "pid and comm of an ancestor, such as `11845 make`; one field for each ancestor, the parent first",
        "pid 1 itself sent the query",
    ),
    Fact(
        "DNSPROBE_ANCESTRY_CUT",
        "",
        lambda query, _: not query.ancestry.complete,
        FLAG,
        "`yes`: the process has more than 39 ancestors, and the oldest are left out",
        "all ancestors are there",
    ),
    Fact("", "complete", lambda query, _: query.ancestry.complete, FLAG, "whether `ancestors` has all ancestors"),
    Fact(
        "DNSPROBE_LINEAGE_TREE",
        "",
        lambda query, _: query.ancestry.lineage_tree if query.ancestry.differs else None,
        TEXT,
        "the processes that [started this one](how-it-works.md#who-started-it), in the form of `DNSPROBE_TREE`",
        "the lineage is the same as the ancestors",
    ),
    Fact(
        "DNSPROBE_LINEAGE_TREE_PIDS",
        "",
        lambda query, _: query.ancestry.lineage_tree_pids if query.ancestry.differs else None,
        TEXT,
        "the pids of `DNSPROBE_LINEAGE_TREE`, in the same order and form",
        "the lineage is the same as the ancestors",
    ),
    Fact(
        "DNSPROBE_LINEAGE",
        "lineage",
        _starters,
        STARTERS,
        "pid and comm of one of the processes that started this one, such as `4100 sshd`, or `exited 4100 sshd` if it "
        "has exited; one field for each, the nearest first",
        "the lineage is the same as the ancestors",
    ),
    Fact(
        "DNSPROBE_LINEAGE_CUT",
        "",
        lambda query, _: query.ancestry.differs and not query.ancestry.lineage_complete,
        FLAG,
        "`yes`: the lineage is longer, or is not known any further",
        "the lineage is complete, or is the same as the ancestors",
    ),
    Fact(
        "",
        "lineage_complete",
        lambda query, _: query.ancestry.lineage_complete,
        FLAG,
        "whether `lineage` is complete",
    ),
)


# Made once, because both functions run for each query.
_IN_JOURNAL = [(fact.field, fact.get, fact.form.journal) for fact in FACTS if fact.field]
_IN_JSON = [(fact.key, fact.get, fact.form.json) for fact in FACTS if fact.key]


def journal_values(query: Query, identity: Identity) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each field of a query's journal entry, in order; a name may come several times.

    A fact that is not known, or is empty, has no field. Every value is printable.
    """
    for field, get, write in _IN_JOURNAL:
        raw = get(query, identity)
        if raw is not None:
            for value in write(raw):
                if value:
                    yield field, value


def json_values(query: Query, identity: Identity) -> dict[str, object]:
    """Return the JSON value of each fact by its key, in order; None if it is not known."""
    raw_values = ((key, get(query, identity), write) for key, get, write in _IN_JSON)
    return {key: None if raw is None else write(raw) for key, raw, write in raw_values}


def tree_values(found: TreeAlert) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each field of the entry of a process tree, in order. Every value is printable."""
    yield "DNSPROBE_DOMAIN", shown(found.rule.name)
    yield "DNSPROBE_ALERT", "rate"
    yield "DNSPROBE_TREE", shown(found.tree)
    yield "DNSPROBE_QUERIES", str(found.queries)
    yield "DNSPROBE_WINDOW_USEC", str(found.rate.window_ns // 1000)


def tree_json_values(found: TreeAlert) -> dict[str, object]:
    """Return the same by JSON keys: those of :func:`json_values`, null if they are about one query, and two more."""
    return {
        **{key: None for key, _, _ in _IN_JSON},
        "domain": shown(found.rule.name),
        "alert": ["rate"],
        "tree": shown(found.tree),
        "queries": found.queries,
        "window_usec": found.rate.window_ns // 1000,
    }
