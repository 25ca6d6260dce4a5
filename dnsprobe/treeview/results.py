"""What became of the queries of a tree: results by name, and which of them are failures.

A result has the name that the metrics give it: a response code, or the reason why there was no answer.
``dnsprobe tree`` and the web page share this module, so nothing here imports an HTTP client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dnsprobe.treeview.nodes import Node, Path, walk

#: The number of queries by result.
Results = Mapping[str, int]

#: Answers that say that there is no such name or record (RFC 2308). They are answers as good as any other.
NEGATIVE = ("NODATA", "NXDOMAIN")
#: Results that are no failure. All others are: response codes such as SERVFAIL, and reasons such as ``timeout``.
_ANSWERED_WELL = frozenset({"NOERROR", *NEGATIVE})


def known(results: Results) -> int:
    """Return how many queries have a result: they neither wait nor are untracked."""
    return sum(results.values())


def failed(results: Results) -> int:
    """Return how many queries have failed: the answer is an error, or there was none."""
    return sum(queries for name, queries in results.items() if is_failure(name))


def negative(results: Results) -> int:
    """Return how many queries have a negative answer."""
    return sum(results.get(name, 0) for name in NEGATIVE)


def is_failure(name: str) -> bool:
    """Return whether a result is a failure."""
    return name not in _ANSWERED_WELL


def by_number(results: Results) -> list[tuple[str, int]]:
    """Return results with their numbers, the largest first."""
    return sorted(results.items(), key=lambda result: (-result[1], result[0]))


def add_results(
    of_nodes: dict[Node, dict[str, int]], root: Node, path: Sequence[str], results: Iterable[tuple[str, int]]
) -> None:
    """Add results to each node from ``root`` to the end of ``path``. KeyError if the tree does not have the path."""
    nodes = [root]
    for name in path:
        nodes.append(nodes[-1].children[name])
    added = list(results)
    for node in nodes:
        of_node = of_nodes.setdefault(node, {})
        for name, queries in added:
            of_node[name] = of_node.get(name, 0) + queries


def by_path(root: Node, of_nodes: Mapping[Node, Results]) -> dict[Path, Results]:
    """Return the results of each node by its path. The empty path has those of the root."""
    found: dict[Path, Results] = {(): of_nodes.get(root, {})}
    found.update((path, of_nodes[node]) for path, node in walk(root) if node in of_nodes)
    return found


def growth(root: Node, of_nodes: Mapping[Node, Results], before: Mapping[Path, Results]) -> dict[Node, Results]:
    """Return by how much the results of each node have grown since the paths had the results ``before``."""
    places: list[tuple[Path, Node]] = [((), root), *walk(root)]
    grown: dict[Node, Results] = {}
    for path, node in places:
        earlier = before.get(path, {})
        more = {name: queries - earlier.get(name, 0) for name, queries in of_nodes.get(node, {}).items()}
        grown[node] = {name: queries for name, queries in more.items() if queries > 0}
    return grown


def share(part: int, whole: int) -> str:
    """Return a part as a percentage, such as ``8.3%``. Only nothing is 0, and only everything is 100%."""
    percent = 100 * part / whole
    if part < whole:
        percent = min(percent, 99.9)
    if not part:
        return "0%"
    return f"{percent:.1f}%" if percent >= 0.1 else "<0.1%"
