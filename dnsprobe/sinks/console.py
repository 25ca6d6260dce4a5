"""Queries for people at a terminal, and for their programs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from dnsprobe.model import Container, Identity, Process, Query
from dnsprobe.names.qtype import qtype_name
from dnsprobe.names.wire import to_text
from dnsprobe.sinks.fields import json_values
from dnsprobe.sinks.queue import Writer
from dnsprobe.sinks.wording import command, endpoint, moment, name, other_chain, summary
from dnsprobe.terminal import BOLD, CYAN, DIM, GREEN, Look, cells, cut
from dnsprobe.text import printable, shown

#: The rule that watches all names: naming it tells nothing.
_ALL_NAMES = "."

#: A command line is not cut shorter than this, however narrow the terminal is, nor is the tree drawn into it.
_LEAST = 20


def line(query: Query, identity: Identity) -> str:
    """Return one readable line for a log."""
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


def _corner(deepest: int, look: Look) -> str:
    """Return what leads to a child: narrower where a tree that deep leaves too little room for names."""
    whole = "└─ " if look.unicode else "`- "
    return whole if look.width is None or deepest * len(whole) + _LEAST <= look.width else whole[0]


def tree(
    query: Query,
    identity: Identity,
    offset_ns: int,
    *,
    colour: bool = False,
    width: int | None = None,
    unicode: bool = True,
) -> str:
    """Return a query's headline and, below it, its process tree: the oldest ancestor first, the asker last.

    ``offset_ns`` is what to add to the query's time for nanoseconds since the epoch; the time shown is local.
    Where who started it are others than its parents, a last line has those of the two that the tree does not show.
    ``colour`` allows ANSI escape sequences; ``width`` is that of the terminal in columns (None: no limit): the asker's
    command line is cut to it; without ``unicode`` all is ASCII. No newline at the end.
    """
    look = Look(colour=colour, width=width, unicode=unicode)
    paint, plain, ellipsis_mark = look.paint, look.plain, look.ellipsis_mark

    headline = [
        paint(moment(query.time_ns + offset_ns).astimezone().strftime("%H:%M:%S.%f")[:-3], DIM),
        paint(plain(to_text(query.qname)), BOLD),
        paint(qtype_name(query.qtype), CYAN),
        shown(query.transport),
        endpoint(query),
    ]
    if query.rule.name != _ALL_NAMES:
        headline.append(paint(plain(f"({shown(query.rule.name)})"), DIM))
    if query.repeats:
        headline.append(f"and {query.repeats} more")
    lines = [" ".join(headline)]

    ancestry = query.ancestry
    shown_chain = ancestry.lineage if ancestry.by_lineage else ancestry.chain
    steps: list[Process | None] = list(reversed(shown_chain))
    if not (ancestry.lineage_complete if ancestry.by_lineage else ancestry.complete):
        steps.insert(0, None)
    corner = _corner(len(steps) - 1, look)
    for depth, step in enumerate(steps):
        lead = " " * (len(corner) * (depth - 1)) + corner if depth else ""
        label = ellipsis_mark if step is None else plain(name(step))
        if depth < len(steps) - 1:
            gone = paint(" (exited)", DIM) if step is not None and step.exited else ""
            lines.append((paint(lead, DIM) if lead else "") + label + gone)
            continue
        asker = (paint(lead, DIM) if lead else "") + paint(label, BOLD, GREEN)
        owner = plain(printable(identity.user)) if identity.user else f"uid {query.uid}"
        asker += f" {owner}"
        if identity.cmdline:
            room = len(lead) + cells(label) + cells(owner) + 2
            text = plain(command(identity.cmdline))
            asker += " " + (cut(text, max(width - room, _LEAST), ellipsis_mark) if width else text)
        lines.append(asker)
    if ancestry.differs:
        lines.append(paint(plain(other_chain(ancestry, ellipsis_mark)), DIM))
    return "\n".join(lines)


def json_line(query: Query, identity: Identity, offset_ns: int) -> str:
    """Return a query as one JSON object on one line of ASCII; what is not known is null.

    ``time`` is in UTC (RFC 3339, microseconds); the other keys are those of :data:`dnsprobe.sinks.fields.FACTS`.
    Texts have the same escapes as everywhere (:func:`dnsprobe.text.printable`): JSON cannot carry bytes that are not
    UTF-8.
    """
    time = moment(query.time_ns + offset_ns).isoformat(timespec="microseconds")
    return json.dumps({"time": time, **json_values(query, identity)})


class ConsoleSink(Writer):
    """Writes each query as one line to the descriptor ``fd``; at most ``size`` wait.

    To a descriptor, not a stream: a thread that is stuck inside a stream's lock makes Python abort when it ends.
    """

    def __init__(
        self, size: int, fd: int, render: Callable[[Query, Identity], str] = line, encoding: str = "utf-8"
    ) -> None:
        def write(query: Query, identity: Identity) -> None:
            rest = f"{render(query, identity)}\n".encode(encoding, "backslashreplace")
            while rest:
                rest = rest[os.write(fd, rest) :]

        super().__init__(write, size, "console")
