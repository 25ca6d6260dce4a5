"""The tree of nodes: sums, order, and the largest of them."""

from __future__ import annotations

import pytest

from dnsprobe.treeview.nodes import Node, add, largest, rates, totals_by_path, walk


def tree(**paths: int) -> Node:
    """Return a tree; ``a_b=3`` are three queries of the process ``b`` below ``a``."""
    root = Node("")
    for path, queries in paths.items():
        add(root, path.split("_"), queries)
    return root


def test_totals_include_all_nodes_below() -> None:
    root = tree(a_b=3, a=2, a_b_c=5, d=1)
    assert totals_by_path(root) == {(): 11, ("a",): 10, ("a", "b"): 8, ("a", "b", "c"): 5, ("d",): 1}
    assert {node.name: node.own for _, node in walk(root)} == {"a": 2, "b": 3, "c": 5, "d": 1}


def test_larger_nodes_come_first_and_placeholders_last() -> None:
    root = Node("")
    for name, queries in (("(other)", 100), ("b", 2), ("a", 2), ("c", 3), ("(unknown)", 50)):
        add(root, [name], queries)
    assert [path for path, _ in walk(root)] == [("c",), ("a",), ("b",), ("(other)",), ("(unknown)",)]


def test_rates_of_new_nodes_start_at_zero() -> None:
    root = tree(a=10, b=4)
    grown = rates(root, {(): 8, ("a",): 8}, 2.0)
    assert {node.name: rate for node, rate in grown.items()} == {"": 3.0, "a": 1.0, "b": 2.0}


@pytest.mark.parametrize(
    ("limit", "names"),
    [(1, [[]]), (2, [["a"], []]), (3, [["a"], ["c"], []]), (4, [["a", "b"], ["c"], [], []])],
)
def test_largest_keeps_the_nodes_with_the_highest_totals(limit: int, names: list[list[str]]) -> None:
    kept = largest(tree(b=4, a_c=5, a_d=1, e=2), limit)
    assert [[child.name for child in children] for children in kept.values()] == names
