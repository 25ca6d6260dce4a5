"""``dnsprobe doctor``: what this kernel offers, which hook serves each path, and whether it is proved."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dnsprobe import __version__, privileges
from dnsprobe.config.main import Config
from dnsprobe.errors import EXIT_FAILED, EXIT_GOOD, UserError
from dnsprobe.kernel import libbpf
from dnsprobe.kernel.hooks import TCP_LADDER, UDP_LADDER, kprobes_available
from dnsprobe.kernel.kallsyms import find_functions, read_kallsyms
from dnsprobe.kernel.probe import Probe, Sizes
from dnsprobe.pipeline.session import where_of
from dnsprobe.terminal import DIM, GREEN, RED, look_of
from dnsprobe.text import shown

#: Where a detail begins, and the columns that it has at least, however narrow the terminal is.
_INDENT, _LEAST_DETAIL = 19, 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``good`` is None where it is neither good nor bad."""

    check: str
    good: bool | None
    detail: str


def examine(config: Config, *, as_json: bool) -> int:
    """Print the findings and the paths, and return the exit status: 1 if a path is not proved."""
    if sys.stdout is None:
        raise UserError("standard output is closed", "dnsprobe doctor prints there: leave out >&-")
    for finding in _findings(config):
        _print_finding(finding, as_json=as_json)
    return _examine_paths(config, as_json=as_json)


def _print_finding(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"check": finding.check, "good": finding.good, "detail": finding.detail}), flush=True)
    else:
        _print_line(finding.good, finding.check, finding.detail)


def _print_line(good: bool | None, what: str, detail: str) -> None:
    """Print one line, or on a terminal as many as it takes, the later ones below the detail."""
    look = look_of(sys.stdout)
    mark, code = {True: ("ok", GREEN), False: ("NO", RED), None: ("--", DIM)}[good]
    text = look.plain(shown(detail))
    lines = [text]
    if look.width is not None:
        lines = textwrap.wrap(text, max(look.width - _INDENT, _LEAST_DETAIL), break_on_hyphens=False) or [""]
    print(f"{look.paint(mark, code)}  {what:<14} {lines[0]}")
    for line in lines[1:]:
        print(" " * _INDENT + line)
    sys.stdout.flush()


def _print_more(text: str) -> None:
    look = look_of(sys.stdout)
    text = look.plain(shown(text))
    lines = [text]
    if look.width is not None:
        lines = textwrap.wrap(text, max(look.width - 6, _LEAST_DETAIL), subsequent_indent="  ", break_on_hyphens=False)
    for line in lines:
        print(f"      {line}")


def _findings(config: Config) -> Iterator[Finding]:
    yield Finding("dnsprobe", None, f"{__version__}, Python {platform.python_version()}")
    yield Finding("kernel", None, f"{os.uname().release} {os.uname().machine}")
    yield _btf(config.probe.btf)
    yield Finding("bcc", *_bcc())
    yield _ring_buffer()
    kprobes = kprobes_available()
    yield Finding("kprobes", kprobes, "available" if kprobes else "this kernel has none; tracepoints serve instead")
    yield from _symbols()
    yield _capabilities()


def _btf(path: str) -> Finding:
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        return Finding("BTF", False, f"{path}: {error.strerror}")
    return Finding("BTF", True, f"{path}, {size // 1024} KiB")


def _bcc() -> tuple[bool, str]:
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        return False, "no module named bcc for this Python; apt-get install python3-bpfcc"
    return True, found.origin


def _ring_buffer() -> Finding:
    try:
        libbpf.Map(libbpf.RINGBUF, "doctor", 0, 0, 4096).close()
    except OSError as error:
        return Finding("ring buffer", False, f"cannot make one: {error.strerror} (needs Linux 5.8, and root)")
    except UserError as error:
        return Finding("ring buffer", False, error.message)
    return Finding("ring buffer", True, "available")


def _symbols() -> Iterator[Finding]:
    kallsyms = read_kallsyms()
    for rung in (*UDP_LADDER, *TCP_LADDER):
        if rung.kind != "kprobe":
            continue
        for function in dict.fromkeys(rung.functions.values()):
            found = find_functions(kallsyms, function)
            hidden = bool(found) and not any(symbol.address for symbol in found)
            names = ", ".join(symbol.name for symbol in found)
            detail = names + (" (addresses hidden: kernel.kptr_restrict)" if hidden else "")
            yield Finding("symbol", bool(found), detail or f"{function} is not in /proc/kallsyms")


def _capabilities() -> Finding:
    held = privileges.held()
    names = ", ".join(capability.name for capability in sorted(held))
    return Finding(
        "capabilities", privileges.can_load(held), names or f"none of those that BPF takes; {privileges.HINT}"
    )


def _examine_paths(config: Config, *, as_json: bool) -> int:
    problem = ""
    sizes = Sizes(ring=4096, processes=16, counters=16, names=16, recent=16, lineage=min(config.probe.lineage, 16))
    try:
        probe = Probe(where_of(config.probe), sizes, repeat_ns=0)
    except UserError as error:
        _print_problem(error, as_json=as_json)
        return EXIT_FAILED
    try:
        probe.set_rules([])
        probe.start()
    except UserError as error:
        problem = error.message
        if not any(state.tried for state in probe.paths.values()):
            _print_problem(error, as_json=as_json)
    proved = not problem and not probe.unserved
    for path, state in probe.paths.items():
        present = path in probe.active_paths
        if as_json:
            facts = {"path": path, "present": present, "hook": state.rung, "symbol": state.symbol}
            print(json.dumps({**facts, "proved": state.verified, "tried": state.tried}))
            continue
        if not present:
            _print_line(None, path, "not on this host")
            continue
        what = f"{state.rung} at {state.symbol}, proved" if state.verified else "NOT PROVED: no hook sees it"
        _print_line(state.verified, path, what)
        for tried in state.tried:
            _print_more(f"not {tried}")
    _print_finding(_lineage(probe, config), as_json=as_json)
    probe.close()
    probe.release()
    return EXIT_GOOD if proved else EXIT_FAILED


def _lineage(probe: Probe, config: Config) -> Finding:
    if probe.lineage is not None:
        return Finding("lineage", True, "who starts whom is followed")
    if config.probe.lineage == 0:
        return Finding("lineage", None, "not followed: probe.lineage is 0")
    # Without a hook for each path, it was not tried.
    return Finding("lineage", False, f"not followed: {probe.lineage_problem or 'it needs a hook for each path'}")


def _print_problem(error: UserError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"check": "attach", "good": False, "detail": error.message}))
    else:
        _print_line(False, "attach", error.message)
        _print_more(error.hint)
