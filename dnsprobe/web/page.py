"""The page for people: one HTML document with its data, style and script in it.

All that it shows comes from processes or from the configuration, so each value goes through ``html.escape``, and what
the script needs is JSON that no HTML parser mistakes for a tag. Beyond that, the Content-Security-Policy allows the
script and the style by their hashes and nothing else at all.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import html
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dnsprobe import __version__
from dnsprobe.model import Query, Rule
from dnsprobe.names.qtype import qtype_name
from dnsprobe.names.wire import to_text
from dnsprobe.pipeline.series import total_queries
from dnsprobe.sinks.metrics import Snapshot
from dnsprobe.sinks.wording import endpoint, moment, name
from dnsprobe.text import number, shown

#: So many of the last queries are shown; the daemon keeps no more.
LAST_QUERIES = 100

#: Nodes of the graph, and of the list that is there without a script: a host has more trees than anybody looks at.
_MAX_NODES = 2000
_MAX_LISTED = 200
_MAX_RULES = 200
#: Characters of a rule's name or pattern: an expression may be as long as you like.
_MAX_TEXT = 300

_FOLDER = Path(__file__).parent
_STYLE = (_FOLDER / "page.css").read_text("utf-8")
_SCRIPT = (_FOLDER / "page.js").read_text("utf-8")


def _hash(inline: str) -> str:
    """Return the source expression that allows an inline element with this content (CSP Level 3, section 8.4)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


CONTENT_TYPE = "text/html; charset=utf-8"
HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(_SCRIPT)}",
            f"style-src {_hash(_STYLE)}",
            "connect-src 'self'",
            "img-src data:",  # the empty icon, without which browsers ask for /favicon.ico
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows, at one moment.

    ``unserved`` has, for each path without a hook, what was tried; ``lineage_problem`` why lineages are not followed,
    empty where they are. ``last`` are the last queries told, the newest last; ``offset_ns`` is what to add to their
    times, and ``time_ns`` the moment, both for nanoseconds since the epoch.
    """

    snapshot: Snapshot = field(default_factory=Snapshot)
    ready: bool = True
    rules: Sequence[Rule] = ()
    unserved: Mapping[str, str] = field(default_factory=dict)
    lineage_problem: str = ""
    last: Sequence[Query] = ()
    offset_ns: int = 0
    time_ns: int = 0


class Node:
    """A process of the tree: ``total`` queries, its own and those of all below it."""

    __slots__ = ("children", "name", "total")

    def __init__(self, name: str) -> None:
        self.name = name
        self.total = 0
        self.children: dict[str, Node] = {}


def grow(snapshot: Snapshot) -> Node:
    """Return the queries of all trees as one tree, whose root stands for pid 1 and has no name."""
    trees: Counter[str] = Counter()
    for series, queries in snapshot.counts.items():
        if not series.encrypted:
            trees[series.tree] += queries
    root = Node("")
    for tree, queries in trees.items():
        root.total += queries
        node = root
        for element in tree.split(";"):
            child = node.children.get(element)
            if child is None:
                child = node.children[element] = Node(element)
            child.total += queries
            node = child
    return root


@dataclass(slots=True)
class Kept:
    """A node that is shown, with its children by name; ``more`` of these, with ``rest`` queries, are not shown.

    ``own`` are the queries of the node itself.
    """

    name: str
    total: int
    own: int
    children: list[Kept] = field(default_factory=list)
    more: int = 0
    rest: int = 0


def prune(root: Node, limit: int) -> Kept:
    """Return the ``limit`` nodes with the most queries. No node has more than its parent, so they are one tree."""

    def keep(node: Node) -> Kept:
        below = sum(child.total for child in node.children.values())
        return Kept(node.name, node.total, node.total - below, [], len(node.children), below)

    top = keep(root)
    # The order of arrival decides between equals: nodes themselves do not compare.
    waiting: list[tuple[int, int, Node, Kept]] = []
    arrived = 0

    def queue(node: Node, kept: Kept) -> None:
        nonlocal arrived
        for child in node.children.values():
            heapq.heappush(waiting, (-child.total, arrived, child, kept))
            arrived += 1

    queue(root, top)
    for _ in range(limit - 1):
        if not waiting:
            break
        _, _, node, parent = heapq.heappop(waiting)
        kept = keep(node)
        parent.children.append(kept)
        parent.more -= 1
        parent.rest -= node.total
        queue(node, kept)
    _sort(top)
    return top


def _sort(node: Kept) -> None:
    # By name, not by number: what one looks at stays where it is while numbers grow.
    node.children.sort(key=lambda child: child.name)
    for child in node.children:
        _sort(child)


def _flat(node: Kept, parent: int, rows: list[list[int | str]]) -> list[list[int | str]]:
    at = len(rows)
    rows.append([parent, node.name, node.total, node.own, node.more, node.rest])
    for child in node.children:
        _flat(child, at, rows)
    return rows


def embedded(value: object) -> str:
    """Return a value as JSON for a ``script`` element: neither ``</script>`` nor ``<!--`` can be in it."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(value: str) -> str:
    """Return a value from outside as HTML that has its own writing direction; controls are made visible."""
    return f"<bdi>{html.escape(shown(value))}</bdi>"


def _short(value: str) -> str:
    return _text(value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "…")


def _time(time_ns: int, *, day: bool) -> str:
    """Return a moment in local time: with its day to the second, without its day to the millisecond."""
    utc = moment(time_ns)
    local = utc.astimezone()
    text = f"{local:%Y-%m-%d %H:%M:%S}" if day else local.time().isoformat("milliseconds")
    machine_readable = utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f'<time datetime="{machine_readable}">{text}</time>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """Return rows of cells, which are HTML already, as a table; a column that begins with ``#`` has numbers."""
    heads = [(column.lstrip("#"), ' class="number"' if column.startswith("#") else "") for column in columns]
    head = "".join(f'<th scope="col"{style}>{title}</th>' for title, style in heads)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td{style} data-label="{title}">{cell}</td>' for (title, style), cell in zip(heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    shape = f' class="{kind}"' if kind else ""
    return f"<table{shape}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _live(identifier: str, content: str) -> str:
    """Return a part of the page that a refresh puts in the place of the old one."""
    return f'<div id="{identifier}" data-live>\n{content}\n</div>'


def _section(identifier: str, title: str, content: str) -> str:
    return f'<section aria-labelledby="{identifier}">\n<h2 id="{identifier}">{title}</h2>\n{content}\n</section>'


def _summary(page: Page, queries: int) -> str:
    now = page.snapshot
    trees = len({series.tree for series in now.counts if not series.encrypted})
    encrypted = sum(queries for series, queries in now.counts.items() if series.encrypted)
    facts = [
        f"<strong>{queries:,}</strong> {'query' if queries == 1 else 'queries'} by {trees:,} process"
        f" {'tree' if trees == 1 else 'trees'}, {number(now.rules, 'rule')}"
    ]
    if encrypted:
        facts.append(f"{encrypted:,} encrypted {'connection' if encrypted == 1 else 'connections'}")
    ready = '<span class="good">ready</span>' if page.ready else '<span class="bad">not ready: not all is proved</span>'
    zone = moment(page.time_ns).astimezone().strftime("%z")
    facts.append(f"as of {_time(page.time_ns, day=True)} {zone}")
    return f"<p>{ready} · {' · '.join(facts)}</p>"


def _listed(node: Kept) -> Iterator[str]:
    yield "<ul>"
    for child in sorted(node.children, key=lambda child: -child.total):
        yield f"<li>{_text(child.name)} <span>{child.total:,}</span>"
        if child.children or child.more:
            yield from _listed(child)
        yield "</li>"
    if node.more:
        yield f"<li>{node.more:,} more <span>{node.rest:,}</span></li>"
    yield "</ul>"


def _list(tree: Kept) -> str:
    return "\n".join(_listed(tree)) if tree.total else "<p>No query yet.</p>"


def _last(page: Page) -> str:
    if not page.last:
        return "<p>No query yet.</p>"
    rows = [
        (
            _time(query.time_ns + page.offset_ns, day=False),
            _text(name(query.ancestry.asker)),
            _text(query.ancestry.tree),
            _text(to_text(query.qname)),
            _text(qtype_name(query.qtype)),
            _text(query.transport),
            _text(endpoint(query)),
        )
        for query in reversed(page.last)
    ]
    columns = ("Time", "Process", "Tree", "Name", "Type", "Transport", "Server")
    return _table(columns, rows, kind="queries")


def _rules(page: Page) -> str:
    counted: Counter[str] = Counter()
    for series, queries in page.snapshot.counts.items():
        if not series.encrypted:
            counted[series.domain] += queries
    ruled = {rule.name for rule in page.rules}
    rows = [(rule.name, rule.pattern) for rule in page.rules]
    rows += [(domain, "") for domain in sorted(counted.keys() - ruled)]
    # With few rules the order of the configuration; with many, first those that count.
    if len(rows) > _MAX_RULES:
        rows.sort(key=lambda row: -counted[row[0]])
    cells = [
        (_short(domain), _short(pattern) if pattern else "not watched any more", f"{counted[domain]:,}")
        for domain, pattern in rows[:_MAX_RULES]
    ]
    table = _table(("Rule", "Pattern", "#Queries"), cells)
    left_out = len(rows) - _MAX_RULES
    return table + (f"\n<p>{left_out:,} more, with fewer queries.</p>" if left_out > 0 else "")


def _paths(page: Page) -> str:
    now = page.snapshot
    proved = {True: '<span class="good">proved</span>', False: '<span class="bad">not proved</span>'}
    rows = [
        (_text(path), _text(hook), _text(symbol), proved[bool(now.verified.get(path))])
        for path, hook, symbol in now.hooks
    ]
    rows += [
        (_text(path), "none", _short(tried), '<span class="bad">not seen</span>')
        for path, tried in page.unserved.items()
    ]
    lineage = f"not followed: {_short(page.lineage_problem)}" if page.lineage_problem else "followed"
    return f"{_table(('Path', 'Hook', 'Where', 'Proof'), rows)}\n<p>Who started whom: {lineage}.</p>"


def _losses(page: Page) -> str:
    now = page.snapshot
    rows = [
        (
            _text(loss.metric),
            _text(loss.reason),
            html.escape(f"{loss.what} ({loss.counted})"),
            f'<span class="bad">{times:,}</span>' if times else "0",
        )
        for loss, times in now.losses.items()
    ]
    reload = _time(int(now.reload_time * 1e9), day=True)
    good = "read" if now.reload_successful else '<span class="bad">not good when it was last read</span>, before that'
    entries = number(now.journal_entries, "journal entry", "journal entries")
    about = f"<p>{number(now.events, 'event')} from the kernel, {entries}. Configuration {good} at {reload}.</p>"
    return _table(("Metric", "Reason", "Meaning", "#Lost"), rows) + f"\n{about}"


#: The script brings these to life; without it they are not there.
_GRAPH = """<div id="graph" hidden>
<div class="bar">
<label for="search">Search</label>
<input id="search" type="search" autocomplete="off" spellcheck="false" maxlength="100">
<button id="back" type="button" disabled>Show all</button>
<output id="found" for="search"></output>
</div>
<div id="icicle" role="tree" aria-label="Queries by process tree" aria-describedby="keys"></div>
<p id="told" aria-hidden="true"></p>
<p id="keys" class="note">Click or Enter zooms in, Escape shows all; arrow keys go from process to process.</p>
</div>"""


def render(page: Page) -> bytes:
    """Return the document, in UTF-8."""
    root = grow(page.snapshot)
    graph, listed = prune(root, _MAX_NODES), prune(root, _MAX_LISTED)
    trees = f"""{_GRAPH}
<details id="as-list" open>
<summary>As a list</summary>
{_live("list", _list(listed))}
</details>"""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>dnsprobe</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>dnsprobe <small>{html.escape(__version__)}</small></h1>
{_live("summary", _summary(page, total_queries(page.snapshot.counts)))}
<p id="refresh" hidden><button id="pause" type="button" aria-pressed="false">Pause</button>
<span id="state" role="status"></span></p>
</header>
<main>
{_section("trees", "Queries by process tree", trees)}
{_section("queries", "Last queries", _live("last", _last(page)))}
{_section("watched", "What is watched", _live("rules", _rules(page)))}
{_section("seen", "Where queries are seen", _live("paths", _paths(page)))}
{_section("lost", "What was lost", _live("losses", _losses(page)))}
</main>
<footer>
<a href="/metrics">Metrics</a> for Prometheus · <a href="/-/ready">ready?</a> · <a href="/-/healthy">healthy?</a>
</footer>
<script type="application/json" id="data" data-live>{embedded(_flat(graph, -1, []))}</script>
<script>{_SCRIPT}</script>
</body>
</html>
""".encode()
