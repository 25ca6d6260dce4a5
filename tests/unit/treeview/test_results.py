"""What became of the queries of a tree: sums close for each node, and shares are those of failures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from counted import COUNTS, OUTCOMES, chosen, scrape
from made_up import HOSTILE

from dnsprobe.errors import UserError
from dnsprobe.model import Series
from dnsprobe.pipeline.answers import RCODES, REASONS, Outcomes
from dnsprobe.terminal import Look, cells
from dnsprobe.treeview.aggregate import NO_RESULT, Choice, TreeCounts, aggregate
from dnsprobe.treeview.nodes import rates, totals_by_path
from dnsprobe.treeview.render import folded_stacks, json_object, tree_lines
from dnsprobe.treeview.results import by_path, failed, growth, is_failure, known, negative, share


def lines(seen: TreeCounts, height: int | None = None, **look: Any) -> list[str]:
    return tree_lines(seen, Look(**look), "dnsprobe 1 at host:1", height)


def test_each_result_is_a_failure_or_not() -> None:
    names = {*RCODES.values(), *REASONS.values()}
    assert {name for name in names if not is_failure(name)} == {"NOERROR", "NODATA", "NXDOMAIN"}
    results = dict.fromkeys(names, 1)
    assert (known(results), failed(results), negative(results)) == (len(names), len(names) - 3, 2)


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 7, "0%"), (1, 7, "14.3%"), (7, 7, "100.0%"), (99_999, 100_000, "99.9%"), (1, 100_000, "<0.1%")],
)
def test_shares(part: int, whole: int, shown: str) -> None:
    assert share(part, whole) == shown


def test_a_tree_has_the_share_of_failures() -> None:
    assert lines(chosen(outcomes=OUTCOMES)) == [
        "1,000 queries by 4 process trees, 1.3% failed, 2.5% negative, dnsprobe 1 at host:1",
        "",
        "total  own   share  failed  negative              process tree",
        "   52    2    5.2%   13.5%     42.3%  ▌           nightly;make",
        "   42   42    4.2%      0%     52.4%  ▍           ├─ sh;dig",
        "    8    8    0.8%   62.5%        0%  ▏           └─ curl",
        "   48   48    4.8%   11.1%        0%  ▍           app",
        "  900  900   90.0%      0%        0%  █████████   (other)",
        "",
        "connections of DNS over TLS, whose queries are encrypted",
        "   13   13  100.0%                    ██████████  sway;browser",
        "",
        "(other): trees counted together, above the limit on series (metrics.max_series) or without room in the kernel",
        "failed: answered with an error, or not at all; negative: NXDOMAIN and NODATA; as shares of the queries with a "
        "result",
        "103 queries have no result: 3 waiting, 100 untracked",
    ]


def test_a_tree_for_each_result_adds_up() -> None:
    seen = chosen(Choice(by="rcode"), outcomes=OUTCOMES)
    assert {name: node.total for name, node in seen.queries.children.items()} == {
        "NOERROR": 863,
        "NODATA": 12,
        "NXDOMAIN": 10,
        "SERVFAIL": 4,
        "REFUSED": 1,
        "(other)": 1,
        "timeout": 5,
        "superseded": 1,
        NO_RESULT: 103,
    }
    assert seen.queries.total == 1000
    drawn = lines(seen)
    assert drawn[3:6] == [
        "  863        86.3%  ████████▋   NOERROR",
        "   40   40    4.0%  ▍           ├─ app",
        "   23         2.3%  ▏           ├─ nightly;make",
    ]
    assert "(other): other response codes" in drawn
    assert not any("query types without a name" in line for line in drawn)
    assert "NXDOMAIN;nightly;make;sh;dig 10" in folded_stacks(seen)
    assert f"{NO_RESULT};app 3" in folded_stacks(seen)
    assert sum(int(line.rpartition(" ")[2]) for line in folded_stacks(seen)) == 1000


def every_node(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(each for child in node["children"] for each in every_node(child))]


def test_json_has_the_numbers_of_each_node() -> None:
    result = json.loads(json.dumps(json_object(chosen(outcomes=OUTCOMES))))
    for node in every_node(result["queries"]):
        assert node["total"] == sum(node["results"].values()) + node["without_result"]
        assert node["failed"] + node["negative"] + node["results"].get("NOERROR", 0) == sum(node["results"].values())
    assert result["queries"]["waiting"] == 3
    assert result["queries"]["without_result"] == 103
    nightly = result["queries"]["children"][0]["children"][0]
    assert list(nightly["results"].items()) == [
        ("NOERROR", 23),
        ("NODATA", 12),
        ("NXDOMAIN", 10),
        ("SERVFAIL", 4),
        ("(other)", 1),
        ("REFUSED", 1),
        ("superseded", 1),
    ]
    assert (nightly["failed"], nightly["negative"], nightly["without_result"]) == (7, 22, 0)
    assert not {"results", "failed", "waiting"} & result["encrypted_connections"].keys()


def test_a_choice_of_units_leaves_out_how_many_wait() -> None:
    seen = chosen(Choice(units=("",), domains=("other.test",)), outcomes=OUTCOMES)
    assert (seen.queries.total, seen.without_result, seen.waiting) == (48, 3, None)
    assert "3 queries have no result: waiting or untracked" in lines(seen)
    assert "waiting" not in json_object(seen)["queries"]
    seen = chosen(Choice(domains=("example.test",)), outcomes=OUTCOMES)
    assert (seen.queries.total, seen.without_result, seen.waiting) == (49, 0, 0)


@pytest.mark.parametrize("by", ["domain", "unit", "qtype", "to"])
def test_results_below_the_value_of_a_label(by: str) -> None:
    seen = chosen(Choice(by=by), outcomes=OUTCOMES)
    assert seen.results is not None
    assert all(known(seen.results[node]) <= node.total for node in seen.queries.children.values())
    assert sum(known(seen.results[node]) for node in seen.queries.children.values()) == 897


def test_without_answers_nothing_changes() -> None:
    assert chosen().results is None
    assert lines(chosen())[0] == "1,000 queries by 4 process trees, dnsprobe 1 at host:1"
    with pytest.raises(UserError, match="does not track answers"):
        chosen(Choice(by="rcode"))


def test_answers_without_any_result_yet() -> None:
    seen = chosen(outcomes=Outcomes(unmatched={"late": 0}))
    assert lines(seen)[2] == "total  own   share              process tree"
    assert "1,000 queries have no result: 0 waiting, 1,000 untracked" in lines(seen)
    assert lines(chosen(counts={}, outcomes=Outcomes(unmatched={"late": 0}))) == [
        "0 queries by 0 process trees, dnsprobe 1 at host:1"
    ]


def test_a_second_reading_has_the_shares_since_the_first() -> None:
    (app,) = (series for series in COUNTS if series.process == "app")
    before = chosen(outcomes=OUTCOMES)
    assert before.results is not None
    later = replace(OUTCOMES, unanswered={**OUTCOMES.unanswered, (app, "timeout"): 14}, waiting={})
    later = replace(later, responses={**later.responses, (app, "NOERROR"): 41})
    after = chosen(counts={**COUNTS, app: 55}, outcomes=later)
    assert after.results is not None
    after.rates |= rates(after.queries, totals_by_path(before.queries), 1.0)
    after.recent = growth(after.queries, after.results, by_path(before.queries, before.results))
    drawn = lines(after)
    assert drawn[0].startswith("1,007 queries by 4 process trees, 7.0 per second, 90.0% failed, 0% negative")
    (row,) = [line for line in drawn if line.endswith(" app")]
    assert row.split()[:6] == ["55", "55", "7.0", "5.5%", "90.0%", "0%"]
    (row,) = [line for line in drawn if line.endswith(" (other)")]
    assert row.split()[:4] == ["900", "900", "0", "89.4%"]
    assert any("since the previous reading" in line for line in drawn)


def test_queries_without_a_result_that_get_theirs_have_no_negative_rate() -> None:
    before = chosen(Choice(by="rcode"), outcomes=OUTCOMES)
    after = chosen(
        Choice(by="rcode"), outcomes=replace(OUTCOMES, responses={**OUTCOMES.responses, (app(), "NOERROR"): 43})
    )
    grown = rates(after.queries, totals_by_path(before.queries), 1.0)
    assert {node.name: rate for node, rate in grown.items() if rate and node in after.label_nodes} == {"NOERROR": 3.0}
    assert min(grown.values()) == 0


def app() -> Series:
    (found,) = (series for series in COUNTS if series.process == "app")
    return found


@pytest.mark.parametrize("by", [None, "rcode", "domain"])
@pytest.mark.parametrize("extra", [{(app(), "NOERROR"): 49}, {(app()._replace(tree="gone"), "NOERROR"): 1}])
def test_more_results_than_queries_are_not_those_of_a_dnsprobe(by: str | None, extra: dict[Any, int]) -> None:
    with pytest.raises(UserError, match="more results than queries"):
        chosen(Choice(by=by), outcomes=replace(OUTCOMES, responses={**OUTCOMES.responses, **extra}))


@pytest.mark.parametrize("raw", HOSTILE)
@pytest.mark.parametrize("by", [None, "rcode"])
def test_hostile_results_are_harmless(raw: bytes, by: str | None) -> None:
    name = raw.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode()
    seen = chosen(Choice(by=by), outcomes=Outcomes(responses={(app(), name): 5}, unmatched={"late": 0}))
    for width in (20, 40, 80):
        for line in lines(seen, width=width):
            assert line.isprintable()
            assert cells(line) <= width
    assert json.dumps(json_object(seen)).isprintable()
    assert all(line.isprintable() for line in folded_stacks(seen))


@pytest.mark.parametrize("width", [*range(1, 60), 79, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for choice in (Choice(), Choice(by="rcode"), Choice(by="unit")):
        for unicode in (True, False):
            drawn = lines(chosen(choice, outcomes=OUTCOMES), width=width, unicode=unicode)
            assert max(map(cells, drawn)) <= width


def test_a_daemon_that_exports_no_unit_has_results() -> None:
    seen = aggregate(scrape(labels=(), outcomes=OUTCOMES), Choice(by="rcode"))
    assert seen.queries.total == 1000
    assert seen.queries.children[NO_RESULT].total == 103
