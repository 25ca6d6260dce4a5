"""Readers of values in a YAML file: each takes a place and returns its value, or reports what is wrong there.

After a report, the result is never used: the file is refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from typing import Any

import yaml

from dnsprobe.config.listen import parse_listen
from dnsprobe.config.nodes import Place
from dnsprobe.errors import UserError
from dnsprobe.model import Rate

Reader = Callable[[Place], Any]

#: Units of durations, in nanoseconds.
NANOSECONDS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}

_YEAR_NS = 365 * NANOSECONDS["d"]
_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}
_MAX_PORTS = 16


def whole_number(low: int, high: int) -> Reader:
    """Return a reader of a whole number from ``low`` to ``high``."""

    def read(place: Place) -> int:
        text = place.scalar("int") or ""
        # In YAML 1.1, 010 is 8 and 1:30 is 90: refuse both.
        if not re.fullmatch("-?(0|[1-9][0-9]*)", text):
            place.wrong("not a whole number", f"use a number from {low} to {high} in plain digits, without quotes")
        elif len(text) > 18 or not low <= int(text) <= high:
            place.wrong("out of range", f"use a number from {low} to {high}")
        else:
            return int(text)
        return low

    return read


def _nanoseconds(text: str) -> Fraction | None:
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", text)
    return Fraction(match[1]) * NANOSECONDS[match[2]] if match else None


def duration(low_ns: int, low: str, *, zero: bool = True, high_ns: int = _YEAR_NS, high: str = "365d") -> Reader:
    """Return a reader of a duration as nanoseconds: 0 if ``zero``, or from ``low`` to ``high``.

    These are ``low_ns`` and ``high_ns`` as text.
    """
    either = "0, or " if zero else ""

    def read(place: Place) -> int:
        text = place.scalar("str", "int") or ""
        nanoseconds = _nanoseconds(text)
        if nanoseconds is None and not (zero and text == "0"):
            example = text if re.fullmatch("[1-9][0-9]{0,14}", text) else "60"
            units = ", ".join(NANOSECONDS)
            place.wrong("not a duration", f"use {either}a number with a unit ({units}), such as {example}s")
            return 0
        nanoseconds = nanoseconds or Fraction(0)
        if (nanoseconds or not zero) and not low_ns <= nanoseconds <= high_ns:
            place.wrong("out of range", f"use {either}a duration from {low} to {high}")
        return int(nanoseconds)

    return read


def rate(most: int, low_ns: int, low: str, high_ns: int, high: str) -> Reader:
    """Return a reader of a number of 1 to ``most`` in a duration from ``low_ns`` to ``high_ns``, also given as text."""
    hint = f"use a number from 1 to {most}, a slash, and a duration from {low} to {high}, such as 100/1m"

    def read(place: Place) -> Rate:
        number, _, text = (place.scalar("str") or "").partition("/")
        nanoseconds = _nanoseconds(text)
        if not re.fullmatch("[1-9][0-9]{0,17}", number) or nanoseconds is None:
            place.wrong("not a rate", hint)
            return Rate(1, low_ns)
        if int(number) > most or not low_ns <= nanoseconds <= high_ns:
            place.wrong("out of range", hint)
        return Rate(int(number), int(nanoseconds))

    return read


def ascending_durations(most: int, low_ns: int, low: str, example: str) -> Reader:
    """Return a reader of a list of 1 to ``most`` durations as nanoseconds, each longer than the one before."""
    hint = f"use a list of 1 to {most} durations, each longer than the one before, such as {example}"
    read_duration = duration(low_ns, low, zero=False)

    def read(place: Place) -> tuple[int, ...]:
        if not isinstance(place.node, yaml.SequenceNode):
            place.wrong("not a list of durations", hint)
            return ()
        if not 1 <= len(place.node.value) <= most:
            place.report(f"{len(place.node.value)} durations", hint)
        found: list[int] = []
        for item in place.items():
            before = len(place.problems)
            nanoseconds = read_duration(item)
            if found and nanoseconds <= found[-1] and len(place.problems) == before:
                item.wrong("not longer than the one before", hint)
            found.append(nanoseconds)
        return tuple(found)

    return read


def power_of_two(low: int, high: int, limits: str) -> Reader:
    """Return a reader of a size in bytes: a power of two from ``low`` to ``high``, which are ``limits`` as text."""

    def read(place: Place) -> int:
        match = re.fullmatch("([0-9]{1,15})(|KiB|MiB)", place.scalar("str", "int") or "")
        if not match:
            place.wrong("not a size", "use a number of bytes, or a number with KiB or MiB, such as 1MiB")
            return low
        size = int(match[1]) * _BYTES[match[2]]
        if not low <= size <= high or size & (size - 1):
            place.wrong("not a size that the kernel accepts", f"use a power of two from {limits}")
        return size

    return read


def choice(choices: Collection[str], old: Collection[str] = ()) -> Reader:
    """Return a reader of one of ``choices``, or of a value in ``old``, which errors do not mention."""

    def read(place: Place) -> str:
        text = place.scalar("str") or ""
        if text not in choices and text not in old:
            place.wrong("not a possible value", f"use one of {', '.join(choices)}")
        return text

    return read


def choices(names: Sequence[str]) -> Reader:
    """Return a reader of a list of any of ``names``."""

    def read(place: Place) -> tuple[str, ...]:
        if not isinstance(place.node, yaml.SequenceNode):
            place.wrong("not a list", f"use a list of any of {', '.join(names)}; [] means none")
            return ()
        return tuple(map(choice(names), place.items()))

    return read


def some_of(names: Sequence[str], example: str) -> Reader:
    """Return a reader of a list of at least one of ``names``, which are in upper case; the file may have any case."""
    hint = f"use a list of any of {', '.join(names)}, such as {example}"

    def read(place: Place) -> tuple[str, ...]:
        if not isinstance(place.node, yaml.SequenceNode) or not place.node.value:
            place.wrong("not a list of at least one", hint)
            return ()
        found = []
        for item in place.items():
            text = item.scalar("str") or ""
            name = next((name for name in names if name.upper() == text.upper()), "")
            if not name:
                item.wrong("not a possible value", hint)
            elif name in found:
                item.wrong("a duplicate", "remove it")
            found.append(name)
        return tuple(found)

    return read


def host_names(place: Place) -> tuple[str, ...]:
    """Read a list of names of hosts, without ports."""
    if not isinstance(place.node, yaml.SequenceNode):
        place.wrong("not a list of names", "use a list of names of hosts, such as [dns.example]; [] means none")
        return ()
    names = []
    for item in place.items():
        name = item.scalar("str") or ""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", name) or len(name) > 254:
            item.wrong("not a name of a host", "use a name without a port, such as dns.example, in its ASCII form")
        names.append(name)
    return tuple(names)


def ports(fewest: int, example: str) -> Reader:
    """Return a reader of a list of ``fewest`` to 16 different ports."""
    hint = f"use a list of {fewest} to {_MAX_PORTS} ports, such as {example}"
    read_port = whole_number(1, 65535)

    def read(place: Place) -> tuple[int, ...]:
        if not isinstance(place.node, yaml.SequenceNode):
            place.wrong("not a list of ports", hint)
            return ()
        if not fewest <= len(place.node.value) <= _MAX_PORTS:
            place.report(f"{len(place.node.value)} ports", hint)
        found: list[int] = []
        for item in place.items():
            before = len(place.problems)
            port = read_port(item)
            if port in found and len(place.problems) == before:
                item.wrong("a duplicate port", "remove it")
            found.append(port)
        return tuple(found)

    return read


def boolean(place: Place) -> bool:
    """Read ``true`` or ``false``; YAML 1.1 has more words for them, which not every reader knows."""
    text = place.scalar("bool") or ""
    if text not in {"true", "false"}:
        place.wrong("not true or false", "use true or false, without quotes")
    return text == "true"


def absolute_path(place: Place) -> str:
    """Read a path that begins with ``/``."""
    text = place.scalar("str") or ""
    if not text.startswith("/") or not text.isprintable():
        place.wrong("not an absolute path", "use a path that begins with /")
    return text


def optional_path(place: Place) -> str | None:
    """Read an absolute path, or no value."""
    return None if place.empty else absolute_path(place)


def listen(place: Place) -> tuple[str, int]:
    """Read an address and a port."""
    text = place.scalar("str", "int")
    if not text:
        place.wrong("not an address and a port", 'write ADDR:PORT, such as 127.0.0.1:10059 or "[::1]:10059"')
        return "", 0
    try:
        return parse_listen(text)
    except UserError as error:
        place.report(error.message, error.hint)
        return "", 0


def line_of_text(place: Place) -> str:
    """Read a printable text of one line, whatever type YAML gives it.

    To YAML 1.1, ``no`` is a truth value, but it is also Norway's domain.
    """
    text = place.scalar()
    if not text or place.empty or not text.isprintable():
        place.wrong("not a printable text", "write a text in one line, without control characters")
        return ""
    return text
