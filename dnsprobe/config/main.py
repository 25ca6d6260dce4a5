"""The configuration file: YAML to frozen dataclasses, all errors at once, each with its line, key, value and a hint."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import yaml

from dnsprobe.config.nodes import ConfigError, Place, Problem, document
from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.model import OPTIONAL_LABELS, TcpHook, UdpHook
from dnsprobe.names.pattern import Pattern, RuleError, parse_pattern
from dnsprobe.names.ruleset import MAX_RULE_ID
from dnsprobe.text import shorten

HOOKS = ("auto", *UdpHook)
TCP_HOOKS = ("auto", *TcpHook, "none")
#: What a tree shows: the parents that a process has now, or who started it.
TREES = ("current", "lineage")

#: Syslog's names for the levels 0 to 7 (RFC 5424, section 6.2.1; sd-daemon(3)).
PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")

_NS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}

_YEAR_NS = 365 * _NS["d"]
_PAGE = 4096
_MAX_PORTS = 16
_MAX_ENTRIES = 1 << 20


class DomainSpec(NamedTuple):
    """A configured rule: ``pattern`` as in :mod:`dnsprobe.names.ruleset`; ``priority`` a syslog level, 0 to 7."""

    name: str
    pattern: str
    priority: int = 6


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """The kernel side.

    ``hook`` is one of HOOKS, ``tcp_hook`` one of TCP_HOOKS; ``ports`` are destination ports of DNS, ``dot_ports`` of
    DNS over TLS; ``btf`` is the path of the kernel's BTF; ``verify_interval_ns`` nanoseconds, 0 for only at start;
    ``ring_size`` bytes; ``tree`` one of TREES; the others are numbers of map entries, 0 of ``lineage`` for none.
    """

    hook: str = "auto"
    tcp_hook: str = "auto"
    ports: tuple[int, ...] = (53,)
    dot_ports: tuple[int, ...] = (853,)
    btf: str = "/sys/kernel/btf/vmlinux"
    verify_interval_ns: int = 5 * _NS["m"]
    ring_size: int = 1 << 20
    processes: int = 8192
    counters: int = 65536
    names: int = 16384
    recent: int = 32768
    lineage: int = 32768
    tree: str = "current"


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """The journal: ``repeat_ns`` nanoseconds, 0 for an entry for each query; ``queue`` a number of entries.

    At most ``rate_burst`` entries are written in ``rate_interval_ns`` nanoseconds, 0 for no limit.
    """

    repeat_ns: int = 60 * _NS["s"]
    queue: int = 4096
    rate_interval_ns: int = 30 * _NS["s"]
    rate_burst: int = 10000


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The HTTP side: ``listen`` is an IP address without brackets and a port, 0 for any free one.

    ``labels`` are those of OPTIONAL_LABELS that are shown; ``page`` says whether there is a page for people;
    ``web_config`` is the path of a file that :mod:`dnsprobe.config.web` reads, None for none.
    """

    listen: tuple[str, int] = ("127.0.0.1", 10059)
    max_series: int = 10000
    labels: tuple[str, ...] = OPTIONAL_LABELS
    connections: int = 128
    page: bool = True
    web_config: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; no ``domains`` means all names."""

    domains: tuple[DomainSpec, ...] = ()
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)


def default() -> Config:
    """Return what an empty file means."""
    return Config()


def load(path: str | os.PathLike[str]) -> Config:
    """Return the configuration in a file; raise ConfigError with all that is wrong with it."""
    problems: list[Problem] = []
    root = document(path, problems)
    if root is None:
        return default()
    config = _config(root)
    if problems:
        raise ConfigError(problems)
    return config


def parse_listen(text: str) -> tuple[str, int]:
    """Return address and port of ``ADDR:PORT``; an IPv6 address has brackets in ``text`` and none in what is returned.

    Port 0 is any free one. Raises UserError, with a hint, for anything else. An address left out is refused: who means
    all of them has to say so.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host

    def bad(message: str, hint: str = "write ADDR:PORT, such as 127.0.0.1:10059 or [::1]:10059") -> UserError:
        return UserError(f"{message} ({shorten(text)})", hint, EXIT_USAGE)

    if _ip_version(text) or (text.endswith("]") and _ip_version(text[1:-1])):
        raise bad("an address without a port, or without brackets")
    if not colon:
        raise bad("not an address and a port")
    if bare in ("", "*"):
        shown = shorten(port) or "10059"
        raise bad("no address", f"for all addresses write 0.0.0.0:{shown} or [::]:{shown}")
    version = _ip_version(bare)
    if not version:
        raise bad("not an IP address and a port")
    if (version == 6) != (bare != host):
        raise bad("an IPv6 address without brackets" if version == 6 else "an IPv4 address in brackets")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise bad("not a port", "give a number from 0 to 65535; 0 is any free port")
    return bare, int(port)


def _ip_version(text: str) -> int | None:
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return None


#: Takes a value from its place; what it returns after it has reported a problem is never used.
_Reader = Callable[[Place], Any]


def _number(low: int, high: int) -> _Reader:
    def read(place: Place) -> int:
        text = place.scalar("int") or ""
        # Neither 010 (8 to YAML 1.1) nor 1:30 (90).
        if not re.fullmatch("-?(0|[1-9][0-9]*)", text):
            place.wrong("not a whole number", f"give a number from {low} to {high} in plain digits, without quotes")
        elif len(text) > 18 or not low <= int(text) <= high:
            place.wrong("out of range", f"give a number from {low} to {high}")
        else:
            return int(text)
        return low

    return read


def _duration(low_ns: int, low: str) -> _Reader:
    """Return a reader of 0, or ``low`` to a year, as nanoseconds."""

    def read(place: Place) -> int:
        text = place.scalar("str", "int") or ""
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", text)
        if text != "0" and not match:
            example = text if re.fullmatch("[0-9]{1,15}", text) else "60"
            place.wrong("not a duration", f"give 0, or a number with a unit ({', '.join(_NS)}), such as {example}s")
            return 0
        nanoseconds = Fraction(match[1]) * _NS[match[2]] if match else Fraction(0)
        if nanoseconds and not low_ns <= nanoseconds <= _YEAR_NS:
            place.wrong("out of range", f"give 0, or from {low} to 365d")
        return int(nanoseconds)

    return read


def _size(low: int, high: int) -> _Reader:
    def read(place: Place) -> int:
        match = re.fullmatch("([0-9]{1,15})(|KiB|MiB)", place.scalar("str", "int") or "")
        if not match:
            place.wrong("not a size", "give a number of bytes, or one with KiB or MiB, such as 1MiB")
            return low
        size = int(match[1]) * _BYTES[match[2]]
        if not low <= size <= high or size & (size - 1):
            place.wrong("not a size that the kernel takes", "give a power of two from 4096 (4KiB) to 64MiB")
        return size

    return read


def _choice(*choices: str) -> _Reader:
    def read(place: Place) -> str:
        text = place.scalar("str") or ""
        if text not in choices:
            place.wrong("not a choice", f"one of {', '.join(choices)}")
        return text

    return read


def _choices(*choices: str) -> _Reader:
    def read(place: Place) -> tuple[str, ...]:
        if not isinstance(place.node, yaml.SequenceNode):
            place.wrong("not a list", f"give a list of any of {', '.join(choices)}; [] is none")
            return ()
        return tuple(map(_choice(*choices), place.items()))

    return read


def _ports(fewest: int, example: str) -> _Reader:
    hint = f"give a list of {fewest} to {_MAX_PORTS}, such as {example}"
    read = _number(1, 65535)

    def read_all(place: Place) -> tuple[int, ...]:
        if not isinstance(place.node, yaml.SequenceNode):
            place.wrong("not a list of ports", hint)
            return ()
        if not fewest <= len(place.node.value) <= _MAX_PORTS:
            place.report(f"{len(place.node.value)} ports", hint)
        ports: list[int] = []
        for item in place.items():
            before = len(place.problems)
            port = read(item)
            if port in ports and len(place.problems) == before:
                item.wrong("a duplicate port", "remove it")
            ports.append(port)
        return tuple(ports)

    return read_all


def _truth(place: Place) -> bool:
    # Of all that YAML 1.1 takes for a truth value, these two are so to everybody.
    text = place.scalar("bool") or ""
    if text not in {"true", "false"}:
        place.wrong("not a choice", "true or false, without quotes")
    return text == "true"


def _path(place: Place) -> str:
    text = place.scalar("str") or ""
    if not text.startswith("/") or not text.isprintable():
        place.wrong("not an absolute path", "give a path from / on")
    return text


def _optional_path(place: Place) -> str | None:
    return None if place.empty else _path(place)


def _listen(place: Place) -> tuple[str, int]:
    text = place.scalar("str", "int")
    if not text:
        place.wrong("not an address and a port", 'give ADDR:PORT, such as 127.0.0.1:10059 or "[::1]:10059"')
        return "", 0
    try:
        return parse_listen(text)
    except UserError as error:
        place.report(error.message, error.hint)
        return "", 0


def _priority(place: Place) -> int:
    text = place.scalar("str", "int") or ""
    if text in PRIORITIES:
        return PRIORITIES.index(text)
    if not re.fullmatch("[0-7]", text):
        place.wrong("not a priority", f"give 0 to 7, or {', '.join(PRIORITIES)}")
        return 0
    return int(text)


def _text(place: Place) -> str:
    # Any scalar as it is written: to YAML 1.1, "no" is a truth value, but it is Norway's domain, too.
    text = place.scalar()
    if not text or place.empty or not text.isprintable():
        place.wrong("not a printable text", "give a text in one line")
        return ""
    return text


def _domain(place: Place) -> tuple[DomainSpec, Pattern] | None:
    if isinstance(place.node, yaml.MappingNode):
        entries = place.entries(("name", "pattern", "priority"))
        if "pattern" not in entries:
            place.report("no pattern", "add the key pattern, such as pattern: example.com")
            return None
    else:
        entries = {"pattern": place}
    text = _text(entries["pattern"])
    name = _text(entries["name"]) if "name" in entries else text
    priority = _priority(entries["priority"]) if "priority" in entries else 6
    if not text:
        return None
    try:
        return DomainSpec(name, text, priority), parse_pattern(text)
    except RuleError as error:
        entries["pattern"].report(error.message, error.hint)
        return None


def _domains(place: Place) -> tuple[DomainSpec, ...]:
    if place.empty:
        return ()
    if not isinstance(place.node, yaml.SequenceNode):
        place.wrong("not a list of domains", "begin each domain with a hyphen, such as - example.com")
        return ()
    if len(place.node.value) > MAX_RULE_ID:
        place.report(f"too many rules ({len(place.node.value)})", f"give at most {MAX_RULE_ID}")
        return ()
    specs = []
    names: dict[str, Place] = {}
    patterns: dict[Pattern, Place] = {}
    for item in place.items():
        domain = _domain(item)
        if domain is None:
            continue
        spec, pattern = domain
        specs.append(spec)
        if pattern in patterns:
            _duplicate(item, "pattern", spec.pattern, patterns[pattern])
        elif spec.name in names:
            _duplicate(item, "name", spec.name, names[spec.name])
        patterns.setdefault(pattern, item)
        names.setdefault(spec.name, item)
    return tuple(specs)


def _duplicate(place: Place, what: str, value: str, other: Place) -> None:
    message = f"the same {what} as {other.key} in line {other.line} ({shorten(value)})"
    place.report(message, "remove one of the two rules" if what == "pattern" else "give one of the two another name")


#: Key: field of the dataclass, reader.
_Fields = Mapping[str, tuple[str, _Reader]]

_PROBE: _Fields = {
    "hook": ("hook", _choice(*HOOKS)),
    "tcp_hook": ("tcp_hook", _choice(*TCP_HOOKS)),
    "ports": ("ports", _ports(1, "[53]")),
    "dot_ports": ("dot_ports", _ports(0, "[853]")),
    "btf": ("btf", _path),
    "verify_interval": ("verify_interval_ns", _duration(_NS["s"], "1s")),
    "ring_size": ("ring_size", _size(_PAGE, 64 << 20)),
    "processes": ("processes", _number(1, _MAX_ENTRIES)),
    "counters": ("counters", _number(1, _MAX_ENTRIES)),
    "names": ("names", _number(1, _MAX_ENTRIES)),
    "recent": ("recent", _number(1, _MAX_ENTRIES)),
    "lineage": ("lineage", _number(0, _MAX_ENTRIES)),
    "tree": ("tree", _choice(*TREES)),
}

_JOURNAL: _Fields = {
    "repeat": ("repeat_ns", _duration(_NS["ms"], "1ms")),
    "queue": ("queue", _number(1, _MAX_ENTRIES)),
    "rate_interval": ("rate_interval_ns", _duration(_NS["s"], "1s")),
    "rate_burst": ("rate_burst", _number(1, _MAX_ENTRIES)),
}

_METRICS: _Fields = {
    "listen": ("listen", _listen),
    "max_series": ("max_series", _number(1, 1_000_000)),
    "labels": ("labels", _choices(*OPTIONAL_LABELS)),
    "connections": ("connections", _number(1, 65535)),
    "page": ("page", _truth),
    "web_config": ("web_config", _optional_path),
}


_SECTIONS: Mapping[str, tuple[Callable[..., Any], _Fields]] = {
    "probe": (ProbeConfig, _PROBE),
    "journal": (JournalConfig, _JOURNAL),
    "metrics": (MetricsConfig, _METRICS),
}


def _config(root: Place) -> Config:
    if root.empty:
        return default()
    entries = root.entries(("domains", *_SECTIONS))
    values: dict[str, Any] = {}
    if "domains" in entries:
        values["domains"] = _domains(entries["domains"])
    for key, (section, fields) in _SECTIONS.items():
        if key in entries and not entries[key].empty:
            places = entries[key].entries(tuple(fields))
            values[key] = section(**{fields[name][0]: fields[name][1](place) for name, place in places.items()})
    return Config(**values)
