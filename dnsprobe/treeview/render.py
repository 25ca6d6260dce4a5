"""Renders counts by process tree: as a tree with numbers and bars, as folded stacks, as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dnsprobe.model import OTHER, UNKNOWN
from dnsprobe.terminal import BOLD, CYAN, DIM, GREEN, RED, Look, cells, cut
from dnsprobe.text import number
from dnsprobe.treeview.aggregate import RCODE, TreeCounts
from dnsprobe.treeview.nodes import Node, walk
from dnsprobe.treeview.results import Results, by_number, failed, known, negative, share

#: The first name of a tree whose top was cut off in the kernel.
_CUT_OFF = "..."
_ENCRYPTED = "connections of DNS over TLS, whose queries are encrypted"

_TREE_NOTES = {
    OTHER: "trees counted together, above the limit on series (metrics.max_series) or without room in the kernel",
    UNKNOWN: "queries whose process exited before its tree was known",
    _CUT_OFF: "the tree is deeper than 40 processes, and its top is cut off",
}

_LABEL_NOTES = {
    OTHER: "query types without a name, and series above the limit (metrics.max_series)",
    UNKNOWN: "queries of many processes that are counted together, in (other) or (unknown)",
}

#: What (other) is as the value of these labels.
_OTHER_NOTES = {
    "server": "servers for which the kernel had no room, or that are not known",
    RCODE: "other response codes",
}

#: The width of a bar, and of a longer bar in a terminal of at least _WIDE columns.
_BAR, _LONG_BAR, _WIDE = 10, 20, 120
#: A column of numbers is left out if it would leave fewer terminal columns than this for the names. The first in this
#: order is left out first.
_LEAST_ROOM = {"bar": 24, "negative": 24, "share": 24, "own": 24, "failed": 24, "rate": 24, "total": 4}
#: The least number of terminal columns for the names in a deep branch.
_LEAST_NAMES = 16
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class _Row:
    """One line: the branch marks, the names of a chain of parents and children, and the node of the last name."""

    branches: str
    names: tuple[str, ...]
    node: Node
    root: Node
    rate: float | None
    is_label: bool


def folded_stacks(counts: TreeCounts) -> list[str]:
    """Return the queries as folded stacks, ``a;b;c 12``, in alphabetical order. Flame graph tools read this format."""
    return sorted(f"{';'.join(path)} {node.own}" for path, node in walk(counts.queries) if node.own)


def json_object(counts: TreeCounts) -> dict[str, Any]:
    """Return the numbers as a JSON object.

    ``queries`` and ``encrypted_connections`` each have ``total`` and ``children``. Each child has ``name``, ``own``
    (queries of the process itself), ``total`` (with all processes below it), ``children`` (the largest first), and
    ``per_second`` from the second reading on. Names have the escapes of the label ``tree``.

    If the daemon tracks answers, ``queries`` and its children also have ``results`` (queries by response code, or by
    the reason why no answer came), ``failed``, ``negative`` and ``without_result``. ``waiting`` is in ``queries`` only.
    """
    queries = _totals(counts.queries, counts.rates, counts.results)
    if counts.waiting is not None:
        queries["waiting"] = counts.waiting
    return {"queries": queries, "encrypted_connections": _totals(counts.encrypted, counts.rates, None)}


def _totals(node: Node, rates: Mapping[Node, float], results: Mapping[Node, Results] | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"total": node.total}
    if node in rates:
        facts["per_second"] = round(rates[node], 3)
    if results is not None:
        facts |= _result_facts(node, results.get(node, {}))
    children = [(child, _totals(child, rates, results)) for child in node.by_size]
    facts["children"] = [{"name": child.name, "own": child.own, **totals} for child, totals in children]
    return facts


def _result_facts(node: Node, results: Results) -> dict[str, Any]:
    return {
        "results": dict(by_number(results)),
        "failed": failed(results),
        "negative": negative(results),
        "without_result": node.total - known(results),
    }


def tree_lines(counts: TreeCounts, look: Look, title: str, height: int | None = None) -> list[str]:
    """Return the tree as lines, none of them wider than ``look.width``.

    ``title`` names the daemon. ``height`` limits the number of lines: the last line of a table that is cut off has the
    number of missing lines.
    """
    sections = [list(_rows(counts, root, look)) for root in (counts.queries, counts.encrypted) if root.total]
    lines = _summary(counts, look, title)
    notes = list(_notes(counts, look))
    # Each section has an empty line and a heading.
    room = None if height is None else height - len(lines) - len(notes) - 2 * len(sections)
    kept = []
    for rows in sections:
        kept.append(_fitting(rows, room))
        room = None if room is None else room - min(len(rows), len(kept[-1]) + 1)
    header, *body = _table([row for rows in kept for row in rows], look, _shown_results(counts))
    for rows, fitting in zip(sections, kept, strict=True):
        encrypted = rows[0].root is counts.encrypted
        lines += ["", _cut(_ENCRYPTED, look) if encrypted else header]
        lines += body[: len(fitting)]
        body = body[len(fitting) :]
        if len(fitting) < len(rows):
            lines.append(look.paint(_cut(number_of(len(rows) - len(fitting), "more line"), look), DIM))
    lines += notes
    return lines if height is None else lines[:height]


def _fitting(rows: list[_Row], room: int | None) -> list[_Row]:
    """Return the rows that fit; if not all do, one line stays free for the number of the others."""
    return rows if room is None or len(rows) <= room else rows[: max(room - 1, 0)]


def _cut(text: str, look: Look) -> str:
    return text if look.width is None else cut(text, look.width, look.ellipsis_mark)


def _summary(counts: TreeCounts, look: Look, title: str) -> list[str]:
    text = f"{number_of(counts.queries.total, 'query', 'queries')} by {number_of(len(counts.trees), 'process tree')}"
    if counts.queries in counts.rates:
        text += f", {_rate(counts.rates[counts.queries])} per second"
    results = (_shown_results(counts) or {}).get(counts.queries)
    if results:
        text += f", {_failed(results)} failed, {_negative(results)} negative"
    return wrap(look.plain(f"{text}, {title}"), look)


def number_of(count: int, what: str, many: str = "") -> str:
    """Return a number with its noun: ``1,234 queries``."""
    return number(count, what, many).replace(str(count), f"{count:,}", 1)


def wrap(text: str, look: Look) -> list[str]:
    """Return a text as lines that fit into the terminal."""
    if look.width is None or cells(text) <= look.width:
        return [text]
    lines = textwrap.wrap(text, max(look.width, 1), break_on_hyphens=False)
    return [_cut(line, look) for line in lines]


def _shown_results(counts: TreeCounts) -> Mapping[Node, Results] | None:
    """Return the results whose shares are shown: those since the previous reading, or all at the first one."""
    return counts.results if counts.recent is None else counts.recent


def _notes(counts: TreeCounts, look: Look) -> Iterator[str]:
    nodes = [node for root in (counts.queries, counts.encrypted) for _, node in walk(root)]
    label_notes = _LABEL_NOTES | ({OTHER: _OTHER_NOTES[counts.by]} if counts.by in _OTHER_NOTES else {})
    texts = []
    for notes, for_labels in ((_TREE_NOTES, False), (label_notes, True)):
        names = {node.name for node in nodes if (node in counts.label_nodes) == for_labels}
        texts += [f"{name}: {text}" for name, text in notes.items() if name in names]
    if counts.unit_unknown:
        more = number_of(counts.unit_unknown, "more query", "more queries")
        texts.append(f"{more} in {OTHER} or {UNKNOWN}, whose unit is unknown")
    texts += _result_notes(counts)
    if texts:
        yield ""
    for text in texts:
        for line in wrap(text, look):
            yield look.paint(line, DIM)


def _result_notes(counts: TreeCounts) -> Iterator[str]:
    """Yield what the shares mean, and which queries have no result."""
    if counts.results is None or not counts.queries.total:
        return
    of = "queries with a result" if counts.recent is None else "queries that got a result since the previous reading"
    yield f"failed: answered with an error, or not at all; negative: NXDOMAIN and NODATA; as shares of the {of}"
    if counts.without_result:
        text = f"{number_of(counts.without_result, 'query has', 'queries have')} no result"
        if counts.waiting is None:
            yield f"{text}: waiting or untracked"
        else:
            yield f"{text}: {counts.waiting:,} waiting, {counts.without_result - counts.waiting:,} untracked"


def _rows(counts: TreeCounts, root: Node, look: Look) -> Iterator[_Row]:
    branch, corner, down, blank = ("├─ ", "└─ ", "│  ", "   ") if look.unicode else ("|- ", "`- ", "|  ", "   ")
    waiting = [("", "", node) for node in reversed(root.by_size)]
    while waiting:
        before, mark, node = waiting.pop()
        names = [node.name]
        # A process without queries and with one child shares the line of the child, as in the label "tree".
        while node not in counts.label_nodes and not node.own and len(node.children) == 1:
            (node,) = node.children.values()
            names.append(node.name)
        yield _Row(
            before + mark,
            tuple(look.plain(name) for name in names),
            node,
            root,
            counts.rates.get(node),
            node in counts.label_nodes,
        )
        below = before + {branch: down, corner: blank}.get(mark, "")
        children = node.by_size
        for child in reversed(children):
            waiting.append((below, corner if child is children[-1] else branch, child))


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}" if 0 < per_second < 10 else f"{per_second:,.0f}"


def _failed(results: Results) -> str:
    return share(failed(results), known(results)) if results else ""


def _negative(results: Results) -> str:
    return share(negative(results), known(results)) if results else ""


def _bar(part: int, whole: int, length: int, look: Look) -> str:
    """Return a bar of ``length`` columns. A part above zero is always visible."""
    if not look.unicode:
        return ("#" * max(part * length // whole, 1)).ljust(length)
    full, rest = divmod(max(part * length * 8 // whole, 1), 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(length)


def _table(rows: list[_Row], look: Look, results: Mapping[Node, Results] | None) -> list[str]:
    """Return the header and the rows. Each column is as wide as its widest number."""
    length = _LONG_BAR if look.width and look.width >= _WIDE else _BAR
    columns: dict[str, list[str]] = {
        "total": ["total", *(f"{row.node.total:,}" for row in rows)],
        "own": ["own", *(f"{row.node.own:,}" if row.node.own else "" for row in rows)],
        "rate": ["1/s", *(_rate(row.rate or 0.0) for row in rows)],
        "share": ["share", *(share(row.node.total, row.root.total) for row in rows)],
        "failed": ["failed", *(_failed((results or {}).get(row.node, {})) for row in rows)],
        "negative": ["negative", *(_negative((results or {}).get(row.node, {})) for row in rows)],
        "bar": [" " * length, *(_bar(row.node.total, row.root.total, length, look) for row in rows)],
    }
    if all(row.rate is None for row in rows):
        del columns["rate"]
    if not any(columns["failed"][1:]):
        del columns["failed"], columns["negative"]
    widths = {name: max(map(len, texts)) for name, texts in columns.items()}
    for name, least in _LEAST_ROOM.items():
        if look.width is not None and look.width - sum(width + 2 for width in widths.values()) < least:
            widths.pop(name, None)
    room = None if look.width is None else max(look.width - sum(width + 2 for width in widths.values()), 1)
    lines = []
    for at in range(len(rows) + 1):
        numbers = [
            look.paint(columns[name][at].rjust(width), *_codes(name, columns[name][at] if at else "0%"))
            for name, width in widths.items()
        ]
        names = _names_cell(rows[at - 1], room, look) if at else look.paint("process tree"[:room], DIM)
        lines.append("  ".join([*numbers, names]))
    return lines


def _codes(column: str, text: str) -> tuple[str, ...]:
    """Return the SGR codes of a number; a share of nothing is dim."""
    codes = {"own": (GREEN,), "share": (DIM,), "bar": (CYAN,), "failed": (RED,), "negative": (DIM,)}
    return (DIM,) if text == "0%" else codes.get(column, (BOLD,))


def _names_cell(row: _Row, room: int | None, look: Look) -> str:
    """Return branches and names. If there is not enough room, the first names are left out, then the end is cut."""
    branches, names, mark = row.branches, list(row.names), look.ellipsis_mark
    if room is not None:
        if len(branches) > max(room - _LEAST_NAMES, 0):
            # The innermost branches show where the process belongs.
            kept = max(room - _LEAST_NAMES - len(mark), 0)
            branches = cut(mark, room, mark) + branches[len(branches) - kept :] if room > len(mark) else ""
        left = room - len(branches)
        if cells(";".join(names)) > left:
            while len(names) > 1 and cells(";".join([mark, *names])) > left:
                del names[0]
            if len(names) < len(row.names):
                names.insert(0, mark)
            names = cut(";".join(names), left, mark).split(";")
    *upper, last = names
    codes = (BOLD, GREEN) if row.node.own else (BOLD,) if row.is_label else ()
    text = look.paint(branches, DIM) + "".join(f"{name}{look.paint(';', DIM)}" for name in upper)
    return text + (look.paint(last, *codes) if codes else last)
