"""The wording of facts about a query for people, the same in every output."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from dnsprobe.model import Ancestry, Outcome, Process, Query, TreeAlert
from dnsprobe.names.qclass import IN, qclass_name
from dnsprobe.names.qtype import qtype_name
from dnsprobe.names.wire import to_text
from dnsprobe.text import printable, shown

#: Records that a sentence names at most.
_SHOWN = 4


def wall_offset_ns() -> int:
    """Return the offset from a query's ``time_ns`` (CLOCK_MONOTONIC) to nanoseconds since the epoch."""
    return time.time_ns() - time.monotonic_ns()


def moment(time_ns: int) -> datetime:
    """Return nanoseconds since the epoch as a moment in UTC, cut to whole microseconds."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)


def arguments(cmdline: bytes) -> list[str]:
    """Return the arguments of a NUL-separated command line, each safe to show.

    Empty arguments at the end are left out, because setproctitle(3) fills its space with NULs.
    """
    return [printable(argument) for argument in cmdline.rstrip(b"\0").split(b"\0")]


def command(cmdline: bytes) -> str:
    """Return a NUL-separated command line as one line, safe to show, its arguments quoted as for a shell."""
    return shlex.join(arguments(cmdline))


def name(process: Process) -> str:
    """Return a process as ``comm[pid]``."""
    return f"{printable(process.comm)}[{process.tgid}]"


def process_list(processes: Sequence[Process], *, complete: bool, ellipsis_mark: str = "...") -> str:
    """Return processes in one line, nearest first; those that have exited are marked."""
    names = [f"{name(process)} (exited)" if process.exited else name(process) for process in processes]
    return ", ".join(names if complete else [*names, ellipsis_mark])


def other_chain(ancestry: Ancestry, ellipsis_mark: str = "...") -> str:
    """Return the chain (parents or starters) that the tree does not show; empty if both are the same."""
    if not ancestry.differs:
        return ""
    if ancestry.by_lineage:
        return f"now below {process_list(ancestry.chain[1:], complete=ancestry.complete, ellipsis_mark=ellipsis_mark)}"
    starters = process_list(ancestry.lineage[1:], complete=ancestry.lineage_complete, ellipsis_mark=ellipsis_mark)
    return f"started by {starters}"


def endpoint(query: Query) -> str:
    """Return the server as ``address#port``, the form that dig(1) uses for both address families."""
    return f"{query.server}#{query.port}"


def kind(query: Query) -> str:
    """Return the query type. A class that is not IN stands before it, as in zone files: ``CH TXT``."""
    qtype = qtype_name(query.qtype)
    return qtype if query.qclass == IN else f"{qclass_name(query.qclass)} {qtype}"


#: Why a query has no answer.
_NO_ANSWER = {
    "timeout": "no answer",
    "closed": "no answer before the socket was closed",
    "unreachable": "refused by ICMP",
    "superseded": "sent again before an answer came",
}


def time_taken(latency_ns: int) -> str:
    """Return a latency for people, with two or three digits: ``0.25 ms``, ``12 ms``, ``1.3 s``."""
    milliseconds = latency_ns / 1e6
    if milliseconds >= 999.5:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.2g} ms"


def answers(outcome: Outcome) -> list[str]:
    """Return the data of the records that people look for in an answer: those of its last name, without signatures."""
    last = outcome.records[-1].name.lower() if outcome.records else ""
    return [
        shown(record.data) for record in outcome.records if record.rdtype != "RRSIG" and record.name.lower() == last
    ]


def result(outcome: Outcome) -> str:
    """Return what became of a query, in a few words."""
    if outcome.latency_ns is None:
        return _NO_ANSWER[outcome.reason]
    return f"{shown(outcome.rcode)} in {time_taken(outcome.latency_ns)}"


def alert(reasons: Sequence[str]) -> str:
    """Return why an entry is an alert, such as ``(alert: rcode, latency)``, behind a blank; empty if it is none."""
    return f" (alert: {', '.join(reasons)})" if reasons else ""


def summary(query: Query) -> str:
    """Return who asked for what, and what became of it, in one line. An alert ends with why it is one."""
    if query.outcome is None:
        return _question(query)
    found = answers(query.outcome)
    more = [f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    records = [", ".join([*found[:_SHOWN], *more])] if found else []
    return ": ".join([_question(query), result(query.outcome), *records]) + alert(query.alerts)


def tree_summary(found: TreeAlert) -> str:
    """Return which process tree has sent too many queries, in one line."""
    queries, window_ns = found.rate
    return (
        f"{shown(found.tree)} sent {found.queries} queries of {shown(found.rule.name)} within {window_ns / 1e9:g} s, "
        f"more than {queries}{alert(['rate'])}"
    )


def _question(query: Query) -> str:
    ancestry = query.ancestry
    if query.unread:
        asked = f"sent what dnsprobe could not read as a query ({shown(query.unread)}, {shown(query.transport)})"
    else:
        asked = f"asked for {to_text(query.qname)} ({kind(query)}, {shown(query.transport)})"
    text = f"{name(ancestry.asker)} {asked} by {ancestry.tree}"
    return f"{text}, and {query.repeats} more like it" if query.repeats else text
