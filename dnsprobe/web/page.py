"""The page for people: one HTML document that contains its data, style and script.

All values come from processes or from the configuration, so ``markup`` escapes each of them. As a second barrier, the
Content-Security-Policy allows exactly this style and this script, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from dnsprobe import __version__
from dnsprobe.model import UNDECIDED, Query, Rule, Series
from dnsprobe.names.wire import to_text
from dnsprobe.pipeline.answers import RCODES, REASONS, Outcomes
from dnsprobe.pipeline.series import total_queries
from dnsprobe.sinks.metrics import Snapshot
from dnsprobe.sinks.wording import endpoint, kind, moment, name
from dnsprobe.text import number
from dnsprobe.treeview.nodes import Node, add, largest
from dnsprobe.treeview.results import NEGATIVE, Results, add_results, failed, is_failure, known, negative, share
from dnsprobe.web import markup

#: The most nodes in the graph and in the list (the tree without JavaScript), and the most rules.
_MAX_NODES = 2000
_MAX_LISTED = 200
_MAX_RULES = 200

#: All results of queries, in the order in which they are shown: answers, negative answers, failures.
_RESULTS = sorted((*RCODES.values(), *REASONS.values()), key=lambda name: (is_failure(name), name in NEGATIVE))
#: Rows of the table that are there with the number 0, too.
_ALWAYS_SHOWN = ("NOERROR", "waiting", "untracked")
_RESULT_AT = {name: at for at, name in enumerate(_RESULTS)}
_MEANINGS = {
    "NOERROR": "answered",
    "NODATA": "no record of this type, which is an answer",
    "NXDOMAIN": "no such name, which is an answer",
    "timeout": "no answer in time",
    "closed": "the process closed the socket before an answer came",
    "unreachable": "an ICMP error came back",
    "superseded": "the process sent the same query again",
}

#: What is shown in place of the pattern of a domain that no rule has.
_FORMER = {UNDECIDED: "names that take the rules too long"}

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
            "img-src data:",  # for the empty icon: without one, browsers request /favicon.ico
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class Page:
    """The data of the page at one moment.

    ``unserved`` maps each path without a hook to the hooks that were tried. ``lineage_problem`` is the reason why
    lineage tracking is off, empty if it is on. ``last`` has the last queries that were reported, the newest last; None
    if they are not shown. ``offset_ns`` converts their times to nanoseconds since the epoch. ``time_ns`` is the moment
    in that unit.
    """

    snapshot: Snapshot = field(default_factory=Snapshot)
    ready: bool = True
    rules: Sequence[Rule] = ()
    unserved: Mapping[str, str] = field(default_factory=dict)
    lineage_problem: str = ""
    last: Sequence[Query] | None = ()
    offset_ns: int = 0
    time_ns: int = 0


def _tree(snapshot: Snapshot) -> Node:
    """Return the queries of all trees as one tree. Its root stands for pid 1 and has no name."""
    trees: Counter[str] = Counter()
    for series, queries in snapshot.counts.items():
        if series.of_queries:
            trees[series.tree] += queries
    root = Node("")
    for tree, queries in trees.items():
        add(root, tree.split(";"), queries)
    return root


def _results(outcomes: Outcomes) -> Iterator[tuple[tuple[Series, str], int]]:
    """Yield what became of the queries: a series with a result, and the number of queries."""
    return chain(outcomes.responses.items(), outcomes.unanswered.items())


def _results_of_nodes(page: Page, root: Node) -> dict[Node, dict[str, int]] | None:
    """Return what became of the queries of each node, None if answers are not tracked."""
    outcomes = page.snapshot.outcomes
    if outcomes is None:
        return None
    trees: dict[str, Counter[str]] = {}
    for (series, result), queries in _results(outcomes):
        trees.setdefault(series.tree, Counter())[result] += queries
    of_nodes: dict[Node, dict[str, int]] = {}
    for tree, results in trees.items():
        add_results(of_nodes, root, tree.split(";"), results.items())
    return of_nodes


def _hidden(node: Node, shown: list[Node]) -> tuple[int, int]:
    """Return how many children of a node are not shown, and how many queries they have."""
    return len(node.children) - len(shown), node.total - node.own - sum(child.total for child in shown)


def _graph(root: Node, results: Mapping[Node, Results] | None) -> dict[str, object]:
    """Return the nodes of the graph, each after its parent, and the names of results.

    A row has the index of the parent (-1: none), name, total, own queries, and the number of children that are not
    shown with the number of their queries. If answers are tracked, it also has the results: for each that is not 0, the
    index of its name, and its number. A name that stands for a failure has the kind ``failed``.
    """
    shown = largest(root, _MAX_NODES)
    rows: list[list[object]] = []
    waiting = [(root, -1)]
    while waiting:
        node, parent = waiting.pop()
        waiting.extend((child, len(rows)) for child in reversed(shown[node]))
        row: list[object] = [parent, node.name, node.total, node.own, *_hidden(node, shown[node])]
        if results is not None:
            of_node = results.get(node, {})
            row.append([each for name, queries in of_node.items() for each in (_RESULT_AT[name], queries)])
        rows.append(row)
    names = [] if results is None else [[name, _kind(name)] for name in _RESULTS]
    return {"nodes": rows, "results": names}


def _kind(result: str) -> str:
    return "failed" if is_failure(result) else "negative" if result in NEGATIVE else "good"


def _list_items(node: Node, shown: Mapping[Node, list[Node]], results: Mapping[Node, Results] | None) -> Iterator[str]:
    yield "<ul>"
    for child in sorted(shown[node], key=lambda child: -child.total):
        of_child = (results or {}).get(child, {})
        failures = f", {_failed(of_child)}" if failed(of_child) else ""
        yield f"<li>{markup.text(child.name)} <span>{child.total:,}{failures}</span>"
        if child.children:
            yield from _list_items(child, shown, results)
        yield "</li>"
    more, queries = _hidden(node, shown[node])
    if more:
        yield f"<li>{more:,} more <span>{queries:,}</span></li>"
    yield "</ul>"


def _list(root: Node, results: Mapping[Node, Results] | None) -> str:
    if not root.total:
        return "<p>No query yet.</p>"
    return "\n".join(_list_items(root, largest(root, _MAX_LISTED), results))


def _share(part: int, whole: int) -> str:
    return share(part, whole).replace("%", " %")


def _failed(results: Results) -> str:
    """Return the share of failures among queries with a result. Without any failure, it is no bad news."""
    text = f"{_share(failed(results), known(results))} failed" if results else "no result yet"
    return markup.bad(text) if failed(results) else text


def _summary(page: Page, queries: int, results: Results | None) -> str:
    now = page.snapshot
    trees = len({series.tree for series in now.counts if series.of_queries})
    encrypted = sum(queries for series, queries in now.counts.items() if series.encrypted)
    facts = [
        f"<strong>{queries:,}</strong> {'query' if queries == 1 else 'queries'} by {trees:,} process"
        f" {'tree' if trees == 1 else 'trees'}, {number(now.rules, 'rule')}"
    ]
    if results:
        facts.append(f"{_failed(results)}, {_share(negative(results), known(results))} negative")
    if encrypted:
        facts.append(f"{encrypted:,} encrypted {'connection' if encrypted == 1 else 'connections'}")
    ready = markup.good("ready") if page.ready else markup.bad("not ready: not every path is proved")
    zone = moment(page.time_ns).astimezone().strftime("%z")
    facts.append(f"as of {markup.time(page.time_ns, day=True)} {zone}")
    return f"<p>{ready} · {' · '.join(facts)}</p>"


def _last(page: Page) -> str:
    if page.last is None:
        return f"<p>{_NOT_SHOWN}</p>"
    if not page.last:
        return "<p>No query yet.</p>"
    rows = [
        (
            markup.time(query.time_ns + page.offset_ns, day=False),
            markup.text(name(query.ancestry.asker)),
            markup.text(query.ancestry.tree),
            markup.text(to_text(query.qname)),
            markup.text(kind(query)),
            markup.text(query.transport),
            markup.text(endpoint(query)),
        )
        for query in reversed(page.last)
    ]
    columns = ("Time", "Process", "Tree", "Name", "Type", "Transport", "Server")
    return markup.table(columns, rows, css_class="queries")


def _outcome_rows(page: Page, outcomes: Outcomes, results: Results) -> Iterator[tuple[str, int, str, str]]:
    """Yield each result with its queries, its kind and its meaning; last the queries without a result."""
    queries = total_queries(page.snapshot.counts)
    for result in _RESULTS:
        yield result, results.get(result, 0), _kind(result), _MEANINGS.get(result, "answered with an error")
    waiting = min(sum(outcomes.waiting.values()), queries - known(results))
    yield "waiting", waiting, "", "still wait for their answer"
    yield "untracked", queries - known(results) - waiting, "", "dnsprobe cannot find out whether they were answered"


def _outcome_table(page: Page, results: Results | None) -> str:
    """Return the section on what became of the queries, nothing if answers are not tracked."""
    outcomes = page.snapshot.outcomes
    if outcomes is None or results is None:
        return ""
    queries = total_queries(page.snapshot.counts)
    rows = [
        (
            markup.text(name),
            meaning,
            markup.bad(f"{number:,}") if number and kind == "failed" else f"{number:,}",
            _share(number, queries) if queries else "",
        )
        for name, number, kind, meaning in _outcome_rows(page, outcomes, results)
        if number or name in _ALWAYS_SHOWN
    ]
    table = markup.table(("Result", "Meaning", "#Queries", "#Share"), rows)
    unmatched = ", ".join(f"{times:,} {reason}" for reason, times in sorted(outcomes.unmatched.items()) if times)
    more = f"\n<p>Answers that fit no query that waits: {unmatched or 'none'}.</p>"
    return markup.section("answered", "What became of the queries", markup.live("results", table + more)) + "\n"


def _results_of_rules(outcomes: Outcomes | None) -> dict[str, Counter[str]]:
    """Return what became of the queries of each rule."""
    of_rules: dict[str, Counter[str]] = {}
    for (series, result), queries in _results(outcomes or Outcomes()):
        of_rules.setdefault(series.domain, Counter())[result] += queries
    return of_rules


def _rules(page: Page) -> str:
    counted: Counter[str] = Counter()
    for series, queries in page.snapshot.counts.items():
        if series.of_queries:
            counted[series.domain] += queries
    results = _results_of_rules(page.snapshot.outcomes)
    ruled = {rule.name for rule in page.rules}
    rows = [(rule.name, rule.pattern) for rule in page.rules]
    rows += [(domain, _FORMER.get(domain, "no longer watched")) for domain in sorted(counted.keys() - ruled)]
    # Few rules stay in the order of the configuration. Of many, those with the most queries are shown.
    if len(rows) > _MAX_RULES:
        rows.sort(key=lambda row: -counted[row[0]])
    cells = [
        (
            markup.short_text(domain),
            markup.short_text(pattern),
            f"{counted[domain]:,}",
            *((_failed(results.get(domain, {})),) if page.snapshot.outcomes is not None else ()),
        )
        for domain, pattern in rows[:_MAX_RULES]
    ]
    columns = ("Rule", "Pattern", "#Queries") + (("#Failed",) if page.snapshot.outcomes is not None else ())
    table = markup.table(columns, cells)
    left_out = len(rows) - _MAX_RULES
    return table + (f"\n<p>{left_out:,} more, with fewer queries.</p>" if left_out > 0 else "")


def _paths(page: Page) -> str:
    now = page.snapshot
    proof = {True: markup.good("proved"), False: markup.bad("not proved")}
    rows = [
        (*map(markup.text, (path, hook, attach, symbol)), proof[bool(now.verified.get(path))])
        for path, hook, attach, symbol in now.hooks
    ]
    rows += [
        (markup.text(path), "none", "", markup.short_text(tried), markup.bad("not seen"))
        for path, tried in page.unserved.items()
    ]
    lineage = f"off ({markup.short_text(page.lineage_problem)})" if page.lineage_problem else "on"
    table = markup.table(("Path", "Hook", "Attached by", "Symbol", "Proof"), rows)
    return f"{table}\n<p>Lineage tracking is {lineage}.</p>"


def _losses(page: Page) -> str:
    now = page.snapshot
    rows = [
        (
            markup.text(loss.metric),
            markup.text(loss.reason),
            html.escape(f"{loss.what} ({loss.counted})"),
            markup.bad(f"{times:,}") if times else "0",
        )
        for loss, times in now.losses.items()
    ]
    entries = number(now.journal_entries, "journal entry", "journal entries")
    loaded = f"Configuration of {markup.time(int(now.reload_time * 1e9), day=True)}"
    failed = "" if now.reload_successful else f"; {markup.bad('the last reload failed')}"
    totals = f"<p>{number(now.events, 'event')} from the kernel, {entries}. {loaded}{failed}.</p>"
    return markup.table(("Metric", "Reason", "Meaning", "#Lost"), rows) + f"\n{totals}"


_NOT_SHOWN = (
    "Not shown, because everyone who can reach this address could read them. They are shown to readers with a password"
    " or a client certificate (<code>metrics.web_config</code>), or with <code>metrics.last_queries: always</code>."
)

#: The script shows these elements; without JavaScript they stay hidden.
_GRAPH = """<div id="graph" hidden>
<div class="bar">
<label for="search">Search</label>
<input id="search" type="search" autocomplete="off" spellcheck="false" maxlength="100">
<button id="back" type="button" disabled>Show all</button>
<output id="found" for="search"></output>
</div>
<div id="icicle" role="tree" aria-label="Queries by process tree" aria-describedby="keys"></div>
<p id="details" aria-hidden="true"></p>
<p id="keys" class="note">Click or Enter: zoom in. Escape: show all. Arrow keys: move between processes.</p>
</div>"""


def render(page: Page) -> bytes:
    """Return the HTML document in UTF-8."""
    root = _tree(page.snapshot)
    results = _results_of_nodes(page, root)
    of_all = None if results is None else results.get(root, {})
    trees = f"""{_GRAPH}
<details id="as-list" open>
<summary>As a list</summary>
{markup.live("list", _list(root, results))}
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
{markup.live("summary", _summary(page, total_queries(page.snapshot.counts), of_all))}
<p id="refresh" hidden><button id="pause" type="button" aria-pressed="false">Pause</button>
<span id="state" role="status"></span></p>
</header>
<main>
{markup.section("trees", "Queries by process tree", trees)}
{_outcome_table(page, of_all)}{markup.section("queries", "Last queries", markup.live("last", _last(page)))}
{markup.section("watched", "Rules", markup.live("rules", _rules(page)))}
{markup.section("seen", "Hooks", markup.live("paths", _paths(page)))}
{markup.section("lost", "Losses", markup.live("losses", _losses(page)))}
</main>
<footer>
<a href="/metrics">Metrics</a> for Prometheus · <a href="/-/ready">Readiness</a> · <a href="/-/healthy">Health</a>
</footer>
<script type="application/json" id="data" data-live>{markup.embedded(_graph(root, results))}</script>
<script>{_SCRIPT}</script>
</body>
</html>
""".encode()
