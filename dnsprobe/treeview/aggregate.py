"""Series of process trees added up into one tree: who asked how often, and who is behind that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from dnsprobe.errors import UserError
from dnsprobe.model import OPTIONAL_LABELS, OTHER, UNKNOWN
from dnsprobe.text import printable, shown
from dnsprobe.treeview.client import Counted, Scrape

#: What ``by`` takes.
LABELS = ("domain", "qtype", "transport", "unit", "container")
#: Of those, the ones that a connection has whose queries cannot be read.
_OF_CONNECTIONS = ("transport", "unit", "container")
#: Stands for an empty label.
NONE = "(none)"
#: More than any tree of dnsprobe's has: 40 processes, the mark of a cut and a label.
_DEEPEST = 64

Path = tuple[str, ...]


@dataclass(slots=True)
class Node:
    """A process of a tree, or where ``label`` is true, the value of a label that trees are told apart by.

    ``own`` is what it asked itself, ``total`` that and what is below it. ``per_second`` is the growth of ``total``
    since the last look, None for the first.
    """

    name: str
    label: bool = False
    own: int = 0
    total: int = 0
    per_second: float | None = None
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def is_mark(self) -> bool:
        """True for what stands for trees that are not told apart; no process can be called like it."""
        return self.name in {OTHER, UNKNOWN}

    @property
    def ordered(self) -> list[Node]:
        """Those below it: the largest first, and last what stands for others."""
        return sorted(self.children.values(), key=lambda node: (node.is_mark, -node.total, node.name))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which series to take: of these domains, of these units, all where none is named; ``by`` is one of LABELS."""

    domains: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """What was chosen of a scrape: the queries, and the connections whose queries cannot be read.

    Both are roots without a name. ``trees`` is the number of different process trees that queries came from;
    ``hidden`` that of queries which may be of the chosen units, but do not tell theirs; ``known`` has the domains and
    the units of all that was counted.
    """

    queries: Node
    encrypted: Node
    trees: int
    hidden: int
    known_domains: tuple[str, ...]
    known_units: tuple[str, ...]


def tally(scrape: Scrape, choice: Choice) -> Tally:
    """Add up what is chosen. Raises UserError where the daemon leaves out a label that the choice needs."""
    queries, encrypted, trees = Node(""), Node(""), set()
    hidden = 0
    for label in OPTIONAL_LABELS:
        if label != choice.by and not (label == "unit" and choice.units):
            continue
        if any(label not in counted.labels for counted in scrape.queries + scrape.encrypted):
            raise UserError(
                f"this dnsprobe does not tell the {label}", "its configuration leaves it out: metrics.labels"
            )
    domain_wanted, unit_wanted = _wanted_domain(choice.domains), _wanted_unit(choice.units)
    for counted in scrape.queries:
        if not domain_wanted(counted.labels.get("domain", "")):
            continue
        tree = counted.labels.get("tree", "")
        if choice.units and _is_folded(counted, "unit"):
            hidden += counted.number
            continue
        if not unit_wanted(counted.labels.get("unit", "")):
            continue
        _add(queries, _path(counted, choice.by), counted.number, labelled=choice.by is not None)
        trees.add(tree)
    # They have no domain.
    for counted in scrape.encrypted if not choice.domains else ():
        if unit_wanted(counted.labels.get("unit", "")) and not (choice.units and _is_folded(counted, "unit")):
            by = choice.by if choice.by in _OF_CONNECTIONS else None
            _add(encrypted, _path(counted, by), counted.number, labelled=by is not None)
    known = [
        tuple(sorted({shown(counted.labels.get(label, "")) for counted in scrape.queries} - {""}))
        for label in ("domain", "unit")
    ]
    return Tally(queries, encrypted, len(trees - {OTHER, UNKNOWN}), hidden, *known)


def _path(counted: Counted, by: str | None) -> Path:
    path = tuple(map(shown, counted.labels.get("tree", "").split(";")))
    if len(path) > _DEEPEST:
        raise UserError("a process tree deeper than any of a dnsprobe", "give the address of a dnsprobe with --url")
    if by is None:
        return path
    return (UNKNOWN if _is_folded(counted, by) else _element(counted.labels.get(by, "")), *path)


def _is_folded(counted: Counted, label: str) -> bool:
    """True where a label is empty because of many processes together, not because it is so of each."""
    folded = counted.labels.get("tree", "") in {OTHER, UNKNOWN}
    return folded and label in OPTIONAL_LABELS and not counted.labels.get(label, "")


def _element(value: str) -> str:
    """Return the value of a label as a part of a path: what separates the parts is not in it."""
    return shown(value).replace(";", printable(";", also=";")) or NONE


def _add(root: Node, path: Path, number: int, *, labelled: bool) -> None:
    node = root
    node.total += number
    for depth, name in enumerate(path):
        node = node.children.setdefault(name, Node(name, label=labelled and depth == 0))
        node.total += number
    node.own += number


def _wanted_domain(patterns: Sequence[str]) -> Callable[[str], bool]:
    folded = [pattern.lower() for pattern in patterns]
    return _matcher(folded, lambda name: shown(name).lower())


def _wanted_unit(patterns: Sequence[str]) -> Callable[[str], bool]:
    # As systemctl(1) has it: a name without its type is that of a service.
    return _matcher([text if not text or set(text) & set(".*?[") else f"{text}.service" for text in patterns], shown)


def _matcher(patterns: Sequence[str], fold: Callable[[str], str]) -> Callable[[str], bool]:
    def matches(value: str) -> bool:
        text = fold(value)
        # Names of rules may have wildcards themselves: what is written the same is the same.
        return not patterns or any(text == pattern or fnmatchcase(text, pattern) for pattern in patterns)

    return matches


def walk(root: Node) -> Iterable[tuple[Path, Node]]:
    """Yield each node below ``root`` with its path, in order, parents first."""
    waiting: list[tuple[Path, Node]] = [((node.name,), node) for node in reversed(root.ordered)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        waiting.extend(((*path, child.name), child) for child in reversed(node.ordered))


def totals(root: Node) -> dict[Path, int]:
    """Return the total of each node, and under the empty path that of all."""
    return {(): root.total, **{path: node.total for path, node in walk(root)}}


def set_rates(root: Node, before: Mapping[Path, int], seconds: float) -> None:
    """Tell each node how much it grew each second since it had the totals ``before``."""
    root.per_second = (root.total - before.get((), 0)) / seconds
    for path, node in walk(root):
        node.per_second = (node.total - before.get(path, 0)) / seconds
