"""Which series are chosen, and how they add up."""

from __future__ import annotations

import pytest
from counted import COUNTS, chosen, scrape

from dnsprobe.errors import UserError
from dnsprobe.terminal import Look
from dnsprobe.treeview.aggregate import Choice, aggregate
from dnsprobe.treeview.render import folded_stacks, tree_lines


@pytest.mark.parametrize(
    ("choice", "queries", "encrypted", "unit_unknown"),
    [
        (Choice(), 1000, 13, 0),
        (Choice(domains=("example.test",)), 49, 0, 0),
        (Choice(domains=("EXAMPLE.test", "*.other.test")), 50, 0, 0),
        (Choice(domains=("other.test",)), 950, 0, 0),
        (Choice(domains=("*other.test",)), 951, 0, 0),
        (Choice(domains=("test",)), 0, 0, 0),
        (Choice(units=("nightly",)), 50, 0, 900),
        (Choice(units=("nightly.service", "cron.service")), 52, 0, 900),
        (Choice(units=("user@*",)), 0, 13, 900),
        (Choice(units=("",)), 48, 0, 900),
        (Choice(units=("*",)), 100, 13, 900),
        (Choice(domains=("example.test",), units=("nightly",)), 49, 0, 0),
        (Choice(domains=("other.test",), units=("cron",)), 2, 0, 900),
        (Choice(units=("night",)), 0, 0, 900),
    ],
)
def test_choices(choice: Choice, queries: int, encrypted: int, unit_unknown: int) -> None:
    seen = chosen(choice)
    lines = tree_lines(seen, Look(), "dnsprobe 1 at host:1")
    assert (seen.queries.total, seen.encrypted.total, seen.unit_unknown) == (queries, encrypted, unit_unknown)
    assert sum(int(line.rpartition(" ")[2]) for line in folded_stacks(seen)) == queries
    assert ("900 more queries in (other) or (unknown), whose unit is unknown" in lines) == (unit_unknown == 900)


def test_a_tree_that_asks_this_host_and_others_is_one_tree() -> None:
    counts = {**COUNTS, **{series._replace(to="local"): 1 for series in COUNTS if series.of_queries}}
    seen = chosen(counts=counts)
    assert (seen.queries.total, seen.trees) == (1007, chosen().trees)
    by_place = chosen(Choice(by="to"), counts).queries.children
    assert {place: node.total for place, node in by_place.items()} == {"remote": 1000, "local": 7}


@pytest.mark.parametrize("choice", [Choice(units=("nightly",)), Choice(by="unit"), Choice(by="container")])
def test_a_label_that_the_daemon_does_not_export_is_an_error(choice: Choice) -> None:
    with pytest.raises(UserError, match=r"this dnsprobe does not export the label (unit|container)"):
        aggregate(scrape(labels=()), choice)
    assert aggregate(scrape(labels=()), Choice()).queries.total == 1000
