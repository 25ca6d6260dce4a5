"""Many series as Prometheus reads them, without rendering again what is as it was.

prometheus_client renders each series anew at each scrape: a quarter of a second for 10,000 of them, in which the daemon
does nothing else. Most belong to processes that are gone and never change. So what it made of a series is kept, and of
one that has changed, the value alone is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from dnsprobe.model import Series

#: What :func:`prometheus_client.exposition.choose_encoder` chooses.
Encoder = Callable[[CollectorRegistry], bytes]

#: Without type information in some versions of prometheus_client.
_go_string = cast(Callable[[int], str], floatToGoString)

#: The end of OpenMetrics, once and last.
_EOF = b"# EOF\n"


class _Families:
    """What an encoder takes for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def encode(encoder: Encoder, families: Iterable[Metric]) -> bytes:
    """Return what ``encoder`` makes of ``families``, without an end."""
    return encoder(cast(CollectorRegistry, _Families(families))).removesuffix(_EOF)


def end(encoder: Encoder) -> bytes:
    """Return what ``encoder`` has after all families."""
    return encoder(cast(CollectorRegistry, _Families(())))


class Lines:
    """The lines of a counter with many series, as one encoder renders them.

    ``family`` makes it of given series. Holds a line for each series of the last :meth:`render`.
    """

    def __init__(self, encoder: Encoder, family: Callable[[Mapping[Series, int]], CounterMetricFamily]) -> None:
        self._encoder, self._family = encoder, family
        self._lines: dict[Series, bytes] = {}  # in the order of the series
        self._shown: Mapping[Series, int] = {}

    def render(self, counts: Mapping[Series, int]) -> bytes:
        """Return what the encoder would return for the family of ``counts``, which must not be changed later."""
        was, lines = self._shown, self._lines
        changed = {series: number for series, number in counts.items() if was.get(series) != number}
        new = {series: number for series, number in changed.items() if series not in lines}
        if new:
            lines = lines | self._rendered(new)
            lines = {series: lines[series] for series in sorted(lines)}
        if len(lines) > len(counts):
            lines = {series: line for series, line in lines.items() if series in counts}
        for series in changed.keys() - new.keys():
            line = lines[series]
            # A value has no space, and nothing follows it: no timestamp, no exemplar.
            lines[series] = b"%b%b\n" % (line[: line.rindex(b" ") + 1], _go_string(changed[series]).encode())
        self._lines, self._shown = lines, counts
        return b"".join((encode(self._encoder, [self._family({})]), *lines.values()))

    def _rendered(self, counts: Mapping[Series, int]) -> dict[Series, bytes]:
        text = encode(self._encoder, [self._family(counts)])
        # A line break in a label is escaped, so each sample has one line.
        lines = [line + b"\n" for line in text.split(b"\n") if line and not line.startswith(b"#")]
        return dict(zip(sorted(counts), lines, strict=True))
