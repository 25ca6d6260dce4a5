"""The HTML of the page: values stay text, numbers add up, and the size has a bound."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up import HOSTILE, QUERY, RULE, hostile, query

from dnsprobe import __version__
from dnsprobe.kernel.losses import LOSSES
from dnsprobe.model import Ancestry, Process, Rule, Series
from dnsprobe.names.wire import to_text
from dnsprobe.pipeline.answers import RCODES, REASONS, Group, Outcomes
from dnsprobe.sinks.metrics import Snapshot
from dnsprobe.text import printable
from dnsprobe.treeview.nodes import Node
from dnsprobe.web import page as web
from dnsprobe.web.markup import embedded
from dnsprobe.web.page import HEADERS, Page, render

#: Names that attack HTML, in addition to those that attack terminals and journals.
MARKUP = [
    b"</script><b>x",
    b"<script>alert(1)",
    b"<!--<script>",
    b"]]><i>",
    b'"onload="x()',
    b"'><img src=x>",
    b"&lt;&amp;&#60;",
    b"__proto__",
]

#: Elements that HTML does not close.
VOID = {"meta", "link", "input"}


class Document(HTMLParser):
    """The page after an HTML parser: elements with their attributes, and the text of each kind of element."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.source = raw.decode("utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text[self._open[-1]][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    @property
    def shape(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    @property
    def graph(self) -> dict[str, Any]:
        (index,) = [
            at
            for at, attributes in enumerate(attributes for tag, attributes in self.elements if tag == "script")
            if attributes.get("type") == "application/json"
        ]
        return dict(json.loads(self.text["script"][index]))

    @property
    def nodes(self) -> list[list[Any]]:
        return list(self.graph["nodes"])


def series(tree: str, **changes: str) -> Series:
    return Series("example.test", "A", "udp", "remote", tree.rpartition(";")[2], tree, "", "")._replace(**changes)


def snapshot(trees: dict[str, int], **changes: Any) -> Snapshot:
    return Snapshot(counts={series(tree): queries for tree, queries in trees.items()}, **changes)


def in_full(raw: bytes) -> Page:
    """Return a page with data in every part, and with ``raw`` in each value that a stranger can choose."""
    text = printable(raw)
    asked, _ = hostile(raw)
    return Page(
        snapshot=replace(
            snapshot({asked.ancestry.tree: 2}),
            hooks=[("udp4", "ip_send_skb", "kprobe", text)],
            verified={"udp4": True},
        ),
        rules=(replace(RULE, name=text or "x", pattern=text or "x"),),
        unserved={"tcp4": text},
        lineage_problem=text or "x",
        last=[asked],
    )


def test_the_policy_allows_exactly_what_is_in_the_page() -> None:
    document = Document(render(in_full(b"x")))
    directives = {name: sources for name, *sources in map(str.split, HEADERS["Content-Security-Policy"].split(";"))}
    script = [text for text in document.text["script"] if "use strict" in text]
    for content, directive in ((script, "script-src"), (document.text["style"], "style-src")):
        digest = hashlib.sha256(content[0].encode()).digest()
        assert len(content) == 1
        assert directives.pop(directive) == [f"'sha256-{base64.b64encode(digest).decode()}'"]
    assert directives == {
        "default-src": ["'none'"],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    assert "unsafe" not in str(HEADERS)


def test_the_page_needs_nothing_that_the_policy_forbids() -> None:
    document = Document(render(in_full(b"x")))
    for _, attributes in document.elements:
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        assert "src" not in attributes
    links = [attributes["href"] for _, attributes in document.elements if "href" in attributes]
    assert links == ["data:,", "/metrics", "/-/ready", "/-/healthy"]
    identifiers = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("file", ["page.js", "page.css"])
def test_script_and_style_contain_no_markup(file: str) -> None:
    text = (Path(web.__file__).parent / file).read_text("utf-8")
    assert "</" not in text
    assert "<!--" not in text
    # Anything that turns text into markup or code, or requests something.
    assert (
        re.findall(r"\w*(?:inner|outer|Adjacent)HTML|\beval\b|Function\(|document\.write|url\(|@import|https?:", text)
        == []
    )


@pytest.mark.parametrize("raw", [*HOSTILE, *MARKUP])
def test_hostile_values_do_not_change_the_markup(raw: bytes) -> None:
    plain, document = Document(render(in_full(b"plain"))), Document(render(in_full(raw)))
    assert document.shape == plain.shape
    assert [names.keys() for _, names in document.elements] == [names.keys() for _, names in plain.elements]
    assert [char for char in document.source if not char.isprintable() and char != "\n"] == []
    asked, _ = hostile(raw)
    assert to_text(asked.qname) in document.text["bdi"]
    assert asked.ancestry.tree in document.text["bdi"]
    assert [node[1] for node in document.nodes] == ["", *asked.ancestry.tree.split(";")]


@pytest.mark.parametrize("text", ["</script>", "</SCRIPT ", "<!--<script>", "-->", "&lt;", "\u2028", "\ud800", '"\\'])
def test_embedded_json_contains_no_markup(text: str) -> None:
    written = embedded([text])
    assert json.loads(written) == [text]
    assert written.isascii()
    assert not set(written) & set("<>&")


def test_trees_add_up() -> None:
    counts = {
        series("a;b"): 3,
        series("a;b", qtype="AAAA"): 4,
        series("a;b;c"): 5,
        series("a"): 1,
        series("d"): 2,
        series("(other)", transport="tcp"): 6,
        series("a;b", transport="dot", domain="", qtype=""): 100,
    }
    document = Document(render(Page(Snapshot(counts=counts))))
    assert document.nodes == [
        [-1, "", 21, 0, 0, 0],
        [0, "(other)", 6, 6, 0, 0],
        [0, "a", 13, 1, 0, 0],
        [2, "b", 12, 7, 0, 0],
        [3, "c", 5, 5, 0, 0],
        [0, "d", 2, 2, 0, 0],
    ]
    assert document.text["strong"] == ["21"]
    text = document.source
    assert "100 encrypted connections" in text
    assert "by 5 process trees" in text


@pytest.mark.parametrize("limit", [1, 2, 7, 100, 1110, 1111, 5000])
def test_the_graph_has_the_largest_nodes_and_adds_up(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_MAX_NODES", limit)
    trees = {f"a{n // 100};b{n // 10};c{n}": n + 1 for n in range(1000)}
    rows = Document(render(Page(snapshot(trees)))).nodes
    assert len(rows) == min(limit, 1111)
    assert rows[0][2] == sum(trees.values())
    every_total = Counter({";".join(tree.split(";")[:depth]): 0 for tree in trees for depth in (1, 2, 3)})
    for tree, queries in trees.items():
        for depth in (1, 2, 3):
            every_total[";".join(tree.split(";")[:depth])] += queries
    largest = [rows[0][2], *sorted(every_total.values(), reverse=True)]
    assert sorted((row[2] for row in rows), reverse=True) == largest[:limit]
    for index, (_, _, total, own, more, rest) in enumerate(rows):
        children = [row for row in rows if row[0] == index]
        assert total == own + rest + sum(child[2] for child in children)
        assert (more == 0) is (rest == 0)
        assert all(part >= 0 for part in (own, rest, more))
        names = [child[1] for child in children]
        assert names == sorted(names)


def test_a_page_has_a_bound() -> None:
    """The limit of series, each with another tree of the greatest depth and the longest comms, all hostile."""
    comm = "\\xff" * 15
    trees = {";".join([comm] * 38 + [f"{number:x}{comm}"[:60]]): number for number in range(1, 10001)}
    every_result = [*RCODES.values(), *REASONS.values()]
    outcomes = Outcomes(
        responses={(series(tree), name): 10**9 for tree in trees for name in every_result},
    )
    asked = query(
        qname=b"".join(b"\x3f" + b"&" * 63 for _ in range(3)) + b"\x3d" + b"&" * 61 + b"\0",
        ancestry=Ancestry(tuple(Process(n, n, b"&" * 15) for n in range(40, 0, -1))),
    )
    rules = [Rule(n, f"&{n}" + "&" * 5000, "&" * 5000) for n in range(1, 1001)]
    raw = render(Page(snapshot(trees, outcomes=outcomes), rules=rules, last=[asked] * 100))
    assert len(raw) < 2_000_000
    document = Document(raw)
    assert len(document.nodes) == 2000
    assert [(node[4], node[5]) for node in document.nodes if node[4]] == [
        (10000 - (2000 - 39), sum(range(1, 10000 - (2000 - 39) + 1)))
    ]
    assert "9,839 more" in document.source  # of the list
    # One of them has series but no rule any more.
    assert "<p>801 more, with fewer queries.</p>" in document.source


def test_nothing_keeps_the_tree_of_an_earlier_page() -> None:
    """A reference cycle would keep each tree, and its memory, until the garbage collector runs."""
    page = Page(snapshot({"a;b": 1, "a;c": 2}))
    gc.collect()
    gc.disable()
    try:
        render(page)
        assert not any(isinstance(each, Node) for each in gc.get_objects())
    finally:
        gc.enable()


def test_of_many_rules_those_with_queries_are_shown() -> None:
    rules = [Rule(n, f"r{n}.test", f"r{n}.test") for n in range(1, 501)]
    counts = {series("a", domain="r500.test"): 3, series("a", domain="gone.test"): 4}
    text = Document(render(Page(Snapshot(counts=counts, rules=500), rules=rules))).text["bdi"]
    assert "gone.test" in text
    assert "r500.test" in text
    assert "r499.test" not in text
    assert "500 rules" in render(Page(Snapshot(rules=500))).decode()


def test_losses_are_there_at_zero() -> None:
    some = {loss: place for place, loss in enumerate(LOSSES)}
    document = Document(render(Page(Snapshot(losses=some))))
    cells = [text for text in document.text["span"] if text.isdecimal()]
    assert cells == [str(place) for place in range(1, len(LOSSES))]
    assert [text for text in document.text["td"] if text == "0"] == ["0"]
    for loss in LOSSES:
        assert f"{loss.what} ({loss.counted})" in document.text["td"]


def test_problems_are_shown() -> None:
    wrong = Page(
        Snapshot(
            hooks=[("udp4", "ip_send_skb", "fentry", "ip_send_skb")],
            verified={"udp4": False, "tcp4": False},
            reload_successful=False,
        ),
        ready=False,
        unserved={"tcp4": "tcp_sendmsg: no such symbol"},
        lineage_problem="no tracepoint",
    )
    bad = [text for text in Document(render(wrong)).text["span"] if text.startswith(("not ", "the "))]
    assert bad == ["not ready: not every path is proved", "not proved", "not seen", "the last reload failed"]
    text = render(wrong).decode()
    assert "tcp_sendmsg: no such symbol" in text
    assert "no tracepoint" in text
    right = render(replace(wrong, snapshot=Snapshot(verified={"udp4": True}), ready=True, unserved={}))
    assert b'class="bad"' not in right


def test_last_queries_that_are_not_shown_leave_a_hint() -> None:
    page = render(Page(last=None)).decode()
    assert to_text(QUERY.qname) in render(Page(last=[QUERY])).decode()
    assert to_text(QUERY.qname) not in page
    assert "metrics.last_queries" in page
    assert "No query yet" not in page.partition('id="last"')[2].partition("</section>")[0]


def test_the_last_queries_are_shown_newest_first() -> None:
    newer = query(time_ns=QUERY.time_ns + 1_500_000_000, qname=b"\5newer\4test\0", qclass=3)
    document = Document(render(Page(last=[QUERY, newer], offset_ns=1_700_000_000 * 10**9)))
    times = [attributes["datetime"] for tag, attributes in document.elements if tag == "time"]
    assert times[1:3] == ["2023-11-14T22:13:33.845Z", "2023-11-14T22:13:32.345Z"]
    row = ["dig[4242]", "bash;make;dig", "newer.test", "CH A", "udp", "127.0.0.53#53"]
    assert document.text["bdi"][: len(row)] == row
    assert re.search(r">\d\d:\d\d:33\.845</time>", document.source)


def with_answers(trees: dict[str, dict[str, int]], waiting: int = 0, untracked: int = 0, **changes: Any) -> Page:
    """Return a page of trees with the results of their queries; ``no`` is a query without a result."""
    counts = {series(tree): sum(results.values()) for tree, results in trees.items()}
    results = {(series(tree), name): number for tree, named in trees.items() for name, number in named.items()}
    outcomes = Outcomes(
        responses={key: number for key, number in results.items() if key[1] in RCODES.values()},
        unanswered={key: number for key, number in results.items() if key[1] in REASONS.values()},
        waiting={Group("example.test", "udp"): waiting},
        untracked={Group("example.test", "udp"): untracked},
        unmatched={"late": 0, "unsolicited": 4},
    )
    return Page(Snapshot(counts=counts, outcomes=outcomes, **changes), rules=(RULE,))


ANSWERED = {
    "a;b": {"NOERROR": 60, "NXDOMAIN": 20, "SERVFAIL": 5, "timeout": 15},
    "a;c": {"NOERROR": 9, "(other)": 1, "no": 10},
    "d": {"no": 5},
}


def test_results_add_up_in_the_graph() -> None:
    graph = Document(render(with_answers(ANSWERED, 12, 3))).graph
    names = [name for name, _ in graph["results"]]
    assert {name: kind for name, kind in graph["results"] if kind != "failed"} == {
        "NOERROR": "good",
        "NODATA": "negative",
        "NXDOMAIN": "negative",
    }
    found = {}
    for row in graph["nodes"]:
        numbers = iter(row[6])
        found[row[1]] = {names[at]: next(numbers) for at in numbers}
    assert found == {
        "": {"NOERROR": 69, "NXDOMAIN": 20, "SERVFAIL": 5, "timeout": 15, "(other)": 1},
        "a": {"NOERROR": 69, "NXDOMAIN": 20, "SERVFAIL": 5, "timeout": 15, "(other)": 1},
        "b": ANSWERED["a;b"],
        "c": {"NOERROR": 9, "(other)": 1},
        "d": {},
    }


def test_results_are_shown_as_text_too() -> None:
    text = render(with_answers(ANSWERED, 12, 3)).decode()
    assert '<span class="bad">19.1 % failed</span>, 18.2 % negative' in text  # 21 and 20 of 110
    assert '<bdi>b</bdi> <span>100, <span class="bad">20.0 % failed</span></span>' in text
    assert "<bdi>d</bdi> <span>5</span>" in text
    table = text.partition('<div id="results"')[2].partition("</table>")[0]
    cells = re.findall(r'"Result"><bdi>(.*?)</bdi>.*?"Queries">(?:<span class="bad">)?([\d,]+)', table)
    numbers = {name: int(number.replace(",", "")) for name, number in cells}
    assert list(numbers) == ["NOERROR", "NXDOMAIN", "SERVFAIL", "(other)", "timeout", "waiting", "untracked"]
    assert sum(numbers.values()) == 125
    assert (numbers["waiting"], numbers["untracked"], numbers["timeout"]) == (12, 3, 15)
    assert "Answers that fit no query that waits: 4 unsolicited." in text
    assert 'data-label="Failed"><span class="bad">19.1 % failed</span></td>' in text


def test_without_answers_the_page_has_no_results() -> None:
    page = with_answers(ANSWERED)
    document = Document(render(replace(page, snapshot=replace(page.snapshot, outcomes=None))))
    assert document.graph["results"] == []
    assert {len(row) for row in document.nodes} == {6}
    body = document.source.partition("<body>")[2].partition("<script")[0]
    assert not re.search("failed|negative|What became|timeout", body)


def test_answers_without_any_result_are_no_bad_news() -> None:
    for page in (with_answers({"a": {"no": 3}}, 3), with_answers({})):
        text = render(page).decode()
        assert 'class="bad"' not in text
        assert "no result yet" in text


def test_the_page_is_rendered_before_the_first_query() -> None:
    document = Document(render(Page()))
    assert document.nodes == [[-1, "", 0, 0, 0, 0]]
    assert document.source.count("No query yet.") == 2
    assert f"<small>{__version__}</small>" in document.source
