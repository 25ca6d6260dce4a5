"""The configuration file: from YAML to frozen dataclasses.

All errors are reported at once, each with its line, its key, the value and a hint. Tests compare the
documents with :data:`SECTIONS`. "Add a configuration key" in docs/architecture.md has all steps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from dnsprobe.config.nodes import ConfigError, Place, Problem, document
from dnsprobe.config.readers import (
    NANOSECONDS,
    Reader,
    absolute_path,
    ascending_durations,
    boolean,
    choice,
    choices,
    duration,
    host_names,
    line_of_text,
    listen,
    optional_path,
    ports,
    power_of_two,
    rate,
    some_of,
    whole_number,
)
from dnsprobe.hook_names import OLD_HOOKS, Attach, TcpHook, UdpHook
from dnsprobe.model import DEFAULT_LABELS, OPTIONAL_LABELS, UNDECIDED, Alert
from dnsprobe.names.pattern import Pattern, RuleError, parse_pattern
from dnsprobe.names.rcode import RCODES
from dnsprobe.names.ruleset import MAX_RULE_ID
from dnsprobe.text import shorten

HOOKS = ("auto", *UdpHook)
TCP_HOOKS = ("auto", *TcpHook, "none")
#: How hooks at functions may be attached: by fentry or a kprobe, or only by a kprobe.
ATTACH = ("auto", Attach.KPROBE)
#: What a process tree shows: the parents that a process has now, or the processes that started it.
TREES = ("current", "lineage")

#: When the page shows the last queries: if all its readers need a password or a certificate, or always, or never.
LAST_QUERIES = ("protected", "always", "never")

#: Syslog's names for the levels 0 to 7 (RFC 5424, section 6.2.1; sd-daemon(3)).
PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")

_PAGE_BYTES = 4096


class DomainSpec(NamedTuple):
    """A configured rule: ``pattern`` as in :mod:`dnsprobe.names.pattern`; ``priority`` is a syslog level, 0 to 7.

    ``alert`` says which of its entries are alerts, None if none is.
    """

    name: str
    pattern: str
    priority: int = 6
    alert: Alert | None = None


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """The kernel side.

    ``hook`` is one of HOOKS or OLD_HOOKS, ``tcp_hook`` one of TCP_HOOKS, ``attach`` one of ATTACH, ``tree`` one of
    TREES. ``ports`` are destination ports of DNS, ``dot_ports`` of DNS over TLS. ``btf`` is the path of the kernel's
    BTF. ``verify_interval_ns`` is in nanoseconds; 0 verifies only at start. ``ring_size`` is in bytes. ``processes``,
    ``counters``, ``names``, ``recent`` and ``lineage`` are numbers of map entries; 0 turns ``lineage`` off.
    """

    hook: str = "auto"
    tcp_hook: str = "auto"
    attach: str = "auto"
    ports: tuple[int, ...] = (53,)
    dot_ports: tuple[int, ...] = (853,)
    btf: str = "/sys/kernel/btf/vmlinux"
    verify_interval_ns: int = 5 * NANOSECONDS["m"]
    ring_size: int = 1 << 20
    processes: int = 8192
    counters: int = 65536
    names: int = 16384
    recent: int = 32768
    lineage: int = 32768
    tree: str = "current"


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """Journal entries.

    Repeated queries share an entry for ``repeat_ns`` nanoseconds; 0 writes an entry for each query. ``queue`` entries
    can wait. At most ``rate_burst`` entries are written in ``rate_interval_ns`` nanoseconds; 0 means no limit.
    ``unread`` is whether messages that cannot be read have entries, too.
    """

    repeat_ns: int = 60 * NANOSECONDS["s"]
    queue: int = 4096
    rate_interval_ns: int = 30 * NANOSECONDS["s"]
    rate_burst: int = 10000
    unread: bool = True


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The HTTP server.

    ``listen`` is an IP address without brackets and a port; port 0 means any free port. ``labels`` are the labels of
    OPTIONAL_LABELS that are shown. ``page`` turns the page for people on. ``last_queries``, one of LAST_QUERIES, is
    when it shows the last queries. ``hosts`` are names of the server beside those of this host. ``web_config`` is the
    path of a file for :mod:`dnsprobe.config.web`, or None. A series that had no query for ``series_ttl_ns`` may leave;
    0 means that none leaves for that.
    """

    listen: tuple[str, int] = ("127.0.0.1", 10059)
    max_series: int = 10000
    series_ttl_ns: int = 24 * 3600 * NANOSECONDS["s"]
    labels: tuple[str, ...] = DEFAULT_LABELS
    connections: int = 128
    page: bool = True
    last_queries: str = "protected"
    hosts: tuple[str, ...] = ()
    web_config: str | None = None


#: The most upper bounds of buckets, and those by default, in nanoseconds: from 100 microseconds to 10 seconds.
MAX_BUCKETS = 15
BUCKETS_NS = tuple(
    microseconds * 1000
    for microseconds in (
        *(100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
        *(1_000_000, 5_000_000, 10_000_000),
    )
)


@dataclass(frozen=True, slots=True)
class AnswersConfig:
    """The tracking of answers.

    After ``timeout_ns``, a query without an answer is given up. At most ``queries`` wait for their answer at a time.
    An entry of a query waits for its answer for at most ``wait_ns``; 0 means that it does not wait.
    ``buckets_ns`` are the upper bounds of the buckets of the latency histograms, without the infinite one.
    """

    timeout_ns: int = 5 * NANOSECONDS["s"]
    queries: int = 65536
    wait_ns: int = 300 * NANOSECONDS["ms"]
    buckets_ns: tuple[int, ...] = BUCKETS_NS


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; no ``domains`` means all names. Without ``answers``, answers are not tracked."""

    domains: tuple[DomainSpec, ...] = ()
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    answers: AnswersConfig | None = None

    def needs_restart(self) -> str:
        """Return a text that differs between two configurations if changes between them need a restart."""
        return repr((self.probe, self.journal, self.metrics, self.answers))


def warnings(config: Config) -> list[str]:
    """Return what should be changed in a configuration, although it is good."""
    hook = config.probe.hook
    return [f"probe.hook: {hook} is an old name; use {OLD_HOOKS[hook]}"] if hook in OLD_HOOKS else []


def default() -> Config:
    """Return the configuration of an empty file."""
    return Config()


def load(path: str | os.PathLike[str]) -> Config:
    """Return the configuration in a file; raise ConfigError with all errors in it."""
    problems: list[Problem] = []
    root = document(path, problems)
    if root is None:
        return default()
    config = _read_root(root)
    if problems:
        raise ConfigError(problems)
    return config


def _read_priority(place: Place) -> int:
    text = place.scalar("str", "int") or ""
    if text in PRIORITIES:
        return PRIORITIES.index(text)
    if not re.fullmatch("[0-7]", text):
        place.wrong("not a priority", f"use 0 to 7, or {', '.join(PRIORITIES)}")
        return 0
    return int(text)


class Key(NamedTuple):
    """A key of a mapping: the field of what the mapping becomes, and the reader of its value."""

    field: str
    read: Reader


#: The keys of ``alert``: the field of :class:`Alert`, and the reader of the value. All but the last are conditions.
ALERT_KEYS: Mapping[str, Key] = {
    "rcode": Key("rcodes", some_of(RCODES, "[NXDOMAIN, SERVFAIL]")),
    "unanswered": Key("unanswered", boolean),
    "latency": Key("latency_ns", duration(1000, "0.001ms", zero=False)),
    "rate": Key("rate", rate(10**9, 10 * NANOSECONDS["s"], "10s", NANOSECONDS["d"], "1d")),
    "priority": Key("priority", _read_priority),
}
_CONDITIONS = tuple(key for key in ALERT_KEYS if key != "priority")
_OF_RESULTS = tuple(key for key in _CONDITIONS if key != "rate")


def _read_alert(place: Place) -> Alert:
    before = len(place.problems)
    alert: Alert = _read_section(Section(Alert, ALERT_KEYS), place)
    if alert == Alert(alert.priority) and len(place.problems) == before:
        place.report("no condition", f"use at least one of {', '.join(_CONDITIONS)}")
    return alert


#: The keys of an item of ``domains`` that is a mapping.
DOMAIN_KEYS: Mapping[str, Reader] = {
    "pattern": line_of_text,
    "name": line_of_text,
    "priority": _read_priority,
    "alert": _read_alert,
}


def _read_domain(place: Place, *, has_answers: bool) -> tuple[DomainSpec, Pattern] | None:
    if isinstance(place.node, yaml.MappingNode):
        places = place.entries(tuple(DOMAIN_KEYS))
        if "pattern" not in places:
            place.report("no pattern", "add the key pattern, such as pattern: example.com")
            return None
    else:
        places = {"pattern": place}
    values = {key: DOMAIN_KEYS[key](value) for key, value in places.items()}
    alert = values.get("alert")
    if alert and not has_answers and alert != Alert(alert.priority, rate=alert.rate):
        keys = ", ".join(_OF_RESULTS)
        places["alert"].report("an alert without answers", f"add answers: on, because {keys} are about answers")
    text = values["pattern"]
    if not text:
        return None
    try:
        return DomainSpec(**{"name": text, **values}), parse_pattern(text)
    except RuleError as error:
        places["pattern"].report(error.message, error.hint)
        return None


def _read_domains(place: Place, *, has_answers: bool) -> tuple[DomainSpec, ...]:
    if place.empty:
        return ()
    if not isinstance(place.node, yaml.SequenceNode):
        place.wrong("not a list of domains", "begin each domain with a hyphen, such as - example.com")
        return ()
    if len(place.node.value) > MAX_RULE_ID:
        place.report(f"too many rules ({len(place.node.value)})", f"use at most {MAX_RULE_ID}")
        return ()
    specs = []
    names: dict[str, Place] = {}
    patterns: dict[Pattern, Place] = {}
    for item in place.items():
        domain = _read_domain(item, has_answers=has_answers)
        if domain is None:
            continue
        spec, pattern = domain
        specs.append(spec)
        if spec.name == UNDECIDED:
            item.report(f"a name that is not free ({UNDECIDED})", "give the rule another name")
        elif pattern in patterns:
            _report_duplicate(item, "pattern", spec.pattern, patterns[pattern])
        elif spec.name in names:
            _report_duplicate(item, "name", spec.name, names[spec.name])
        patterns.setdefault(pattern, item)
        names.setdefault(spec.name, item)
    return tuple(specs)


def _report_duplicate(place: Place, what: str, value: str, other: Place) -> None:
    message = f"the same {what} as {other.key} in line {other.line} ({shorten(value)})"
    place.report(message, "remove one of the two rules" if what == "pattern" else "give one of the two another name")


class Section(NamedTuple):
    """A mapping of the file: what it becomes, and its keys."""

    kind: type[Any]
    keys: Mapping[str, Key]


_MAP_ENTRIES = whole_number(1, 1 << 20)

#: All keys but ``domains``, in the order of the documents.
SECTIONS: Mapping[str, Section] = {
    "probe": Section(
        ProbeConfig,
        {
            "hook": Key("hook", choice(HOOKS, OLD_HOOKS)),
            "tcp_hook": Key("tcp_hook", choice(TCP_HOOKS)),
            "attach": Key("attach", choice(ATTACH)),
            "ports": Key("ports", ports(1, "[53]")),
            "dot_ports": Key("dot_ports", ports(0, "[853]")),
            "btf": Key("btf", absolute_path),
            "verify_interval": Key("verify_interval_ns", duration(NANOSECONDS["s"], "1s")),
            "ring_size": Key("ring_size", power_of_two(_PAGE_BYTES, 64 << 20, "4096 (4KiB) to 64MiB")),
            "processes": Key("processes", _MAP_ENTRIES),
            "counters": Key("counters", _MAP_ENTRIES),
            "names": Key("names", _MAP_ENTRIES),
            "recent": Key("recent", _MAP_ENTRIES),
            "lineage": Key("lineage", whole_number(0, 1 << 20)),
            "tree": Key("tree", choice(TREES)),
        },
    ),
    "journal": Section(
        JournalConfig,
        {
            "repeat": Key("repeat_ns", duration(NANOSECONDS["ms"], "1ms")),
            "queue": Key("queue", whole_number(1, 1 << 20)),
            "rate_interval": Key("rate_interval_ns", duration(NANOSECONDS["s"], "1s")),
            "rate_burst": Key("rate_burst", whole_number(1, 1 << 20)),
            "unread": Key("unread", boolean),
        },
    ),
    "metrics": Section(
        MetricsConfig,
        {
            "listen": Key("listen", listen),
            "max_series": Key("max_series", whole_number(1, 1_000_000)),
            "series_ttl": Key("series_ttl_ns", duration(NANOSECONDS["s"], "1s")),
            "labels": Key("labels", choices(OPTIONAL_LABELS)),
            "connections": Key("connections", whole_number(1, 65535)),
            "page": Key("page", boolean),
            "last_queries": Key("last_queries", choice(LAST_QUERIES)),
            "hosts": Key("hosts", host_names),
            "web_config": Key("web_config", optional_path),
        },
    ),
}

#: The section ``answers``. Its value may also be ``on``, or ``off``, which is the default.
ANSWERS = Section(
    AnswersConfig,
    {
        "timeout": Key("timeout_ns", duration(100 * NANOSECONDS["ms"], "100ms", zero=False)),
        "queries": Key("queries", _MAP_ENTRIES),
        "wait": Key("wait_ns", duration(NANOSECONDS["ms"], "1ms", high_ns=10 * NANOSECONDS["s"], high="10s")),
        "buckets": Key("buckets_ns", ascending_durations(MAX_BUCKETS, 1000, "0.001ms", "[0.5ms, 10ms, 1s]")),
    },
)


def _read_root(root: Place) -> Config:
    if root.empty:
        return default()
    places = root.entries(("domains", *SECTIONS, "answers"))
    values: dict[str, Any] = {}
    if "answers" in places and not places["answers"].empty:
        values["answers"] = _read_answers(places["answers"])
    if "domains" in places:
        # A value of answers that is wrong has its own report.
        has_answers = values.get("answers") is not None or bool(root.problems)
        values["domains"] = _read_domains(places["domains"], has_answers=has_answers)
    for name, section in SECTIONS.items():
        if name in places and not places[name].empty:
            values[name] = _read_section(section, places[name])
    return Config(**values)


def _read_answers(place: Place) -> AnswersConfig | None:
    if isinstance(place.node, yaml.MappingNode):
        answers: AnswersConfig = _read_section(ANSWERS, place)
        return answers
    # In YAML 1.1, on and off without quotes are booleans.
    if place.scalar() == "on":
        return AnswersConfig()
    if place.scalar() != "off":
        place.wrong("neither on, off nor a mapping", f"use on, off, or any of the keys {', '.join(ANSWERS.keys)}")
    return None


def _read_section(section: Section, place: Place) -> Any:
    places = place.entries(tuple(section.keys))
    return section.kind(**{section.keys[key].field: section.keys[key].read(value) for key, value in places.items()})
