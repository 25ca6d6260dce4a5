"""A tree of processes with query counts. ``dnsprobe tree`` and the web page both build it.

The daemon imports this module for its page, so nothing here imports an HTTP client.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from dnsprobe.model import OTHER, UNKNOWN

Path = tuple[str, ...]


class Node:
    """A process, or the value of a label that groups processes.

    ``own`` counts the queries of the process itself, ``total`` adds those of all nodes below it. The page can have
    100,000 nodes, so they are small: with two more attributes, a page of 10,000 different trees took a quarter longer.
    """

    __slots__ = ("children", "name", "own", "total")

    def __init__(self, name: str) -> None:
        self.name = name
        self.own = 0
        self.total = 0
        self.children: dict[str, Node] = {}

    @property
    def is_placeholder(self) -> bool:
        """Return whether the node stands for processes that are counted together. No process can have its name."""
        return self.name in {OTHER, UNKNOWN}

    @property
    def by_size(self) -> list[Node]:
        """Return the children, the largest first and placeholders last."""
        return sorted(self.children.values(), key=lambda node: (node.is_placeholder, -node.total, node.name))


def add(root: Node, path: Sequence[str], queries: int) -> None:
    """Count queries of the process at the end of ``path``, and create the nodes that are missing."""
    root.total += queries
    node = root
    for name in path:
        child = node.children.get(name)
        if child is None:
            child = node.children[name] = Node(name)
        child.total += queries
        node = child
    node.own += queries


def walk(root: Node) -> Iterable[tuple[Path, Node]]:
    """Yield each node below ``root`` with its path: parents before children, larger nodes first."""
    waiting: list[tuple[Path, Node]] = [((node.name,), node) for node in reversed(root.by_size)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        waiting.extend(((*path, child.name), child) for child in reversed(node.by_size))


def totals_by_path(root: Node) -> dict[Path, int]:
    """Return the total of each node. The empty path has the total of the root."""
    return {(): root.total, **{path: node.total for path, node in walk(root)}}


def rates(root: Node, before: Mapping[Path, int], seconds: float) -> dict[Node, float]:
    """Return the growth of each total per second, from the totals that the paths had ``seconds`` ago.

    A total that has shrunk grows by 0: that of queries without a result, which get theirs.
    """

    def rate(path: Path, node: Node) -> float:
        return max(node.total - before.get(path, 0), 0) / seconds

    return {root: rate((), root), **{node: rate(path, node) for path, node in walk(root)}}


def largest(root: Node, limit: int) -> dict[Node, list[Node]]:
    """Return the ``limit`` nodes with the highest totals, each with its children among them, sorted by name.

    No node has a higher total than its parent, so the result is one tree below ``root``.
    """
    kept: dict[Node, list[Node]] = {root: []}
    # A tuple of total, order of arrival, node and parent. The order decides between equals: nodes do not compare.
    waiting: list[tuple[int, int, Node, Node]] = []
    arrived = 0

    def queue_children(parent: Node) -> None:
        nonlocal arrived
        for child in parent.children.values():
            heapq.heappush(waiting, (-child.total, arrived, child, parent))
            arrived += 1

    queue_children(root)
    while waiting and len(kept) < limit:
        _, _, node, parent = heapq.heappop(waiting)
        kept[node] = []
        kept[parent].append(node)
        queue_children(node)
    for children in kept.values():
        # By name, not by size: a reader finds a node at the same place while numbers grow.
        children.sort(key=lambda child: child.name)
    return kept
