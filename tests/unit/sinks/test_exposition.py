"""Rendering with lines kept from earlier scrapes gives the same as prometheus_client."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import HOSTILE
from prometheus_client import exposition
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily

from dnsprobe.kernel.losses import LOSSES, NO_LOSSES
from dnsprobe.model import DOT, OPTIONAL_LABELS, Series
from dnsprobe.pipeline.answers import Group, Outcomes
from dnsprobe.pipeline.latencies import SUM_AT, Sample
from dnsprobe.sinks import metrics
from dnsprobe.sinks.exposition import SeriesLines
from dnsprobe.sinks.metrics import Registry, Snapshot

TEXT = "text/plain;version=0.0.4"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
#: What a Prometheus 3 asks for.
NEWEST = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4"
ACCEPTED = ("", TEXT, OPENMETRICS, NEWEST)

LABELS = st.sampled_from(
    ["", "dig", "bash;dig", 'a"b\\c\nd', "a b", "# EOF", " 1.0", "é\u2028", "\\n"]
    + [raw.decode("utf-8", "surrogateescape") for raw in HOSTILE]
)
SERIES = st.builds(Series, *[LABELS] * 2, st.sampled_from(["udp", "tcp", DOT]), *[LABELS] * 4)
NUMBERS = st.integers(min_value=0, max_value=2**64 - 1)
COUNTS = st.dictionaries(SERIES, NUMBERS, max_size=8)


def without_process(text: bytes) -> list[bytes]:
    """Return the lines of a scrape that do not change from one scrape to the next."""
    return [line for line in text.split(b"\n") if b"process_" not in line]


@given(scrapes=st.lists(st.tuples(COUNTS, st.sampled_from(ACCEPTED)), min_size=1, max_size=6), data=st.data())
@example(scrapes=[({}, TEXT), ({}, OPENMETRICS)], data=None)
@settings(deadline=None)
def test_each_scrape_is_the_same_as_with_prometheus_client(
    scrapes: list[tuple[dict[Series, int], str]], data: st.DataObject | None
) -> None:
    now: dict[Series, int] = {}
    labels = data.draw(st.sets(st.sampled_from(OPTIONAL_LABELS))) if data else OPTIONAL_LABELS
    registry = Registry(lambda: Snapshot(counts=now, losses=NO_LOSSES | {LOSSES[0]: len(now)}), labels)
    for counts, accept in scrapes:
        # Some series stay, some change, and some are new. Some disappear, too, although series of a daemon never do.
        gone = data.draw(st.sets(st.sampled_from(sorted(now)))) if data and now else set()
        now = {series: number for series, number in now.items() if series not in gone} | counts
        encoder, content_type = choose_encoder(accept)
        body, found = registry.encode(accept)
        assert found == content_type
        assert without_process(body) == without_process(encoder(registry))


OUTCOMES = st.builds(
    Outcomes,
    responses=st.dictionaries(st.tuples(SERIES, st.sampled_from(["NOERROR", "NODATA"])), NUMBERS, max_size=8),
    unanswered=st.dictionaries(st.tuples(SERIES, st.sampled_from(["closed", "timeout"])), NUMBERS, max_size=8),
    waiting=st.dictionaries(st.builds(Group, LABELS, LABELS), NUMBERS, max_size=8),
    untracked=st.dictionaries(st.builds(Group, LABELS, LABELS), NUMBERS, max_size=8),
    latencies=st.dictionaries(
        st.builds(
            Sample, LABELS, st.just("udp"), LABELS, st.integers(0, SUM_AT), st.sampled_from([0.0001, 2.5, math.inf])
        ),
        st.floats(0, 1e9),
        max_size=8,
    ),
)


@given(scrapes=st.lists(st.tuples(st.none() | OUTCOMES, st.sampled_from(ACCEPTED)), min_size=1, max_size=6))
@settings(deadline=None)
def test_results_are_the_same_as_with_prometheus_client(scrapes: list[tuple[Outcomes | None, str]]) -> None:
    now: Outcomes | None = None
    registry = Registry(lambda: Snapshot(outcomes=now))
    for outcomes, accept in scrapes:
        now = outcomes
        if now is not None and len(now.responses) % 2:
            list(registry.preparing({}, now))
        encoder, _ = choose_encoder(accept)
        assert without_process(registry.encode(accept)[0]) == without_process(encoder(registry))


@pytest.mark.parametrize("accept", ACCEPTED)
def test_what_comes_after_the_series(accept: str) -> None:
    registry = Registry(lambda: Snapshot(counts={Series("a", "A", "udp", "remote", "b", "b", "", ""): 3}))
    encoder, _ = choose_encoder(accept)
    body, _ = registry.encode(accept)
    names = [line.split(b" ")[0] for line in body.split(b"\n") if not line.startswith(b"#")]
    assert b"process_resident_memory_bytes" in names
    assert names == [line.split(b" ")[0] for line in encoder(registry).split(b"\n") if not line.startswith(b"#")]
    assert body.count(b"# EOF\n") == (accept in {OPENMETRICS, NEWEST})


def series(number: int) -> Series:
    return Series("example.test", "A", "udp", "remote", f"job{number}", f"bash;job{number}", "", "")


def test_only_what_is_new_is_rendered() -> None:
    rendered: list[set[Series]] = []

    def family(counts: Mapping[Series, int]) -> CounterMetricFamily:
        rendered.append(set(counts))
        made = CounterMetricFamily("a", "A.", labels=["tree"])
        for one, number in sorted(counts.items()):
            made.add_metric([one.tree], number)
        return made

    lines = SeriesLines(exposition.generate_latest, family)
    head = b"# HELP a_total A.\n# TYPE a_total counter\n"
    first, second, third = (b'a_total{tree="bash;job%d"} ' % number for number in range(3))
    assert lines.render({series(2): 1, series(1): 7}) == head + second + b"7.0\n" + third + b"1.0\n"
    counts = {series(2): 12_345_678, series(1): 7, series(0): 3}
    assert lines.render(counts) == head + first + b"3.0\n" + second + b"7.0\n" + third + b"1.2345678e+07\n"
    assert [made for made in rendered if made] == [{series(1), series(2)}, {series(0)}]


def test_an_error_in_rendering_changes_no_kept_line() -> None:
    broken = False

    def family(counts: Mapping[Series, int]) -> CounterMetricFamily:
        if broken:
            raise RuntimeError("broken")
        made = CounterMetricFamily("a", "A.", labels=["tree"])
        for one, number in sorted(counts.items()):
            made.add_metric([one.tree], number)
        return made

    lines = SeriesLines(exposition.generate_latest, family)
    first = lines.render({series(1): 7})
    broken = True
    with pytest.raises(RuntimeError):
        lines.render({series(1): 8, series(2): 1})
    broken = False
    assert lines.render({series(1): 7}) == first


def test_lines_of_few_formats_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer versions of prometheus_client have more formats than two."""
    counts = {series(number): 1 for number in range(1000)}
    registry = Registry(lambda: Snapshot(counts=counts))
    monkeypatch.setattr(metrics, "choose_encoder", lambda accept: (exposition.generate_latest, accept))
    tracemalloc.start()
    registry.encode("0")
    registry.encode("1")
    two, _ = tracemalloc.get_traced_memory()
    for number in range(2, 20):
        registry.encode(str(number))
    twenty, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert twenty < two * 1.5


def test_prepared_series_are_rendered_in_parts_and_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[Series, int] = {}
    registry = Registry(lambda: Snapshot(counts=now))
    registry.encode("")
    now |= {
        Series("test", "A", "udp", "remote", "dig", f"bash;dig{number}", "", ""): number + 1 for number in range(1000)
    }
    assert sum(1 for _ in registry.preparing(now)) >= 4
    monkeypatch.setattr(SeriesLines, "_render_all", lambda *_: pytest.fail("rendered again"))
    text, _ = registry.encode("")
    monkeypatch.undo()
    expected, _ = Registry(lambda: Snapshot(counts=now)).encode("")
    ours = [line for line in text.splitlines() if line.startswith(b"dnsprobe_queries_total")]
    assert ours == [line for line in expected.splitlines() if line.startswith(b"dnsprobe_queries_total")]
    assert len(ours) == 1000
