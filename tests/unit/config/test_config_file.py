"""The configuration file: its meaning, the errors in a wrong file, and the documents about it."""

from __future__ import annotations

import os
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnsprobe.config import main as config
from dnsprobe.config import nodes
from dnsprobe.config.listen import parse_listen
from dnsprobe.config.main import (
    Config,
    DomainSpec,
    JournalConfig,
    MetricsConfig,
    ProbeConfig,
    load,
)
from dnsprobe.config.nodes import ConfigError
from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.model import DEFAULT_LABELS, Alert, Rate
from dnsprobe.names.pattern import parse_pattern
from dnsprobe.names.rcode import RCODES
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.names.wire import to_text
from dnsprobe.pipeline import answers
from dnsprobe.pipeline.session import probe_options

REPOSITORY = Path(__file__).resolve().parents[3]
SHIPPED = REPOSITORY / "config" / "dnsprobe.yaml"
PAGE = (REPOSITORY / "docs" / "configuration.md").read_text("utf-8")

#: The keys whose values are a choice.
CHOICES = {
    "hook": config.HOOKS,
    "tcp_hook": config.TCP_HOOKS,
    "tree": config.TREES,
    "labels": DEFAULT_LABELS,
    "page": ("true", "false"),
    "last_queries": config.LAST_QUERIES,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dnsprobe.yaml"


def errors(file: Path, text: str | bytes) -> list[str]:
    """Return the lines of the message, without the folder of the file."""
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.status == EXIT_USAGE
    lines = caught.value.message.split("\n")
    assert len(lines) == len(caught.value.problems)
    assert all(line.isprintable() and line.startswith(f"{file}:") for line in lines)
    assert all(problem.hint for problem in caught.value.problems)
    return [line.removeprefix(f"{file.parent}/") for line in lines]


def loaded(file: Path, text: str) -> Config:
    file.write_text(text)
    return load(file)


def test_the_shipped_file_is_the_default() -> None:
    assert load(SHIPPED) == config.default() == Config()


def test_every_field_has_a_key() -> None:
    for section in (*config.SECTIONS.values(), config.ANSWERS):
        names = [field.name for field in fields(section.kind)]
        assert [key.field for key in section.keys.values()] == names
        assert list(section.keys) == [name.removesuffix("_ns") for name in names]
    assert ["domains", *config.SECTIONS, "answers"] == [field.name for field in fields(Config)]
    assert sorted(config.DOMAIN_KEYS) == sorted(DomainSpec._fields)


def test_the_shipped_file_has_every_key_with_its_values() -> None:
    text = SHIPPED.read_text()
    shipped = yaml.safe_load(text)
    assert list(shipped) == ["domains", *config.SECTIONS, "answers"]
    assert shipped["answers"] is False
    for name, section in config.SECTIONS.items():
        assert list(shipped[name]) == list(section.keys)
    # The comment before a key names the possible values.
    before_key = re.split(r"^ *(\w+):", text, flags=re.MULTILINE)
    comments = dict(zip(before_key[1::2], before_key[::2], strict=False))
    for key, choices in CHOICES.items():
        assert [choice for choice in choices if choice not in comments[key]] == []
    assert all(f"{word}: " in comments["domains"] for word in config.DOMAIN_KEYS)
    assert all(priority in comments["domains"] for priority in config.PRIORITIES)


def test_the_page_has_every_key_with_its_values_and_default() -> None:
    shipped = yaml.safe_load(SHIPPED.read_text())
    assert list(rows("## Rules")) == list(config.DOMAIN_KEYS)
    assert all(f"`{priority}`" in rows("## Rules")["priority"][0] for priority in config.PRIORITIES)
    for name, section in config.SECTIONS.items():
        (heading,) = re.findall(rf"^### `{name}`: .*$", PAGE, re.MULTILINE)
        table = rows(heading)
        assert list(table) == list(section.keys)
        for key, (_, values, default) in table.items():
            value = shipped[name][key]
            text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else value
            text = "null" if value is None else str(value).lower() if isinstance(value, bool) else text
            assert default == f"`{text}`"
            assert [choice for choice in CHOICES.get(key, ()) if f"`{choice}`" not in values] == []


def test_the_page_has_the_defaults_of_answers(file: Path) -> None:
    table = rows("### `answers`: what became of queries")
    assert list(table) == list(config.ANSWERS.keys)
    text = ", ".join(f"{key}: {default.strip('`')}" for key, (_, _, default) in table.items())
    assert loaded(file, f"answers: {{{text}}}").answers == config.AnswersConfig()


def rows(heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table below a heading of the page, by the key in their first cell."""
    lines = PAGE.split(f"{heading}\n", 1)[1].split("\n#", 1)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines if line.startswith("| `")]
    return {first.strip("`"): others for first, *others in cells}


def test_an_old_name_of_a_hook_is_accepted_with_a_warning(file: Path) -> None:
    old = loaded(file, "probe: {hook: net_dev_queue}")
    assert config.warnings(old) == ["probe.hook: net_dev_queue is an old name; use cgroup_skb"]
    assert probe_options(old.probe).hook == "cgroup_skb"
    assert config.warnings(loaded(file, "probe: {hook: cgroup_skb}")) == []


def test_fentry_can_be_turned_off(file: Path) -> None:
    assert not probe_options(loaded(file, "probe: {attach: kprobe}").probe).fentry
    assert probe_options(config.default().probe).fentry


def test_the_examples_on_the_page_are_good(file: Path) -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 5
    assert all(loaded(file, text) != config.default() for text in examples)


def test_the_errors_on_the_page_are_real(file: Path) -> None:
    shown = re.findall(r"^ +/etc/dnsprobe\.yaml:(\d+: .*)$", PAGE, re.MULTILINE)
    text = "\n" * 6 + "probe: {ports: [53, 70000]}" + "\n" * 5 + "metrics: {lisen: x}\n"
    assert [line.removeprefix("dnsprobe.yaml:") for line in errors(file, text)] == shown


SUFFIXES = re.findall(r"^\| .* \| `/(.*)/` +\| `(\S+)` +\|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("expression", "suffix"), SUFFIXES)
def test_the_suffixes_on_the_page_are_right(expression: str, suffix: str) -> None:
    assert len(SUFFIXES) == 4
    assert to_text(parse_pattern("/" + expression.replace("\\|", "|") + "/").suffix) == suffix


def test_a_full_file_sets_every_key(file: Path) -> None:
    assert loaded(
        file,
        """
domains:
  - example.com
  - '*.ads.example'
  - pattern: '/^cdn[0-9]+\\./'
    name: numbered CDNs
    priority: notice
  - {pattern: =x.example, priority: 0}
probe:
  hook: cgroup_skb
  attach: kprobe
  ports: [53, 5353]
  btf: /boot/vmlinux
  verify_interval: 1.5h
  ring_size: 64KiB
  processes: 1
  counters: 2
  names: 3
  recent: 1048576
  lineage: 0
  tree: lineage
journal:
  repeat: 1500ms
  queue: 1
  rate_interval: 0
  rate_burst: 7
  unread: false
metrics:
  listen: '[::1]:0'
  max_series: 5
  labels: [container]
  connections: 6
  page: false
  last_queries: always
  hosts: [dns.example, Other]
  web_config: /etc/web.yml
""",
    ) == Config(
        domains=(
            DomainSpec("example.com", "example.com", 6),
            DomainSpec("*.ads.example", "*.ads.example", 6),
            DomainSpec("numbered CDNs", "/^cdn[0-9]+\\./", 5),
            DomainSpec("=x.example", "=x.example", 0),
        ),
        probe=ProbeConfig(
            hook="cgroup_skb",
            attach="kprobe",
            ports=(53, 5353),
            btf="/boot/vmlinux",
            verify_interval_ns=5400 * 10**9,
            ring_size=65536,
            processes=1,
            counters=2,
            names=3,
            recent=1048576,
            lineage=0,
            tree="lineage",
        ),
        journal=JournalConfig(repeat_ns=1_500_000_000, queue=1, rate_interval_ns=0, rate_burst=7, unread=False),
        metrics=MetricsConfig(
            listen=("::1", 0),
            max_series=5,
            labels=("container",),
            connections=6,
            page=False,
            last_queries="always",
            hosts=("dns.example", "Other"),
            web_config="/etc/web.yml",
        ),
    )


def test_a_rule_set_can_be_built_from_domains(file: Path) -> None:
    ruleset = RuleSet.build(loaded(file, "domains: [a.example, {pattern: b.example, priority: err}]").domains)
    assert [(rule.name, rule.priority) for rule in ruleset.rules] == [("a.example", 6), ("b.example", 3)]


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        config.default().probe = ProbeConfig()  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "# nothing but a comment\n",
        "---\n",
        "~",
        "\ufeff",
        "{}",
        "domains:\nprobe:\njournal: ~\nmetrics: null\n",
        "domains: []\nprobe: {}\n",
        "\ufeffprobe: {ports: [53]}\r\n",
    ],
)
def test_an_empty_file_means_the_defaults(file: Path, text: str) -> None:
    assert loaded(file, text) == config.default()


@pytest.mark.parametrize(
    ("item", "pattern"),
    [
        ("no", "no"),
        ("1.10", "1.10"),
        ("2001-01-01", "2001-01-01"),
        (".", "."),
        ("'*.example'", "*.example"),
        ("ads*.example", "ads*.example"),
        ("?x.example", "?x.example"),
        ("/a\\.b$/", "/a\\.b$/"),
        ("bücher.example", "bücher.example"),
    ],
)
def test_patterns_are_taken_as_they_are_written(file: Path, item: str, pattern: str) -> None:
    assert loaded(file, f"domains:\n  - {item}\n").domains == (DomainSpec(pattern, pattern),)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("'0'", 0),
        ("1ms", 1_000_000),
        ("1.5ms", 1_500_000),
        ("1500ms", 1_500_000_000),
        ("60s", 60_000_000_000),
        ("0.1s", 100_000_000),
        ("5m", 300_000_000_000),
        ("2h", 7_200_000_000_000),
        ("365d", 31_536_000_000_000_000),
        ("'60s'", 60_000_000_000),
    ],
)
def test_a_duration_is_read_in_nanoseconds(file: Path, text: str, nanoseconds: int) -> None:
    assert loaded(file, f"journal: {{repeat: {text}}}").journal.repeat_ns == nanoseconds


@pytest.mark.parametrize(
    "text",
    ["60", "-1s", "1.5", "1", "s", "1 s", "60sec", "1S", "1e3s", ".5s", "5.s", "1_0s", "1:30", "true", "[1s]", "''"],
)
def test_a_bad_duration_is_an_error(file: Path, text: str) -> None:
    (line,) = errors(file, f"journal: {{repeat: {text}}}")
    assert line.startswith("dnsprobe.yaml:1: journal.repeat: not a duration (")
    assert "(ms, s, m, h, d), such as" in line


@pytest.mark.parametrize("text", ["0.5ms", "366d", "0.000000001ms", "999999999999999d"])
def test_a_duration_out_of_range_is_an_error(file: Path, text: str) -> None:
    assert errors(file, f"journal: {{repeat: {text}}}") == [
        f"dnsprobe.yaml:1: journal.repeat: out of range ({text}); use 0, or a duration from 1ms to 365d"
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("4KiB", 4096), ("1MiB", 1 << 20), ("64MiB", 64 << 20), ("1024KiB", 1 << 20), ("'8192'", 8192)],
)
def test_a_size_is_read_in_bytes(file: Path, text: str, size: int) -> None:
    assert loaded(file, f"probe: {{ring_size: {text}}}").probe.ring_size == size


@pytest.mark.parametrize(
    "text",
    ["0", "1", "2048", "4097", "12KiB", "128MiB", "1MB", "1M", "1 MiB", "-4096", "0x1000", "4kib", "1.5MiB", "~", "[]"],
)
def test_a_bad_size_is_an_error(file: Path, text: str) -> None:
    (line,) = errors(file, f"probe: {{ring_size: {text}}}")
    assert line.startswith("dnsprobe.yaml:1: probe.ring_size: not a size")


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("off", None),
        ("'off'", None),
        ("", None),
        ("on", config.AnswersConfig()),
        ("{}", config.AnswersConfig()),
        ("{timeout: 2s, queries: 100}", config.AnswersConfig(2_000_000_000, 100)),
        ("{buckets: [0.1ms, 0.25ms, 1m]}", config.AnswersConfig(buckets_ns=(100_000, 250_000, 60_000_000_000))),
    ],
)
def test_answers_are_tracked_if_the_section_has_keys(
    file: Path, text: str, answers: config.AnswersConfig | None
) -> None:
    assert loaded(file, f"answers: {text}").answers == answers


BUCKETS_HINT = "use a list of 1 to 15 durations, each longer than the one before, such as [0.5ms, 10ms, 1s]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "yes",
            "answers: neither on, off nor a mapping (yes); use on, off, or any of the keys "
            "timeout, queries, wait, buckets",
        ),
        (
            "[5s]",
            "answers: neither on, off nor a mapping (a list); use on, off, or any of the keys "
            "timeout, queries, wait, buckets",
        ),
        ("{timeout: 0}", "answers.timeout: not a duration (0); use a number with a unit (ms, s, m, h, d), such as 60s"),
        ("{timeout: 0s}", "answers.timeout: out of range (0s); use a duration from 100ms to 365d"),
        ("{timeout: 99ms}", "answers.timeout: out of range (99ms); use a duration from 100ms to 365d"),
        ("{buckets: 1s}", f"answers.buckets: not a list of durations (1s); {BUCKETS_HINT}"),
        ("{buckets: []}", f"answers.buckets: 0 durations; {BUCKETS_HINT}"),
        (
            f"{{buckets: [{', '.join(f'{n}s' for n in range(1, 17))}]}}",
            f"answers.buckets: 16 durations; {BUCKETS_HINT}",
        ),
        ("{buckets: [1s, 1000ms]}", f"answers.buckets[1]: not longer than the one before (1000ms); {BUCKETS_HINT}"),
        (
            "{buckets: [0]}",
            "answers.buckets[0]: not a duration (0); use a number with a unit (ms, s, m, h, d), such as 60s",
        ),
        ("{wait: 0.5ms}", "answers.wait: out of range (0.5ms); use 0, or a duration from 1ms to 10s"),
        ("{wait: 11s}", "answers.wait: out of range (11s); use 0, or a duration from 1ms to 10s"),
        ("{queries: 0}", "answers.queries: out of range (0); use a number from 1 to 1048576"),
    ],
)
def test_wrong_answers_are_an_error(file: Path, text: str, message: str) -> None:
    assert errors(file, f"answers: {text}") == [f"dnsprobe.yaml:1: {message}"]


@pytest.mark.parametrize(
    ("text", "alert"),
    [
        ("{rcode: [NXDOMAIN, servfail, NoData]}", Alert(4, ("NXDOMAIN", "SERVFAIL", "NODATA"))),
        ("{rcode: ['(OTHER)']}", Alert(4, ("(other)",))),
        ("{unanswered: true}", Alert(unanswered=True)),
        ("{rate: 100/1m}", Alert(rate=Rate(100, 60_000_000_000))),
        ("{rate: 1/10.5s, unanswered: true}", Alert(unanswered=True, rate=Rate(1, 10_500_000_000))),
        ("{latency: 0.5ms, priority: 2}", Alert(2, latency_ns=500_000)),
        (
            "{rcode: [REFUSED], unanswered: false, latency: 1s, priority: notice}",
            Alert(5, ("REFUSED",), False, 1_000_000_000),
        ),
    ],
)
def test_a_rule_can_have_an_alert(file: Path, text: str, alert: Alert) -> None:
    for found in (
        f"domains: [{{pattern: a.test, alert: {text}}}]\nanswers: on",
        f"answers: on\ndomains: [{{pattern: a.test, alert: {text}}}]",
    ):
        (spec,) = loaded(file, found).domains
        assert spec == DomainSpec("a.test", "a.test", 6, alert)
    assert RuleSet.build([spec]).rules[0].alert == alert


def test_the_rcodes_of_alerts_are_those_of_the_metrics() -> None:
    assert set(RCODES) == set(answers.RCODES.values())
    assert all(f"`{rcode}`" in PAGE for rcode in RCODES)


RCODE_HINT = f"use a list of any of {', '.join(RCODES)}, such as [NXDOMAIN, SERVFAIL]"

RATE_HINT = "use a number from 1 to 1000000000, a slash, and a duration from 10s to 1d, such as 100/1m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "alert: not a mapping of keys to values (no value); known keys: rcode, unanswered, latency, rate, priority",
        ),
        ("on", "alert: not a mapping of keys to values (on); known keys: rcode, unanswered, latency, rate, priority"),
        ("{}", "alert: no condition; use at least one of rcode, unanswered, latency, rate"),
        ("{priority: err}", "alert: no condition; use at least one of rcode, unanswered, latency, rate"),
        ("{unanswered: false}", "alert: no condition; use at least one of rcode, unanswered, latency, rate"),
        ("{unanswered: 1}", "alert.unanswered: not true or false (1); use true or false, without quotes"),
        ("{rcode: NXDOMAIN}", f"alert.rcode: not a list of at least one (NXDOMAIN); {RCODE_HINT}"),
        ("{rcode: []}", f"alert.rcode: not a list of at least one (a list); {RCODE_HINT}"),
        ("{rcode: [NXDOMAN]}", f"alert.rcode[0]: not a possible value (NXDOMAN); {RCODE_HINT}"),
        ("{rcode: [3]}", f"alert.rcode[0]: not a possible value (3); {RCODE_HINT}"),
        ("{rcode: [NODATA, nodata]}", "alert.rcode[1]: a duplicate (nodata); remove it"),
        ("{latency: 0}", "alert.latency: not a duration (0); use a number with a unit (ms, s, m, h, d), such as 60s"),
        ("{latency: 0.0001ms}", "alert.latency: out of range (0.0001ms); use a duration from 0.001ms to 365d"),
        (
            "{unanswered: true, priority: 8}",
            "alert.priority: not a priority (8); use 0 to 7, or emerg, alert, crit, err, warning, notice, info, debug",
        ),
        *(
            (f"{{rate: {text}}}", f"alert.rate: not a rate ({text}); {RATE_HINT}")
            for text in ("100", "1m", "0/1m", "-1/1m", "100/", "/1m", "100/0", "1e3/1m", "100/1m/1m", "100 / 1m")
        ),
        *(
            (f"{{rate: {text}}}", f"alert.rate: out of range ({text}); {RATE_HINT}")
            for text in ("100/9.999s", "100/2d", "1000000001/1m")
        ),
        ("{rate: [100, 1m]}", f"alert.rate: not a rate (a list); {RATE_HINT}"),
        ("{rcodes: [NXDOMAIN]}", "alert.rcodes: an unknown key (rcodes); did you mean rcode?"),
    ],
)
def test_a_wrong_alert_is_an_error(file: Path, text: str, message: str) -> None:
    found = errors(file, f"answers: on\ndomains:\n  - pattern: a.test\n    alert: {text}\n")
    assert found == [f"dnsprobe.yaml:4: domains[0].{message}"]


@pytest.mark.parametrize("text", ["", "answers: off", "answers:"])
def test_an_alert_on_results_needs_answers(file: Path, text: str) -> None:
    found = errors(file, f"domains:\n  - pattern: a.test\n    alert: {{unanswered: true}}\n{text}\n")
    hint = "add answers: on, because rcode, unanswered, latency are about answers"
    assert found == [f"dnsprobe.yaml:3: domains[0].alert: an alert without answers; {hint}"]


@pytest.mark.parametrize("text", ["{rate: 5/10s}", "{rate: 5/10s, unanswered: false, priority: err}"])
def test_an_alert_on_the_rate_needs_no_answers(file: Path, text: str) -> None:
    (spec,) = loaded(file, f"domains: [{{pattern: a.test, alert: {text}}}]\nanswers: off\n").domains
    assert spec.alert is not None
    assert spec.alert.rate == Rate(5, 10_000_000_000)


def test_an_alert_beside_wrong_answers_has_no_second_report(file: Path) -> None:
    (line,) = errors(file, "domains: [{pattern: a.test, alert: {unanswered: true}}]\nanswers: maybe\n")
    assert line.startswith("dnsprobe.yaml:2: answers: ")


def test_the_page_has_every_key_of_an_alert() -> None:
    assert list(rows("### Alerts")) == list(config.ALERT_KEYS)


SCALARS = [
    ("journal", "queue", "0", "out of range (0); use a number from 1 to 1048576"),
    ("journal", "queue", "-1", "out of range (-1); use a number from 1 to 1048576"),
    ("journal", "queue", "1048577", "out of range (1048577); use"),
    ("journal", "queue", 5000 * "9", "out of range (999"),
    ("journal", "queue", "'5'", "not a whole number (5); use a number from 1 to 1048576 in plain digits, without"),
    ("journal", "queue", "1.0", "not a whole number (1.0)"),
    ("journal", "queue", "010", "not a whole number (010)"),
    ("journal", "queue", "0x10", "not a whole number (0x10)"),
    ("journal", "queue", "1:30", "not a whole number (1:30)"),
    ("journal", "queue", "many", "not a whole number (many)"),
    ("journal", "queue", "true", "not a whole number (true)"),
    ("journal", "queue", "", "not a whole number (no value)"),
    ("journal", "queue", "[1]", "not a whole number (a list)"),
    ("journal", "queue", "{a: 1}", "not a whole number (a mapping)"),
    ("journal", "queue", "!!python/name:os.system 1", "not a whole number (1)"),
    ("metrics", "last_queries", "true", "not a possible value (true); use one of protected, always, never"),
    (
        "metrics",
        "hosts",
        "dns.example",
        "not a list of names (dns.example); use a list of names of hosts, such as [dns.example]; [] means none",
    ),
    (
        "metrics",
        "labels",
        "unit",
        "not a list (unit); use a list of any of unit, container, user, server; [] means none",
    ),
    ("metrics", "max_series", "1000001", "out of range (1000001); use a number from 1 to 1000000"),
    *(
        ("metrics", "page", value, f"not true or false ({shown}); use true or false, without quotes")
        for value, shown in [("yes", "yes"), ("'true'", "true"), ("1", "1"), ("[]", "a list"), ("", "no value")]
    ),
    ("metrics", "connections", "65536", "out of range (65536); use a number from 1 to 65535"),
    ("metrics", "listen", ":10059", "no address (:10059); for all addresses write 0.0.0.0:10059 or [::]:10059"),
    ("metrics", "listen", "10059", "not an address and a port (10059); write ADDR:PORT"),
    ("metrics", "listen", "", "not an address and a port (no value); write ADDR:PORT"),
    ("metrics", "listen", "127.0.0.1:65536", "not a port (127.0.0.1:65536); use a number from 0 to 65535"),
    ("metrics", "listen", "[a]", "not an address and a port (a list)"),
    (
        "probe",
        "hook",
        "kprobe",
        "not a possible value (kprobe); use one of auto, ip_send_skb, udp_send_skb, cgroup_skb",
    ),
    ("probe", "hook", "", "not a possible value (no value); use one of auto"),
    ("probe", "btf", "vmlinux", "not an absolute path (vmlinux); use a path that begins with /"),
    ("probe", "btf", "5", "not an absolute path (5)"),
    ("probe", "btf", '"/a\\0b"', "not an absolute path (/a\\x00b)"),
    ("probe", "ports", "53", "not a list of ports (53); use a list of 1 to 16 ports, such as [53]"),
    ("probe", "ports", "[]", "0 ports; use a list of 1 to 16 ports, such as [53]"),
    ("probe", "ports", str(list(range(1, 18))), "17 ports; use a list of 1 to 16 ports"),
    ("probe", "verify_interval", "999ms", "out of range (999ms); use 0, or a duration from 1s to 365d"),
    ("probe", "processes", "0", "out of range (0)"),
]


@pytest.mark.parametrize(("section", "key", "value", "message"), SCALARS)
def test_a_bad_value_is_an_error_with_line_and_key(
    file: Path, section: str, key: str, value: str, message: str
) -> None:
    (line,) = errors(file, f"{section}:\n  # why\n  {key}: {value}\n")
    assert line.startswith(f"dnsprobe.yaml:3: {section}.{key}: {message}")
    assert len(line) < 300


STRUCTURE = [
    ("probes: {}", "1: probes: an unknown key (probes); did you mean probe?"),
    ("xyz: 1", "1: xyz: an unknown key (xyz); known keys: domains, probe, journal, metrics"),
    ("metrics:\n  lisen: x", "2: metrics.lisen: an unknown key (lisen); did you mean listen?"),
    ("<<: {domains: []}", "1: <<: an unknown key (<<); known keys"),
    ("1: 2", "1: 1: an unknown key (1); known keys"),
    ('"a\\nb": 2', "1: a\\x0ab: an unknown key (a\\x0ab); known keys"),
    ("[a]: 2", "1: not a key (a list); known keys"),
    ("probe:\n  hook: auto\n\n  hook: auto", "4: probe.hook: a duplicate of the key in line 2; remove one of them"),
    ("domains: [a]\ndomains: [b]", "2: domains: a duplicate of the key in line 1; remove one of them"),
    ("- a", "1: not a mapping of keys to values (a list); known keys: domains, probe, journal, metrics"),
    ("example.com", "1: not a mapping of keys to values (example.com); known keys"),
    ("probe: auto", "1: probe: not a mapping of keys to values (auto); known keys: hook, tcp_hook, attach, ports"),
    ("journal: []", "1: journal: not a mapping of keys to values (a list); known keys: repeat, queue"),
    ("domains: example.com", "1: domains: not a list of domains (example.com); begin each domain with a hyphen"),
    ("domains: {a: b}", "1: domains: not a list of domains (a mapping); begin each domain with a hyphen"),
    ("domains:\n- [a]", "2: domains[0]: not a printable text (a list); write a text in one line"),
    ("domains:\n- a\n-", "3: domains[1]: not a printable text (no value); write a text in one line"),
    ("domains:\n- ''", "2: domains[0]: not a printable text (); write a text in one line"),
    ("domains:\n- pattern: a\n  name: ''", "3: domains[0].name: not a printable text (); write a text in one line"),
    ('domains:\n- pattern: a\n  name: "\\e[m"', "3: domains[0].name: not a printable text (\\x1b[m); write a text"),
    ("domains:\n- name: a", "2: domains[0]: no pattern; add the key pattern, such as pattern: example.com"),
    ("domains: [{}]", "1: domains[0]: no pattern; add the key pattern"),
    ("domains:\n- name: a\n  pattern: a..b", "3: domains[0].pattern: an empty label: two dots in a row"),
    ("domains:\n- patern: a", "2: domains[0].patern: an unknown key (patern); did you mean pattern?"),
    (
        "domains:\n- {pattern: a, priority: 8}",
        "2: domains[0].priority: not a priority (8); use 0 to 7, or emerg, alert",
    ),
    ("domains:\n- {pattern: a, priority: high}", "2: domains[0].priority: not a priority (high); use 0 to 7"),
    ("domains:\n- {pattern: a, priority: }", "2: domains[0].priority: not a priority (no value); use 0 to 7"),
    (
        "domains:\n- a.b\n\n- A.b.",
        "4: domains[1]: the same pattern as domains[0] in line 2 (A.b.); remove one of the two",
    ),
    ("domains:\n- a\n- {name: a, pattern: b}", "3: domains[1]: the same name as domains[0] in line 2 (a); give one of"),
    (
        "domains:\n- /(/",
        "2: domains[0]: not a regular expression: missing ), unterminated subpattern at position 0 (/(/);",
    ),
    ("domains: &a\n- *a", "1: domains[0]: not a printable text (a list)"),
    ("probe:\n  ports: [53, 0]", "2: probe.ports[1]: out of range (0); use a number from 1 to 65535"),
    ("probe:\n  ports:\n  - 53\n  - dns", "4: probe.ports[1]: not a whole number (dns); use a number from 1 to 65535"),
    ("probe:\n  ports:\n  - 53\n  - 53", "4: probe.ports[1]: a duplicate port (53); remove it"),
]


@pytest.mark.parametrize(("text", "message"), STRUCTURE)
def test_a_wrong_structure_is_an_error(file: Path, text: str, message: str) -> None:
    lines = errors(file, text)
    assert lines[0].startswith(f"dnsprobe.yaml:{message}")


def test_too_many_rules_are_an_error(file: Path) -> None:
    text = "domains:\n" + "".join(f"- d{number}\n" for number in range(65536))
    assert errors(file, text) == ["dnsprobe.yaml:2: domains: too many rules (65536); use at most 65535"]


SYNTAX = [
    (
        "domains:\n  - *.example.com\n",
        "2: not valid YAML: ",
        'a pattern that begins with * needs quotes: "*.example.com"',
    ),
    ("domains:\n  - *tracker*.example\n", "2: not valid YAML: ", "a pattern that begins with * needs quotes"),
    ("domains: [a, *b]\n", "1: not valid YAML: ", "a pattern that begins with * needs quotes"),
    ('domains:\n  - "/\\.com$/"\n', "2: not valid YAML: ", "put a value with backslashes in single quotes"),
    ("metrics:\n  listen: [::1]:10059\n", "2: not valid YAML: ", "an address in brackets needs quotes"),
    ("probe:\n\thook: auto\n", "2: not valid YAML: ", "indent with spaces, not with tabs"),
    ("probe: {hook: auto\n", "2: not valid YAML: ", "check quotes, colons and indentation"),
    ("probe: hook: auto\n", "1: not valid YAML: ", "check quotes, colons and indentation"),
    ("a: 1\n---\nb: 2\n", "2: not valid YAML: ", "check quotes, colons and indentation"),
    ("a: b\n\x00", "2: a character that YAML does not allow (U+0000)", "remove it"),
    ("a: b\n\n\ufeff", "3: a character that YAML does not allow (U+FEFF)", "remove it"),
    (100000 * "[", "1: ", ""),
    ("probe: " + 40 * "[" + 40 * "]", "1: nested too deeply", "no key has lists inside lists"),
]


@pytest.mark.parametrize(("text", "message", "hint"), SYNTAX)
@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_bad_syntax_is_an_error_with_a_hint(
    file: Path, monkeypatch: pytest.MonkeyPatch, loader: str, text: str, message: str, hint: str
) -> None:
    monkeypatch.setattr(nodes, "_LOADER", getattr(yaml, loader))
    (line,) = errors(file, text)
    assert line.startswith(f"dnsprobe.yaml:{message}")
    assert f"; {hint}" in line


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: b\n# caf\xe9\n", "2: not UTF-8 (byte 0xe9); save the file as UTF-8"),
        (b"\xff\xfea\x00", "1: not UTF-8 (byte 0xff); save the file as UTF-8"),
        (b"\xef\xbb\xbf\n\n\x80", "3: not UTF-8 (byte 0x80); save the file as UTF-8"),
        (b"\xed\xa0\x80", "1: not UTF-8 (byte 0xed); save the file as UTF-8"),
    ],
)
def test_a_file_that_is_not_utf_8_is_an_error(file: Path, raw: bytes, message: str) -> None:
    assert errors(file, raw) == [f"dnsprobe.yaml:{message}"]


def test_all_errors_come_at_once_in_the_order_of_the_file(file: Path) -> None:
    text = "metrics:\n  listen: x\n  foo: 1\njournal:\n  repeat: 5\n  queue: 0\ndomains:\n- a..b\n- c\n- C\n"
    lines = errors(file, text)
    assert [line.split(": ")[:2] for line in lines] == [
        ["dnsprobe.yaml:2", "metrics.listen"],
        ["dnsprobe.yaml:3", "metrics.foo"],
        ["dnsprobe.yaml:5", "journal.repeat"],
        ["dnsprobe.yaml:6", "journal.queue"],
        ["dnsprobe.yaml:8", "domains[0]"],
        ["dnsprobe.yaml:10", "domains[2]"],
    ]
    assert lines[2].endswith("not a duration (5); use 0, or a number with a unit (ms, s, m, h, d), such as 5s")


def unreadable(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.status == EXIT_USAGE
    return caught.value.message


def test_a_missing_file_is_an_error(file: Path) -> None:
    assert (
        unreadable(file)
        == f"{file}: cannot be read: No such file or directory; give the path of a configuration file with --config"
    )


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    assert (
        unreadable(tmp_path) == f"{tmp_path}: cannot be read: Is a directory; give the path of a file, not of a folder"
    )


def test_a_file_below_a_file_is_an_error(file: Path) -> None:
    file.touch()
    assert unreadable(file / "x") == f"{file}/x: cannot be read: Not a directory; check the path"


def test_a_pipe_a_device_and_an_endless_file_are_errors(file: Path) -> None:
    hint = "give the path of a YAML file with --config"
    os.mkfifo(file)
    assert unreadable(file) == f"{file}: cannot be read: not a file, but a FIFO; {hint}"
    file.unlink()
    file.symlink_to("/dev/zero")
    assert unreadable(file) == f"{file}: cannot be read: not a file, but a device; {hint}"
    file.unlink()
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    assert unreadable(file) == f"{file}: cannot be read: larger than 32 MiB; {hint}"


def test_a_file_that_may_not_be_opened_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    file.touch()
    monkeypatch.setattr("os.open", refuse)
    assert (
        unreadable(file)
        == f"{file}: cannot be read: Permission denied; make it readable for the user that runs dnsprobe"
    )


def test_the_name_of_a_file_is_escaped_in_errors(tmp_path: Path) -> None:
    assert unreadable(tmp_path / "a\x1b\nb").startswith(f"{tmp_path}/a\\x1b\\x0ab: cannot be read")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@example(b"domains: &a [*a]")
@example(b"? [a]\n: b")
def test_any_file_is_a_configuration_or_an_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(raw)
    try:
        assert isinstance(load(file), Config)
    except ConfigError as error:
        problems = error.problems
    else:
        problems = ()
    assert all(str(problem).isprintable() for problem in problems)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "pattern", "a"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = [
    field.name.removesuffix("_ns") for kind in (ProbeConfig, JournalConfig, MetricsConfig) for field in fields(kind)
]
sections = st.dictionaries(st.sampled_from(KEYS), values, max_size=4) | values
documents = st.dictionaries(st.sampled_from(["domains", "probe", "journal", "metrics"]), sections)


@settings(max_examples=300, deadline=None)
@given(documents)
def test_any_values_are_a_configuration_or_errors_with_a_line(
    tmp_path_factory: pytest.TempPathFactory, document: object
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump(document))
    try:
        assert isinstance(load(file), Config)
    except ConfigError as error:
        problems = error.problems
    else:
        problems = ()
    assert all(problem.line for problem in problems)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:10059", ("127.0.0.1", 10059)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:10059", ("::1", 10059)),
        ("[::]:0", ("::", 0)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
    ],
)
def test_parse_listen_returns_address_and_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (":10059", "no address", "0.0.0.0:10059 or [::]:10059"),
        ("*:80", "no address", "0.0.0.0:80 or [::]:80"),
        ("[]:80", "no address", "0.0.0.0:80 or [::]:80"),
        (":", "no address", "0.0.0.0:10059 or [::]:10059"),
        ("", "not an address and a port", "127.0.0.1:10059"),
        ("10059", "not an address and a port", "127.0.0.1:10059"),
        ("127.0.0.1", "no port, or an IPv6 address without brackets", "127.0.0.1:10059"),
        ("[::1]", "no port, or an IPv6 address without brackets", "[::1]:10059"),
        ("::1:80", "no port, or an IPv6 address without brackets", "[::1]:10059"),
        ("::1:10059", "an IPv6 address without brackets", "[::1]:10059"),
        ("[127.0.0.1]:80", "an IPv4 address in brackets", "127.0.0.1:10059"),
        ("localhost:80", "not an IP address and a port", "127.0.0.1:10059"),
        ("127.0.0.256:80", "not an IP address and a port", "127.0.0.1:10059"),
        ("127.0.0.1:", "not a port", "0 to 65535"),
        ("127.0.0.1:65536", "not a port", "0 to 65535"),
        ("127.0.0.1:-1", "not a port", "0 to 65535"),
        ("127.0.0.1:+1", "not a port", "0 to 65535"),
        ("127.0.0.1: 1", "not a port", "0 to 65535"),
        ("127.0.0.1:\u0661", "not a port", "0 to 65535"),
        ("127.0.0.1:http", "not a port", "0 to 65535"),
        ("http://127.0.0.1:80", "not an IP address and a port", "127.0.0.1:10059"),
    ],
)
def test_parse_listen_refuses_other_texts(text: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_listen(text)
    assert caught.value.message == f"{message} ({text})"
    assert hint in caught.value.hint
    assert caught.value.status == EXIT_USAGE
