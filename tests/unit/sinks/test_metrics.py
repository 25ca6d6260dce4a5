"""A scrape, byte for byte, and checked by promtool."""

import math
from pathlib import Path
from typing import Any

import pytest
from made_up import HOSTILE
from prometheus_client import parser
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import CollectorRegistry
from promtool import promtool

from dnsprobe import __version__
from dnsprobe.kernel.losses import LOSSES, NO_LOSSES
from dnsprobe.kernel.other_messages import OTHER_MESSAGES
from dnsprobe.model import OPTIONAL_LABELS, Series
from dnsprobe.pipeline.answers import Group, Outcomes
from dnsprobe.pipeline.latencies import COUNT_AT, SUM_AT, Sample
from dnsprobe.sinks.metrics import DaemonCollector, Registry, Snapshot

GOLDEN = Path(__file__).parents[1] / "scrape.txt"

NASTY = 'a"b\\x0a\\\\c{d="e"} 7 # é'

FULL = Snapshot(
    counts={
        Series(
            "example.test", "A", "udp", "remote", "dig", "bash;make;dig", "session-3.scope", "3f4e3f4e3f4e"
        ): 1_000_003,
        Series("", "", "dot", "remote", "firefox", "sway;firefox", "session-3.scope", ""): 13,
        Series("example.test", "AAAA", "tcp", "remote", "dig", "bash;make;dig", "", ""): 7,
        Series("example.test", "(other)", "udp", "remote", "(other)", "(other)", "", ""): 5,
        Series("", "malformed", "udp", "remote", "nmap", "bash;nmap", "session-3.scope", ""): 17,
        Series(".", "HTTPS", "udp", "remote", NASTY, f"x;{NASTY}", "user@1000.service", ""): 11,
    },
    exceeded={("ada", "", "names"): 21, ("", "nightly.service", "counters"): 22},
    hooks=[
        ("udp4", "ip_send_skb", "fentry", "ip_send_skb"),
        ("udp6", "ip_send_skb", "fentry", "ip6_send_skb"),
        ("tcp4", "tcp_sendmsg", "kprobe", "x.isra.51"),
    ],
    verified={"udp": True, "udp6": True, "tcp": False},
    events=42,
    losses=NO_LOSSES | {loss: place for place, loss in enumerate(LOSSES)},
    other_messages={kind.reason: 100 + place for place, kind in enumerate(OTHER_MESSAGES)},
    journal_entries=40,
    rules=2,
    reload_successful=False,
    reload_time=1_767_323_045.25,
    web_config_good=False,
    series_expired=31,
    expired={"example.test": 32, "gone.test": 33},
    expired_connections=34,
    expired_unread=35,
)


#: Without type information in some versions of prometheus_client.
parse: Any = parser.text_string_to_metric_families


def scrape(snapshot: Snapshot) -> bytes:
    registry = CollectorRegistry()
    registry.register(DaemonCollector(lambda: snapshot))
    return generate_latest(registry)


def check(text: bytes) -> None:
    result = promtool("check", "metrics", text=text)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_full_scrape_is_the_golden_file() -> None:
    text = scrape(FULL).replace(f'version="{__version__}"'.encode(), b'version="VERSION"')
    assert text.decode() == GOLDEN.read_text(encoding="utf-8")


def test_promtool_accepts_a_full_scrape() -> None:
    check(generate_latest(Registry(lambda: FULL)))


def test_promtool_accepts_an_empty_scrape() -> None:
    check(generate_latest(Registry(Snapshot)))


def test_everything_is_there_from_the_start() -> None:
    text = generate_latest(Registry(Snapshot)).decode()
    for name in (
        "dnsprobe_queries_total",
        "dnsprobe_build_info",
        "dnsprobe_hook_info",
        "dnsprobe_path_verified",
        "dnsprobe_events_total",
        "dnsprobe_events_lost_total",
        "dnsprobe_queries_unattributed_total",
        "dnsprobe_packets_unparsed_total",
        "dnsprobe_messages_other_total",
        "dnsprobe_lineage_lost_total",
        "dnsprobe_journal_entries_total",
        "dnsprobe_journal_dropped_total",
        "dnsprobe_log_dropped_total",
        "dnsprobe_series_folded_total",
        "dnsprobe_names_undecided_total",
        "dnsprobe_share_exceeded_total",
        "dnsprobe_config_last_reload_successful",
        "dnsprobe_config_last_reload_success_timestamp_seconds",
        "dnsprobe_web_config_last_reload_successful",
        "dnsprobe_rules",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
    ):
        assert f"# HELP {name} " in text
        assert f"# TYPE {name} " in text
    for sample in (
        "dnsprobe_events_total 0.0",
        *(f'{loss.metric}{{reason="{loss.reason}"}} 0.0' for loss in LOSSES if loss.reason),
        *(f'dnsprobe_messages_other_total{{reason="{kind.reason}"}} 0.0' for kind in OTHER_MESSAGES),
        "dnsprobe_journal_entries_total 0.0",
        "dnsprobe_journal_dropped_total 0.0",
        "dnsprobe_log_dropped_total 0.0",
        "dnsprobe_series_folded_total 0.0",
        "dnsprobe_names_undecided_total 0.0",
        f'dnsprobe_build_info{{version="{__version__}"}} 1.0',
    ):
        assert f"{sample}\n" in text
    assert "dnsprobe_queries_total{" not in text


@pytest.mark.parametrize("labels", [(), ("unit",), ("container",), ("unit", "user")])
def test_labels_are_left_out(labels: tuple[str, ...]) -> None:
    given = [label if label in labels else "" for label in OPTIONAL_LABELS]
    counts = {Series("example.test", "A", "udp", "remote", "dig", "bash;dig", *given): 3}
    text = generate_latest(Registry(lambda: Snapshot(counts=counts), labels)).decode()
    shown = {"domain": "example.test", "process": "dig", "qtype": "A", "to": "remote", "transport": "udp"}
    shown |= {"tree": "bash;dig"} | {label: label for label in labels}
    expected = ",".join(f'{name}="{value}"' for name, value in sorted(shown.items()))
    assert f"dnsprobe_queries_total{{{expected}}} 3.0\n" in text


def test_each_scrape_asks_anew() -> None:
    numbers = iter(range(1, 10))
    registry = CollectorRegistry()
    registry.register(DaemonCollector(lambda: Snapshot(events=next(numbers))))
    assert b"dnsprobe_events_total 1.0\n" in generate_latest(registry)
    assert b"dnsprobe_events_total 2.0\n" in generate_latest(registry)


@pytest.mark.parametrize("raw", HOSTILE)
@pytest.mark.parametrize("form", ["text", "openmetrics"])
def test_hostile_labels_do_not_break_the_scrape(raw: bytes, form: str) -> None:
    # A label that was not escaped must not break the whole scrape.
    label = raw.decode("utf-8", "surrogateescape") * 20
    snapshot = Snapshot(
        counts={Series(label, label, label, label, label, label, label, label): 3},
        hooks=[(label, label, label, label)],
        verified={label: True},
    )
    registry = Registry(lambda: snapshot)
    if form == "openmetrics":
        generate_openmetrics, _ = choose_encoder("application/openmetrics-text")
        text = generate_openmetrics(registry).decode()
        assert text.endswith("\n# EOF\n")
        assert all(line.isprintable() for line in text.split("\n"))
        return
    text = generate_latest(registry).decode()
    assert all(line.isprintable() for line in text.split("\n"))
    check(text.encode())
    # Without a domain, it is no query.
    name = "dnsprobe_queries" if label else "dnsprobe_messages_unread"
    (queries,) = [found for found in parse(text) if found.name == name]
    (sample,) = queries.samples
    assert sample.value == 3
    assert len(set(sample.labels.values())) == 1


def test_labels_that_are_safe_stay_as_they_are() -> None:
    text = generate_latest(Registry(lambda: FULL, OPTIONAL_LABELS)).decode()
    (queries,) = [found for found in parse(text) if found.name == "dnsprobe_queries"]
    assert {tuple(sample.labels[name] for name in Series._fields) for sample in queries.samples} == {
        tuple(series) for series in FULL.counts if series.of_queries
    }


def test_results_of_queries() -> None:
    series = Series("example.test", "A", "udp", "local", "dig", "bash;dig", "a.service", "")
    udp, tcp = Group("example.test", "udp"), Group("example.test", "tcp")
    outcomes = Outcomes(
        responses={(series, "NXDOMAIN"): 3, (series, "NODATA"): 1},
        unanswered={(series, "timeout"): 2},
        responses_expired={("example.test", "NOERROR"): 7},
        unanswered_expired={("example.test", "closed"): 6},
        waiting={udp: 1, tcp: 0},
        untracked={udp: 4, tcp: 0},
        unmatched={"late": 5, "duplicate": 0},
    )
    lines = scrape(Snapshot(outcomes=outcomes)).decode().splitlines()
    labels = 'container="",domain="example.test",process="dig",qtype="A"'
    rest = 'to="local",transport="udp",tree="bash;dig",unit="a.service"'
    assert [line for line in lines if 'domain="' in line or "unmatched_total{" in line] == [
        'dnsprobe_responses_unmatched_total{reason="duplicate"} 0.0',
        'dnsprobe_responses_unmatched_total{reason="late"} 5.0',
        'dnsprobe_responses_expired_total{domain="example.test",rcode="NOERROR"} 7.0',
        'dnsprobe_unanswered_expired_total{domain="example.test",reason="closed"} 6.0',
        f'dnsprobe_responses_total{{{labels},rcode="NODATA",{rest}}} 1.0',
        f'dnsprobe_responses_total{{{labels},rcode="NXDOMAIN",{rest}}} 3.0',
        f'dnsprobe_unanswered_total{{{labels},reason="timeout",{rest}}} 2.0',
        'dnsprobe_queries_waiting{domain="example.test",transport="tcp"} 0.0',
        'dnsprobe_queries_waiting{domain="example.test",transport="udp"} 1.0',
        'dnsprobe_queries_untracked_total{domain="example.test",transport="tcp"} 0.0',
        'dnsprobe_queries_untracked_total{domain="example.test",transport="udp"} 4.0',
    ]
    assert b"dnsprobe_responses" not in scrape(Snapshot())
    check(scrape(Snapshot(outcomes=outcomes)))


@pytest.mark.parametrize("labels", [("unit", "container"), ()])
def test_a_histogram_of_latencies(labels: tuple[str, ...]) -> None:
    group = ("example.test", "udp", "a.service")
    latencies = {
        Sample(*group, 0, 0.0001): 2.0,
        Sample(*group, 1, 2.5): 5.0,
        Sample(*group, 2, math.inf): 6.0,
        Sample(*group, COUNT_AT, math.inf): 6.0,
        Sample(*group, SUM_AT, math.inf): 4.25,
    }
    registry = CollectorRegistry()
    registry.register(DaemonCollector(lambda: Snapshot(outcomes=Outcomes(latencies=latencies)), labels))
    text = generate_latest(registry)
    check(text)
    (family,) = [found for found in parse(text.decode()) if found.name == "dnsprobe_response_latency_seconds"]
    assert family.type == "histogram"
    rest = {"domain": "example.test", "transport": "udp"} | ({"unit": "a.service"} if labels else {})
    assert [(sample.name.removeprefix(family.name), sample.labels, sample.value) for sample in family.samples] == [
        ("_bucket", rest | {"le": "0.0001"}, 2),
        ("_bucket", rest | {"le": "2.5"}, 5),
        ("_bucket", rest | {"le": "+Inf"}, 6),
        ("_count", rest, 6),
        ("_sum", rest, 4.25),
    ]
