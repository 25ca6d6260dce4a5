"""Queries as text: a line for the log, a tree for a terminal, JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from dnsprobe.model import Container, Identity, Outcome, Process, Query, TreeAlert
from dnsprobe.names.wire import to_text
from dnsprobe.sinks.fields import json_values, tree_json_values
from dnsprobe.sinks.queue import Entry, QueuedSink
from dnsprobe.sinks.wording import (
    alert,
    answers,
    command,
    endpoint,
    kind,
    moment,
    name,
    other_chain,
    result,
    summary,
    time_taken,
    tree_summary,
)
from dnsprobe.terminal import BOLD, CYAN, DIM, GREEN, PLAIN, RED, Look, cells, cut
from dnsprobe.text import printable, shown

#: The rule that watches all names; its name is not shown.
_ALL_NAMES = "."

#: The least number of columns for the command line, even in a narrow terminal. The indentation leaves them free.
_LEAST = 20


def line(query: Entry, identity: Identity) -> str:
    """Return one readable line for a log."""
    if isinstance(query, TreeAlert):
        return tree_summary(query)
    facts = [summary(query), f"server {endpoint(query)}", f"uid {query.uid}"]
    if identity.user:
        facts[-1] = f"user {printable(identity.user)}"
    if identity.unit:
        facts.append(f"unit {printable(identity.unit)}")
    if identity.container:
        facts.append(f"container {_container(identity.container)}")
    if identity.exe:
        facts.append(f"exe {printable(identity.exe)}")
    if identity.cmdline:
        facts.append(f"command {command(identity.cmdline)}")
    if query.ancestry.differs:
        facts.append(other_chain(query.ancestry))
    return ", ".join(facts)


def _container(container: Container) -> str:
    short_id = printable(container.short_id)
    return f"{short_id} ({printable(container.name)})" if container.name not in {"", container.id} else short_id


def _headline(query: Query, offset_ns: int, look: Look) -> str:
    paint, plain = look.paint, look.plain
    facts = [
        paint(moment(query.time_ns + offset_ns).astimezone().strftime("%H:%M:%S.%f")[:-3], DIM),
        paint("not read as a query:" if query.unread else plain(to_text(query.qname)), BOLD),
        paint(shown(query.unread) or kind(query), CYAN),
        shown(query.transport),
        endpoint(query),
    ]
    if query.rule.name not in {"", _ALL_NAMES}:
        facts.append(paint(plain(f"({shown(query.rule.name)})"), DIM))
    if query.repeats:
        facts.append(f"and {query.repeats} more")
    return " ".join(facts)


def _result(query: Query, outcome: Outcome, look: Look) -> str:
    """Return what became of a query, as much of it as fits into one line, and whether it is an alert."""
    mark = alert(query.alerts)
    room = None if look.width is None else look.width - cells(mark)
    return _outcome(outcome, room, look) + (look.paint(mark, BOLD, RED) if mark else "")


def _outcome(outcome: Outcome, room: int | None, look: Look) -> str:
    found = answers(outcome)
    if found and outcome.latency_ns is not None:
        arrow = "→" if look.unicode else "->"
        took = f" in {time_taken(outcome.latency_ns)}"
        more = "" if outcome.whole else f", {look.ellipsis_mark}"
        records = look.plain(f"{', '.join(found)}{more}")
        if room is not None:
            records = cut(records, max(room - cells(arrow) - len(took) - 1, _LEAST), look.ellipsis_mark)
        return look.paint(f"{arrow} {records}{took}", GREEN)
    return look.paint(look.plain(result(outcome)), CYAN if outcome.rcode in {"NOERROR", "NODATA"} else RED)


def late_result(query: Query, outcome: Outcome, offset_ns: int, look: Look) -> str:
    """Return a result that came after its query was shown: the headline again, who asked, and the result."""
    asker = look.paint(look.plain(name(query.ancestry.asker)), BOLD, GREEN)
    return "\n".join([f"{_headline(query, offset_ns, look)} by {asker}", _result(query, outcome, look)])


def _branch(deepest: int, look: Look) -> str:
    """Return the mark before a child: one column wide if the tree is too deep for the whole mark."""
    whole = "└─ " if look.unicode else "`- "
    return whole if look.width is None or deepest * len(whole) + _LEAST <= look.width else whole[0]


def _asker(query: Query, identity: Identity, lead: str, look: Look) -> str:
    """Return the last line of the tree: the asking process with its user and as much of its command line as fits."""
    label = look.plain(name(query.ancestry.asker))
    owner = look.plain(printable(identity.user)) if identity.user else f"uid {query.uid}"
    text = f"{look.paint(lead, DIM)}{look.paint(label, BOLD, GREEN)} {owner}"
    if not identity.cmdline:
        return text
    cmdline = look.plain(command(identity.cmdline))
    if look.width is not None:
        used = len(lead) + cells(label) + cells(owner) + 2
        cmdline = cut(cmdline, max(look.width - used, _LEAST), look.ellipsis_mark)
    return f"{text} {cmdline}"


def tree(query: Query, identity: Identity, offset_ns: int, look: Look = PLAIN) -> str:
    """Return a query's headline and, below it, its process tree: the oldest ancestor first, the asker last.

    The time is local; ``offset_ns`` leads from the query's time to nanoseconds since the epoch. If the processes that
    started the asker are not its parents, a last line has the chain that the tree does not show. There is no newline at
    the end.
    """
    ancestry = query.ancestry
    chain, complete = ancestry.chain, ancestry.complete
    if ancestry.by_lineage:
        chain, complete = ancestry.lineage, ancestry.lineage_complete
    ancestors: list[Process | None] = [*([] if complete else [None]), *reversed(chain[1:])]
    branch = _branch(len(ancestors), look)
    lines = [_headline(query, offset_ns, look)]
    if query.outcome is not None:
        if query.is_late:
            return late_result(query, query.outcome, offset_ns, look)
        lines.append(_result(query, query.outcome, look))
    lead = ""
    for ancestor in ancestors:
        label = look.ellipsis_mark if ancestor is None else look.plain(name(ancestor))
        exited = look.paint(" (exited)", DIM) if ancestor is not None and ancestor.exited else ""
        lines.append(look.paint(lead, DIM) + label + exited)
        lead = " " * len(lead) + branch
    lines.append(_asker(query, identity, lead, look))
    if ancestry.differs:
        lines.append(look.paint(look.plain(other_chain(ancestry, look.ellipsis_mark)), DIM))
    return "\n".join(lines)


def tree_alert(found: TreeAlert, offset_ns: int, look: Look) -> str:
    """Return which process tree has sent too many queries, and when that was found."""
    time = moment(found.time_ns + offset_ns).astimezone().strftime("%H:%M:%S.%f")[:-3]
    return f"{look.paint(time, DIM)} {look.paint(look.plain(tree_summary(found)), BOLD, RED)}"


def json_line(query: Entry, identity: Identity, offset_ns: int) -> str:
    """Return a query as one JSON object on one line of ASCII; what is not known is null.

    ``time`` is in UTC (RFC 3339, microseconds); the other keys are those of :data:`dnsprobe.sinks.fields.FACTS`.
    Texts have the same escapes as everywhere (:func:`dnsprobe.text.printable`): JSON cannot carry bytes that are not
    UTF-8.
    """
    time = moment(query.time_ns + offset_ns).isoformat(timespec="microseconds")
    values = tree_json_values(query) if isinstance(query, TreeAlert) else json_values(query, identity)
    return json.dumps({"time": time, **values})


class ConsoleSink(QueuedSink):
    """Writes each query as one line to the descriptor ``fd``; at most ``size`` queries wait.

    It writes to a descriptor because a thread that is stuck inside the lock of a stream makes Python abort at exit.
    """

    def __init__(
        self, size: int, fd: int, render: Callable[[Entry, Identity], str] = line, encoding: str = "utf-8"
    ) -> None:
        at_line_start = True

        def write(query: Entry, identity: Identity) -> None:
            nonlocal at_line_start
            rest = f"{render(query, identity)}\n".encode(encoding, "backslashreplace")
            # A disk that is full takes a part of a line. The next line must not continue it.
            if not at_line_start:
                rest = b"\n" + rest
            while rest:
                written = os.write(fd, rest)
                at_line_start = rest[:written].endswith(b"\n")
                rest = rest[written:]

        super().__init__(write, size, "console")
