"""``dnsprobe doctor``: show what this kernel offers, and which hook serves each path and is proved."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import pwd
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dnsprobe import __version__, privileges
from dnsprobe.commands.address import holder, written
from dnsprobe.config.main import Config
from dnsprobe.errors import EXIT_FAILED, EXIT_GOOD, UserError
from dnsprobe.hook_names import Attach
from dnsprobe.kernel import libbpf
from dnsprobe.kernel.answer_hooks import MISSING
from dnsprobe.kernel.cgroup_root import open_root
from dnsprobe.kernel.fentry import function_problems
from dnsprobe.kernel.hooks import TCP_LADDER, UDP_LADDER, kprobes_available
from dnsprobe.kernel.kallsyms import find_functions, read_kallsyms
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe
from dnsprobe.kernel.prover import PathState
from dnsprobe.pipeline.session import probe_options
from dnsprobe.privileges import Capability
from dnsprobe.terminal import DIM, GREEN, RED, look_of
from dnsprobe.text import shown
from dnsprobe.web.peers import uid_of_listener

#: The column where details begin, and the least number of columns for them, even in a narrow terminal.
_INDENT, _LEAST_DETAIL = 19, 30

#: Above this kernel.perf_event_paranoid, which is Debian's addition, perf_event_open(2) requires CAP_SYS_ADMIN.
_LEAST_PARANOID = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined; ``good`` is None if it is neither good nor bad."""

    check: str
    good: bool | None
    detail: str


def examine(config: Config, *, as_json: bool) -> int:
    """Print the findings and the paths. Return the exit status: 1 if a path is not proved."""
    if sys.stdout is None:
        raise UserError("standard output is closed", "dnsprobe doctor prints its findings there: do not close it (>&-)")
    for finding in _findings(config):
        _print_finding(finding, as_json=as_json)
    return _examine_paths(config, as_json=as_json)


def _print_finding(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"check": finding.check, "good": finding.good, "detail": finding.detail}), flush=True)
    else:
        _print_line(finding.good, finding.check, finding.detail)


def _print_line(good: bool | None, what: str, detail: str) -> None:
    """Print one line; on a terminal wrap the detail, and indent the lines that follow to its column."""
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


def _print_below(text: str) -> None:
    """Print more about the line before."""
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
    yield _fentry()
    yield _kprobes()
    yield _control_groups()
    yield from _symbols()
    yield _capabilities()
    yield _address(*config.metrics.listen)


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
        return Finding("ring buffer", False, f"cannot create one: {error.strerror} (needs Linux 5.8, and root)")
    except UserError as error:
        return Finding("ring buffer", False, error.message)
    return Finding("ring buffer", True, "available")


def _fentry() -> Finding:
    """Attach an empty program to each function. fentry is not needed: a kprobe serves in its place."""
    try:
        problems = function_problems()
    except UserError as error:
        return Finding("fentry", None, error.message)
    good = [function for function, problem in problems.items() if not problem]
    bad = "; ".join(dict.fromkeys(problem for problem in problems.values() if problem))
    if not bad:
        return Finding("fentry", True, "available")
    return Finding("fentry", None, f"for {', '.join(good)}; not for all: {bad}" if good else f"not available: {bad}")


def _kprobes() -> Finding:
    if kprobes_available():
        return Finding("kprobes", True, "available")
    return Finding("kprobes", None, "this kernel has none")


def _control_groups() -> Finding:
    """Open the root of the control groups, which only the hook cgroup_skb needs."""
    try:
        os.close(open_root())
    except UserError as error:
        return Finding("control groups", None, error.message)
    return Finding("control groups", True, "the root (cgroup2) is visible")


def _symbols() -> Iterator[Finding]:
    kallsyms = read_kallsyms()
    for rung in (*UDP_LADDER, *TCP_LADDER):
        if rung.attach != Attach.KPROBE:
            continue
        for function in dict.fromkeys(rung.functions.values()):
            found = find_functions(kallsyms, function)
            hidden = bool(found) and not any(symbol.address for symbol in found)
            names = ", ".join(symbol.name for symbol in found)
            detail = names + (" (addresses hidden: kernel.kptr_restrict)" if hidden else "")
            yield Finding("symbol", bool(found), detail or f"{function} is not in /proc/kallsyms")


def _capabilities() -> Finding:
    held = privileges.held()
    names = ", ".join(capability.name for capability in sorted(held)) or f"none that BPF needs; {privileges.HINT}"
    lacks = [f"without {capability.name}, {what}" for capability, what in _needs().items() if capability not in held]
    return Finding("capabilities", privileges.can_load(held), "; ".join((names, *lacks)))


def _address(host: str, port: int) -> Finding:
    """Find out who listens on the address of the metrics. Any user of the host could serve forged ones there."""
    where = written(host, port)
    uid = uid_of_listener(host, port) if port else None
    if uid is None:
        return Finding("address", None, f"nobody listens on {where}")
    if uid in {0, os.getuid(), _uid_of_service()}:
        return Finding("address", True, f"{holder(host, port)} listens on {where}")
    return Finding(
        "address", False, f"{holder(host, port)} listens on {where}, not dnsprobe: metrics from there may be forged"
    )


def _uid_of_service() -> int | None:
    try:
        return pwd.getpwnam("dnsprobe").pw_uid  # DynamicUser= in the unit: it exists while the service runs
    except KeyError:
        return None


def _needs() -> dict[Capability, str]:
    """Return what is missing on this host without each of the capabilities that only some hosts need."""
    needs = {
        # Some kernels accept CAP_SYS_ADMIN in its place: kernel/bpf/token.c, bpf_ns_capable(), in Linux 6.18.
        Capability.CAP_NET_ADMIN: "the kernel may refuse the hook cgroup_skb",
        Capability.CAP_SYS_PTRACE: "not all of /proc is readable",
    }
    paranoid = _perf_event_paranoid()
    if kprobes_available() and paranoid > _LEAST_PARANOID:
        needs[Capability.CAP_SYS_ADMIN] = f"there are no kprobes (kernel.perf_event_paranoid is {paranoid})"
    return needs


def _perf_event_paranoid() -> int:
    try:
        return int(Path("/proc/sys/kernel/perf_event_paranoid").read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _examine_paths(config: Config, *, as_json: bool) -> int:
    """Attach and prove the hooks with small maps, print the results, and detach. Return the exit status."""
    notes = 16 if config.answers else 0
    lineage = min(config.probe.lineage, 16)
    sizes = Sizes(ring=4096, processes=16, counters=16, names=16, recent=16, lineage=lineage, notes=notes)
    try:
        probe = Probe(probe_options(config.probe), sizes, repeat_ns=0)
    except UserError as error:
        _print_problem(error, as_json=as_json)
        return EXIT_FAILED
    try:
        proved = _prove(probe, as_json=as_json)
        for path, state in probe.prover.paths.items():
            _print_path(path, state, present=path in probe.prover.active_paths, as_json=as_json)
        for path, state in probe.answers.paths.items():
            _print_path(path, state, present=True, as_json=as_json)
        if finding := _answers(probe, config):
            _print_finding(finding, as_json=as_json)
        _print_finding(_lineage(probe, config), as_json=as_json)
    finally:
        probe.close()
        probe.release()
    return EXIT_GOOD if proved else EXIT_FAILED


def _prove(probe: Probe, *, as_json: bool) -> bool:
    """Attach and prove. Return True if each path of this host is proved: then ``dnsprobe run`` is ready."""
    try:
        probe.set_rules([])
        probe.start()
    except UserError as error:
        # If hooks were tried, the lines about the paths show the reasons.
        if not any(state.tried for state in probe.prover.paths.values()):
            _print_problem(error, as_json=as_json)
        return False
    return not probe.prover.unproved


def _print_path(path: str, state: PathState, *, present: bool, as_json: bool) -> None:
    if as_json:
        facts = {"path": path, "present": present, "hook": state.rung, "attach": state.attach}
        facts |= {"symbol": state.symbol, "unseen": "" if path in MISSING else state.unseen}
        print(json.dumps({**facts, "proved": state.verified, "tried": state.tried}))
        return
    if not present:
        _print_line(None, path, "not on this host")
        return
    if state.verified:
        _print_line(True, path, f"{state.rung} ({state.place}), proved")
    else:
        _print_line(False, path, "NOT PROVED: no hook could be verified")
    if path in MISSING:
        _print_missing(path, state)
        return
    if state.unseen:
        _print_below(f"does not see {state.unseen}")
    for tried in state.tried:
        _print_below(f"not {tried}")


def _print_missing(path: str, state: PathState) -> None:
    """Print what is missing if a path of answers is not proved, and why."""
    if not state.verified:
        _print_below(MISSING[path])
        _print_below(f"not {state.tried[0]}" if state.tried else f"not {state.place}: {state.problem}")


def _answers(probe: Probe, config: Config) -> Finding | None:
    """Return why answers were not tried, None if they were."""
    if probe.answers.paths:
        return None
    if config.answers is None:
        return Finding("answers", None, "off: queries are counted, but not what became of them")
    return Finding("answers", False, "they were not tried: they need a hook for each path of UDP")


def _lineage(probe: Probe, config: Config) -> Finding:
    if probe.lineage_table.hook is not None:
        return Finding("lineage", True, "lineage tracking is on")
    if config.probe.lineage == 0:
        return Finding("lineage", None, "lineage tracking is off: probe.lineage is 0")
    # Without a hook for each path, lineage tracking was not tried.
    reason = probe.lineage_table.problem or "it needs a hook for each path"
    return Finding("lineage", False, f"lineage tracking is off: {reason}")


def _print_problem(error: UserError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"check": "attach", "good": False, "detail": error.message}))
    else:
        _print_line(False, "attach", error.message)
        _print_below(error.hint)
