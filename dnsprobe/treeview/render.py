"""A tally as people and programs read it: a tree with numbers and bars, folded stacks, JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dnsprobe.model import OTHER, UNKNOWN
from dnsprobe.terminal import BOLD, CYAN, DIM, GREEN, Look, cells, cut
from dnsprobe.text import number
from dnsprobe.treeview.aggregate import Node, Tally, walk

#: What a tree begins with whose upper end the kernel side did not follow.
_CUT = "..."
_ENCRYPTED = "connections of DNS over TLS, whose queries cannot be read"

_NOTES = {
    OTHER: "trees that are not told apart: above the limit on series (metrics.max_series), or no room in the kernel",
    UNKNOWN: "queries whose process was gone before its tree was known",
    _CUT: "the upper end of a tree that is deeper than 40 processes",
}

_LABEL_NOTES = {
    OTHER: "query types without a name, and what is above the limit on series",
    UNKNOWN: "what is counted for many processes together, in (other) or (unknown)",
}

#: Columns of a bar, and of a terminal that is wide enough for a longer one.
_BAR, _LONG_BAR, _WIDE = 10, 20, 120
#: Columns that the names get at least: the numbers go that leave them less, in this order.
_GIVEN_UP = {"bar": 24, "share": 24, "own": 24, "rate": 24, "total": 4}
#: Columns of a name that a deep branch leaves to it.
_LEAST_NAME = 16
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class _Row:
    """One line: what is drawn before the names, the names in one line with their parent's, and the last one's node."""

    lead: str
    names: tuple[str, ...]
    node: Node
    root: Node


def folded(tally: Tally) -> list[str]:
    """Return the queries as folded stacks, ``a;b;c 12``: what flame graph tools read, in the order of the alphabet."""
    return sorted(f"{';'.join(path)} {node.own}" for path, node in walk(tally.queries) if node.own)


def document(tally: Tally) -> dict[str, Any]:
    """Return the numbers as a JSON object.

    ``queries`` and ``encrypted_connections`` each have ``total`` and ``children``; each child has ``name``, ``own``
    (asked by the process itself), ``total`` (with all below it), ``children`` (the largest first), and ``per_second``
    from the second look on. Names have the escapes of the label ``tree``.
    """
    return {"queries": _totals(tally.queries), "encrypted_connections": _totals(tally.encrypted)}


def _totals(node: Node) -> dict[str, Any]:
    facts: dict[str, Any] = {"total": node.total}
    if node.per_second is not None:
        facts["per_second"] = round(node.per_second, 3)
    facts["children"] = [{"name": child.name, "own": child.own, **_totals(child)} for child in node.ordered]
    return facts


def forest(tally: Tally, look: Look, title: str, height: int | None = None) -> list[str]:
    """Return the tree in lines, none of them wider than ``look.width``.

    ``title`` says whose it is. With a ``height``, so many lines at most: the rest of the tree is counted in one.
    """
    sections = [list(_rows(root, look)) for root in (tally.queries, tally.encrypted) if root.total]
    lines = _summary(tally, look, title)
    notes = list(_notes(tally, look))
    # An empty line and a heading for each.
    room = None if height is None else height - len(lines) - len(notes) - 2 * len(sections)
    kept = []
    for rows in sections:
        kept.append(_fitting(rows, room))
        room = None if room is None else room - min(len(rows), len(kept[-1]) + 1)
    heads, *drawn = _table([row for rows in kept for row in rows], look)
    for rows, fitting in zip(sections, kept, strict=True):
        encrypted = rows[0].root is tally.encrypted
        lines += ["", _cut(_ENCRYPTED, look) if encrypted else heads]
        lines += drawn[: len(fitting)]
        drawn = drawn[len(fitting) :]
        if len(fitting) < len(rows):
            lines.append(look.paint(_cut(f"{number_of(len(rows) - len(fitting), 'line')} more", look), DIM))
    lines += notes
    return lines if height is None else lines[:height]


def _fitting(rows: list[_Row], room: int | None) -> list[_Row]:
    """Return as many rows as there is room for, one line less where the others have to be counted in one."""
    return rows if room is None or len(rows) <= room else rows[: max(room - 1, 0)]


def _cut(text: str, look: Look) -> str:
    return text if look.width is None else cut(text, look.width, look.ellipsis_mark)


def _summary(tally: Tally, look: Look, title: str) -> list[str]:
    text = f"{number_of(tally.queries.total, 'query', 'queries')} by {number_of(tally.trees, 'process tree')}"
    if tally.queries.per_second is not None:
        text += f", {_rate(tally.queries.per_second)} a second"
    return wrapped(look.plain(f"{text}, {title}"), look)


def number_of(count: int, what: str, many: str = "") -> str:
    """Return a number with its noun, its digits in groups of three."""
    return number(count, what, many).replace(str(count), f"{count:,}", 1)


def wrapped(text: str, look: Look) -> list[str]:
    """Return a text in lines that fit."""
    if look.width is None or cells(text) <= look.width:
        return [text]
    lines = textwrap.wrap(text, max(look.width, 1), break_on_hyphens=False)
    return [_cut(line, look) for line in lines]


def _notes(tally: Tally, look: Look) -> Iterator[str]:
    nodes = [node for root in (tally.queries, tally.encrypted) for _, node in walk(root)]
    texts = []
    for notes, of_labels in ((_NOTES, False), (_LABEL_NOTES, True)):
        names = {node.name for node in nodes if node.label == of_labels}
        texts += [f"{name}: {text}" for name, text in notes.items() if name in names]
    if tally.hidden:
        texts.append(f"{number_of(tally.hidden, 'query', 'queries')} more in {OTHER} or {UNKNOWN}, of no known unit")
    if texts:
        yield ""
    for text in texts:
        for line in wrapped(text, look):
            yield look.paint(line, DIM)


def _rows(root: Node, look: Look) -> Iterator[_Row]:
    branch, corner, down, blank = ("├─ ", "└─ ", "│  ", "   ") if look.unicode else ("|- ", "`- ", "|  ", "   ")
    waiting = [("", "", node) for node in reversed(root.ordered)]
    while waiting:
        before, mark, node = waiting.pop()
        names = [node.name]
        # A process that only has a child says nothing of its own: it goes into the line of the child, as in the label.
        while not node.label and not node.own and len(node.children) == 1:
            (node,) = node.children.values()
            names.append(node.name)
        yield _Row(before + mark, tuple(look.plain(name) for name in names), node, root)
        below = before + {branch: down, corner: blank}.get(mark, "")
        children = node.ordered
        for child in reversed(children):
            waiting.append((below, corner if child is children[-1] else branch, child))


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}" if 0 < per_second < 10 else f"{per_second:,.0f}"


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole
    if part < whole:
        percent = min(percent, 99.9)
    return f"{percent:.1f}%" if percent >= 0.1 else "<0.1%"


def _bar(part: int, whole: int, length: int, look: Look) -> str:
    """Return a bar of ``length`` columns; what is there at all shows."""
    if not look.unicode:
        return ("#" * max(part * length // whole, 1)).ljust(length)
    full, rest = divmod(max(part * length * 8 // whole, 1), 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(length)


def _table(rows: list[_Row], look: Look) -> list[str]:
    """Return the heads of the columns and the rows, in columns as wide as their widest number."""
    length = _LONG_BAR if look.width and look.width >= _WIDE else _BAR
    columns: dict[str, list[str]] = {
        "total": ["total", *(f"{row.node.total:,}" for row in rows)],
        "own": ["own", *(f"{row.node.own:,}" if row.node.own else "" for row in rows)],
        "rate": ["1/s", *(_rate(row.node.per_second or 0.0) for row in rows)],
        "share": ["share", *(_share(row.node.total, row.root.total) for row in rows)],
        "bar": [" " * length, *(_bar(row.node.total, row.root.total, length, look) for row in rows)],
    }
    if all(row.node.per_second is None for row in rows):
        del columns["rate"]
    widths = {name: max(map(len, texts)) for name, texts in columns.items()}
    for name, least in _GIVEN_UP.items():
        if look.width is not None and look.width - sum(width + 2 for width in widths.values()) < least:
            widths.pop(name, None)
    room = None if look.width is None else max(look.width - sum(width + 2 for width in widths.values()), 1)
    codes = {"own": (GREEN,), "share": (DIM,), "bar": (CYAN,)}
    lines = []
    for at in range(len(rows) + 1):
        numbers = [
            look.paint(columns[name][at].rjust(width), *((DIM,) if at == 0 else codes.get(name, (BOLD,))))
            for name, width in widths.items()
        ]
        names = _drawn(rows[at - 1], room, look) if at else look.paint("process tree"[:room], DIM)
        lines.append("  ".join([*numbers, names]))
    return lines


def _drawn(row: _Row, room: int | None, look: Look) -> str:
    """Return lead and names; in less room than they take, the upper names are left out first, then the end is cut."""
    lead, names, mark = row.lead, list(row.names), look.ellipsis_mark
    if room is not None:
        if len(lead) > max(room - _LEAST_NAME, 0):
            # The innermost branches are those that tell.
            kept = max(room - _LEAST_NAME - len(mark), 0)
            lead = cut(mark, room, mark) + lead[len(lead) - kept :] if room > len(mark) else ""
        left = room - len(lead)
        if cells(";".join(names)) > left:
            while len(names) > 1 and cells(";".join([mark, *names])) > left:
                del names[0]
            if len(names) < len(row.names):
                names.insert(0, mark)
            names = cut(";".join(names), left, mark).split(";")
    *upper, last = names
    asks = (BOLD, GREEN) if row.node.own else (BOLD,) if row.node.label else ()
    text = look.paint(lead, DIM) + "".join(f"{name}{look.paint(';', DIM)}" for name in upper)
    return text + (look.paint(last, *asks) if asks else last)
