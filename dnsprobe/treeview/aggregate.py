"""Adds up the series of a scrape by process tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from dnsprobe.errors import UserError
from dnsprobe.model import OPTIONAL_LABELS, OTHER, UNKNOWN
from dnsprobe.text import printable, shown
from dnsprobe.treeview.client import Scrape, SeriesCount
from dnsprobe.treeview.nodes import Node, Path, add
from dnsprobe.treeview.results import Results, add_results, known

#: The result of a query: a response code, or the reason why no answer came.
RCODE = "rcode"
#: The labels that ``Choice.by`` accepts.
LABELS = ("domain", "qtype", "transport", "to", "unit", "container", "user", "server", RCODE)
#: The labels of encrypted connections among them: without their queries, name and type are unknown.
_CONNECTION_LABELS = ("transport", "to", "unit", "container", "user", "server")
#: Shown for an empty label.
NONE = "(none)"
#: Shown in place of a result, of queries that have none: they wait, or are untracked.
NO_RESULT = "(no result)"
#: No tree of a dnsprobe is deeper: 40 processes, the mark of a cut-off top and a label.
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Choice:
    """Which series to count: those of these domains and units (empty: all). ``by`` is one of LABELS, or None."""

    domains: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    by: str | None = None


@dataclass(slots=True)
class TreeCounts:
    """The chosen series of a scrape, added up.

    ``queries`` and ``encrypted`` (connections whose queries cannot be read) are roots without a name. ``label_nodes``
    are their children that stand for values of ``Choice.by``. ``rates`` has the growth of each total per second since
    the previous reading; it is empty at the first one. ``trees`` has the process trees that sent queries.
    ``unit_unknown`` counts queries without a known unit, which may belong to the chosen units. ``known_domains`` and
    ``known_units`` are those of all series of the scrape, chosen or not.

    ``by`` is that of the choice. ``results`` is what became of the queries of each node, None if the daemon does not
    track answers; with ``by="rcode"``, only that of ``queries``. ``recent`` is the same since the previous reading,
    None at the first one. ``waiting`` is how many queries wait for their answer, None if that is not known for the
    chosen units.
    """

    queries: Node = field(default_factory=lambda: Node(""))
    encrypted: Node = field(default_factory=lambda: Node(""))
    label_nodes: set[Node] = field(default_factory=set)
    rates: dict[Node, float] = field(default_factory=dict)
    trees: set[str] = field(default_factory=set)
    unit_unknown: int = 0
    known_domains: tuple[str, ...] = ()
    known_units: tuple[str, ...] = ()
    by: str | None = None
    results: dict[Node, dict[str, int]] | None = None
    recent: Mapping[Node, Results] | None = None
    waiting: int | None = None

    @property
    def without_result(self) -> int:
        """How many queries have no result: they wait, or are untracked."""
        return 0 if self.results is None else self.queries.total - known(self.results.get(self.queries, {}))


def aggregate(scrape: Scrape, choice: Choice) -> TreeCounts:
    """Add up the chosen series of a scrape; raise UserError if the daemon does not export a label that is needed."""
    _require_labels(scrape, choice)
    counts = TreeCounts(known_domains=_values(scrape, "domain"), known_units=_values(scrape, "unit"), by=choice.by)
    domain_wanted, unit_wanted = _domain_filter(choice.domains), _unit_filter(choice.units)

    def chosen(all_series: Iterable[SeriesCount]) -> list[SeriesCount]:
        return [
            series
            for series in all_series
            if domain_wanted(series.labels.get("domain", ""))
            and not (choice.units and _is_folded(series, "unit"))
            and unit_wanted(series.labels.get("unit", ""))
        ]

    queries = chosen(scrape.queries)
    results = chosen(scrape.results or ())
    if choice.by == RCODE:
        _add_by_result(counts, queries, results)
    else:
        for series in queries:
            _add(counts, counts.queries, series, choice.by)
    if scrape.results is not None:
        counts.results = _results(counts, results, choice.by)
        if not choice.units:
            waiting = sum(series.value for series in scrape.waiting if domain_wanted(series.labels.get("domain", "")))
            counts.waiting = min(waiting, counts.without_result)
    counts.trees = {series.labels.get("tree", "") for series in queries} - {OTHER, UNKNOWN}
    if choice.units:
        folded = (series for series in scrape.queries if _is_folded(series, "unit"))
        counts.unit_unknown = sum(series.value for series in folded if domain_wanted(series.labels.get("domain", "")))
    # Encrypted connections have no domain.
    for series in scrape.encrypted if not choice.domains else ():
        if unit_wanted(series.labels.get("unit", "")) and not (choice.units and _is_folded(series, "unit")):
            _add(counts, counts.encrypted, series, choice.by if choice.by in _CONNECTION_LABELS else None)
    return counts


def _add_by_result(counts: TreeCounts, queries: Iterable[SeriesCount], results: Iterable[SeriesCount]) -> None:
    """Add queries by their result, and those without a result."""
    left: Counter[Path] = Counter()
    for series in queries:
        left[_path(series)] += series.value
    for series in results:
        path, name = _path(series), _path_element(series.result)
        add(counts.queries, (name, *path), series.value)
        left[path] -= series.value
    for path, number in left.items():
        if number < 0:
            raise _more_results_than_queries()
        if number:
            add(counts.queries, (NO_RESULT, *path), number)
    counts.label_nodes.update(counts.queries.children.values())


def _results(counts: TreeCounts, results: Iterable[SeriesCount], by: str | None) -> dict[Node, dict[str, int]]:
    """Return what became of the queries of each node."""
    of_nodes: dict[Node, dict[str, int]] = {}
    for series in results:
        path: Path = () if by == RCODE else _whole_path(series, by)
        try:
            add_results(of_nodes, counts.queries, path, [(shown(series.result), series.value)])
        except KeyError:
            raise _more_results_than_queries() from None
    if any(known(of_node) > node.total for node, of_node in of_nodes.items()):
        raise _more_results_than_queries()
    return of_nodes


def _more_results_than_queries() -> UserError:
    return UserError("the answer contains more results than queries", "use --url with the address of a dnsprobe")


def _require_labels(scrape: Scrape, choice: Choice) -> None:
    for label in OPTIONAL_LABELS:
        needed = label == choice.by or (label == "unit" and choice.units)
        if needed and any(label not in series.labels for series in scrape.queries + scrape.encrypted):
            raise UserError(
                f"this dnsprobe does not export the label {label}", "add it to metrics.labels in its configuration"
            )
    if choice.by == RCODE and scrape.results is None:
        raise UserError("this dnsprobe does not track answers", "set answers in its configuration")


def _values(scrape: Scrape, label: str) -> tuple[str, ...]:
    return tuple(sorted({shown(series.labels.get(label, "")) for series in scrape.queries} - {""}))


def _add(counts: TreeCounts, root: Node, series: SeriesCount, by: str | None) -> None:
    path = _whole_path(series, by)
    add(root, path, series.value)
    if by is not None:
        counts.label_nodes.add(root.children[path[0]])


def _whole_path(series: SeriesCount, by: str | None) -> Path:
    """Return the path of a series below the root: its tree, below the value of a label."""
    if by is None:
        return _path(series)
    return (UNKNOWN if _is_folded(series, by) else _path_element(series.labels.get(by, "")), *_path(series))


def _path(series: SeriesCount) -> Path:
    path = tuple(map(shown, series.labels.get("tree", "").split(";")))
    if len(path) > _MAX_DEPTH:
        raise UserError(
            f"the answer contains a process tree of more than {_MAX_DEPTH} levels",
            "use --url with the address of a dnsprobe",
        )
    return path


def _is_folded(series: SeriesCount, label: str) -> bool:
    """Return whether a label is empty because the series counts many processes, which may have different values."""
    folded = series.labels.get("tree", "") in {OTHER, UNKNOWN}
    return folded and label in OPTIONAL_LABELS and not series.labels.get(label, "")


def _path_element(value: str) -> str:
    """Return the value of a label as one element of a path, in which the separator is escaped."""
    return shown(value).replace(";", printable(";", also=";")) or NONE


def _domain_filter(patterns: Sequence[str]) -> Callable[[str], bool]:
    return _filter([pattern.lower() for pattern in patterns], lambda name: shown(name).lower())


def _unit_filter(patterns: Sequence[str]) -> Callable[[str], bool]:
    # As in systemctl(1), a name without a type is that of a service.
    return _filter([text if not text or set(text) & set(".*?[") else f"{text}.service" for text in patterns], shown)


def _filter(patterns: Sequence[str], normalize: Callable[[str], str]) -> Callable[[str], bool]:
    def matches(value: str) -> bool:
        text = normalize(value)
        # Names of rules may contain wildcards themselves, so a pattern also matches the same text.
        return not patterns or any(text == pattern or fnmatchcase(text, pattern) for pattern in patterns)

    return matches
