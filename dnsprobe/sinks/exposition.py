"""Many series in the formats of Prometheus; only what has changed is rendered again.

prometheus_client renders all series at each scrape: 80 to 300 ms for 10,000 of them, in which the event loop does
nothing else. Most series belong to processes that have exited, and never change. So this module keeps the line of each
series and replaces only values that have changed, which takes a fifth of the time (benchmarks/scrape_cost.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

#: The keys of series: tuples of the same kind of texts, which can be sorted.
_K = TypeVar("_K", bound=tuple[Any, ...])
_N = TypeVar("_N", bound=float)

#: An encoder, as :func:`prometheus_client.exposition.choose_encoder` returns it.
Encoder = Callable[[CollectorRegistry], bytes]

#: Series that are rendered in one step: 2 to 8 ms.
_AT_ONCE = 256

#: OpenMetrics ends with this line, once.
_EOF = b"# EOF\n"


class _FixedRegistry(CollectorRegistry):
    """A registry of metrics that were collected before."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def encode(encoder: Encoder, families: Iterable[Metric]) -> bytes:
    """Return ``families`` in the encoder's format, without the end of the document."""
    return encoder(_FixedRegistry(families)).removesuffix(_EOF)


def end_of_document(encoder: Encoder) -> bytes:
    """Return what the encoder's format has after all metrics."""
    return encoder(_FixedRegistry(()))


class SeriesLines(Generic[_K, _N]):
    """The lines of a metric with many series in the format of one encoder.

    ``family`` returns the metric with the given numbers. Their keys stand for the labels, and have their order. The
    object keeps one line for each series of the last :meth:`render`.
    """

    def __init__(self, encoder: Encoder, family: Callable[[Mapping[_K, _N]], Metric]) -> None:
        self._encoder, self._family = encoder, family
        self._lines: dict[_K, bytes] = {}  # in the order of the keys
        self._counts: Mapping[_K, _N] = {}

    def render(self, counts: Mapping[_K, _N]) -> bytes:
        """Return what the encoder would return for the family of ``counts``, which must not be changed later."""
        before, lines = self._counts, self._lines
        changed = {series: number for series, number in counts.items() if before.get(series) != number}
        new = {series: number for series, number in changed.items() if series not in lines}
        if new:
            lines = lines | self._render_all(new)
            lines = {series: lines[series] for series in sorted(lines)}
        if len(lines) > len(counts):
            lines = {series: line for series, line in lines.items() if series in counts}
        for series in changed.keys() - new.keys():
            lines[series] = _with_value(lines[series], changed[series])
        self._lines, self._counts = lines, counts
        return b"".join((encode(self._encoder, [self._family({})]), *lines.values()))

    def preparing(self, counts: Mapping[_K, _N]) -> Iterator[None]:
        """Render the lines of new series, a part of them at a time, so that the next :meth:`render` is fast."""
        new = [series for series in counts if series not in self._lines]
        lines: dict[_K, bytes] = {}
        for at in range(0, len(new), _AT_ONCE):
            lines |= self._render_all({series: counts[series] for series in new[at : at + _AT_ONCE]})
            yield
        if lines:
            lines |= self._lines
            self._lines = {series: lines[series] for series in sorted(lines)}

    def _render_all(self, counts: Mapping[_K, _N]) -> dict[_K, bytes]:
        text = encode(self._encoder, [self._family(counts)])
        # A line break in a label is escaped, so each sample has one line.
        lines = [line + b"\n" for line in text.split(b"\n") if line and not line.startswith(b"#")]
        return dict(zip(sorted(counts), lines, strict=True))


def _with_value(line: bytes, number: float) -> bytes:
    """Return a line with another value. The value is what follows the last space: there is no timestamp or exemplar."""
    value: str = floatToGoString(number)
    return b"%b%b\n" % (line[: line.rindex(b" ") + 1], value.encode())
