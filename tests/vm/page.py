"""docs/kernels.md: the kernels that dnsprobe was tested on, and the ways to send that it captures there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kernels import GUESTS

#: The UDP hooks, as the results of the tests and the tables name them. ``hook: auto`` chooses the first.
HOOKS = ("ip_send_skb", "udp_send_skb", "cgroup_skb")

#: The TCP hooks. Not every kernel has the last one.
TCP_HOOKS = ("cgroup_skb", "tcp_sendmsg_locked", "tcp_sendmsg", "tcp_tracepoint")

FORMS = {
    "whole": "length and message in one write",
    "length-first": "the length in a write of its own",
    "octets": "octet by octet",
    "split": "cut at each octet in turn, down one connection",
    "keptopen": "one connection for all",
    "write": "`write`, and `writev` of three pieces",
    "vector": "`sendmsg`, each octet a piece of its own",
    "pipelined": "34 in one write; two and a half, then the rest",
    "again": "written again after the socket was full",
    "givenup": "given up since the socket was full, and others written",
    "thread": "from another thread than the first",
    "fast": "TCP Fast Open: with the SYN, or held until there is a connection",
    "fastagain": "TCP Fast Open without waiting: written again where there is no cookie",
    "fastlater": "`TCP_FASTOPEN_CONNECT`: `connect` waits for the first write",
    "mixed": "all of these and ordinary connections in turn, cut anywhere",
    "dig": "`dig +tcp`",
    "digopen": "`dig +tcp +keepopen`",
}

WAYS = {
    "sendto": "`sendto`",
    "send": "`send`, connected",
    "write": "`write` on a connected socket",
    "writev": "`writev` on a connected socket",
    "sendmsg": "`sendmsg`, in two parts",
    "sendmmsg": "`sendmmsg`",
    "corked": "corked: `MSG_MORE`, then the rest",
    "uring": "io_uring",
    "uringasync": "io_uring, by its worker (`IOSQE_ASYNC`)",
    "thread": "from another thread than the first",
    "namespace": "from a second network namespace",
    "python": "Python, dynamically linked (all others are static)",
}
FAMILIES = {"4": "IPv4", "6": "IPv6", "mapped": "IPv4-mapped IPv6"}

_SHORT = {
    "corked": "corked sends",
    **dict.fromkeys(("fast", "fastagain", "fastlater", "mixed"), "the first write of TCP Fast Open"),
}

_HEAD = """\
# Kernels

This page shows on which kernels dnsprobe was tested, and which queries each hook sees there. It is for those who
choose a hook, or want to know whether a kernel is good enough. [How it works](how-it-works.md#the-hook) explains the
hooks.

`scripts/vm --write-docs` makes this page from a run of its virtual machines: on each of these kernels, it installs the
Debian package with apt and tests it with systemd and journald. All machines are x86-64.

## What to expect

"all": each query was counted, once, and for the process that sent it. "-": this kernel does not have the hook.
"refused": the hook was selected in the configuration, its test queries did not come back right, and dnsprobe did not
use it.

"""

_SUMMARY_TAIL = """
- `sid` is the kernel of Debian unstable; the [versions](#the-kernels) are below.
- With `hook: auto` and `tcp_hook: auto`, dnsprobe uses the first hook of a protocol that works: the columns are in this
  order.
- Kernels without fentry and kprobes use `cgroup_skb`. Without it, only TCP is seen, from Linux 6.16 on, which added the
  tracepoint.
- On all these kernels, functions are attached to by fentry, except for `udp_send_skb.isra.51`.
- On kernels where GCC's IPA-SRA has changed `udp_send_skb`, the function has another name, such as
  `udp_send_skb.isra.51`. dnsprobe finds it under that name.
- Queries that cannot be read are counted as such, in `dnsprobe_packets_unparsed_total`.
- From Linux 6.7 on, `run_missed` counts the runs of the BPF program that the kernel skips. Older kernels do not report
  them for kprobes.
- The [limits](how-it-works.md#limits) of each hook hold on all kernels.

"""

_KERNELS_HEAD = """\
## The kernels

Versions are those that Debian's archive had when the tests ran. The kernel 6.1-isra is built from Debian's source, with
`udp_send_skb` in the form that GCC's IPA-SRA gives it: its name is `udp_send_skb.isra.51`, and its second argument is
split into numbers.

"""


_WAYS_HEAD = """\
## Ways to send

`yes`: each of 7 queries was counted, and for the process that sent it. `no`: the cell says how many of the 7 were
counted, and how many `dnsprobe_packets_unparsed_total` counted as not readable. `refused`: as above.
"""


_FORMS_HEAD = """
## Forms of TCP

`yes`: each query that a DNS server received was counted, once, and for the process that sent it. `-`: this kernel does
not have the hook.
"""


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _kept(folder: Path, guest: str, name: str) -> dict[str, dict[str, str]]:
    kept: dict[str, dict[str, str]] = json.loads((folder / guest / "out" / f"{name}.json").read_text())
    return kept


def _userland(folder: Path, guest: str) -> str:
    versions = dict(line.split("=", 1) for line in (folder / guest / "userland.versions").read_text().splitlines())
    wanted = {"systemd": "systemd", "python3": "Python", "python3-bpfcc": "BCC"}
    return ", ".join(f"{name} {versions[package].split('-')[0]}" for package, name in wanted.items())


def _release(folder: Path, guest: str) -> str:
    lines = (folder / guest / "kernel.versions").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)["release"]


def _served(hooks: dict[str, str], protocol: str) -> str:
    return ", ".join(f"`{hook}`" for hook in dict.fromkeys(hooks[protocol + version] for version in "46"))


def kernels_table(folder: Path) -> str:
    """Return the table of guests: name, kernel, its origin, userland, and the functions that are hooked."""
    rows: list[Sequence[str]] = [("Name", "Kernel", "Debian", "Userland", "UDP seen at", "TCP seen at")]
    for guest in GUESTS:
        hooks = _kept(folder, guest.name, "hooks")["hooks"]
        origin = f"{guest.release}, built from {guest.source}" if guest.source else guest.release
        userland = f"{guest.userland}: {_userland(folder, guest.name)}"
        served = [_served(hooks, protocol) for protocol in ("udp", "tcp")]
        rows.append((guest.name, _release(folder, guest.name), origin, userland, *served))
    return table(rows)


def _ways_verdicts(folder: Path, hook: str) -> dict[str, dict[str, str]]:
    return {guest.name: _kept(folder, guest.name, f"paths-{hook}")["rows"] for guest in GUESTS}


def _forms_verdicts(folder: Path, hook: str) -> dict[str, dict[str, str]]:
    return {
        guest.name: _kept(folder, guest.name, f"streams-{hook}")["rows"]
        if (folder / guest.name / "out" / f"streams-{hook}.json").exists()
        else {}
        for guest in GUESTS
    }


def _in_short(rows: dict[str, str], labels: dict[str, str]) -> str:
    """Return in a few words what a hook sees on one kernel."""
    failed = dict.fromkeys(labels[row.rpartition("-")[0]] for row, verdict in rows.items() if verdict != "yes")
    return f"all but {', '.join(failed)}" if failed else "all"


def summary_table(folder: Path) -> str:
    """Return the table of hooks by guest: what each sees there.

    It has no versions: another version is no difference (:func:`drift`).
    """
    columns = {f"UDP at `{hook}`": (_ways_verdicts(folder, hook), WAYS, "refused") for hook in HOOKS}
    columns |= {f"TCP at `{hook}`": (_forms_verdicts(folder, hook), FORMS, "-") for hook in TCP_HOOKS}
    rows: list[Sequence[str]] = [("Kernel", *columns)]
    for guest in GUESTS:
        cells = (
            _in_short(verdicts[guest.name], labels | _SHORT) if verdicts[guest.name] else absent
            for verdicts, labels, absent in columns.values()
        )
        rows.append((guest.name, *cells))
    return table(rows)


def ways_table(folder: Path, hook: str) -> str:
    """Return the table of ways to send by guest."""
    verdicts = _ways_verdicts(folder, hook)
    rows = [("Way to send", "", *verdicts)]
    for row in next(rows for rows in verdicts.values() if rows):
        way, family = row.split("-")
        cells = (verdicts[guest].get(row, "refused") for guest in verdicts)
        rows.append((WAYS[way], FAMILIES[family], *cells))
    return table(rows)


def forms_table(folder: Path, hook: str) -> str:
    """Return the table of forms of TCP by guest."""
    verdicts = _forms_verdicts(folder, hook)
    rows = [("Form", "", *verdicts)]
    for row in next((rows for rows in verdicts.values() if rows), {}):
        form, _, family = row.rpartition("-")
        rows.append((FORMS[form], FAMILIES[family], *(verdicts[guest].get(row, "-") for guest in verdicts)))
    return table(rows)


def ways(folder: Path) -> str:
    """Return the section on ways to send. It must not change from run to run, whatever the versions are."""
    return (
        _WAYS_HEAD
        + "".join(_section("UDP", hook, first=hook == HOOKS[0]) + ways_table(folder, hook) for hook in HOOKS)
        + _FORMS_HEAD
        + "".join(_section("TCP", hook, first=hook == TCP_HOOKS[0]) + forms_table(folder, hook) for hook in TCP_HOOKS)
    )


def _section(protocol: str, hook: str, *, first: bool) -> str:
    setting = "hook" if protocol == "UDP" else "tcp_hook"
    note = f", which `{setting}: auto` selects" if first else ""
    return f"\n### {protocol} at `{hook}`{note}\n\n"


def page(folder: Path) -> str:
    """Return the whole page from the results of a run over all guests. Raises OSError if a result is missing."""
    summary = _HEAD + summary_table(folder) + _SUMMARY_TAIL
    return summary + _KERNELS_HEAD + kernels_table(folder) + "\n" + ways(folder)


def drift(folder: Path, path: Path) -> str:
    """Return how the page at ``path`` differs from the results of a run over all guests; empty if it does not."""
    published = path.read_text() if path.exists() else ""
    tables = (summary_table(folder), ways(folder))
    if all(table in published for table in tables) and all(f"| {guest.name} " in published for guest in GUESTS):
        return ""
    return f"{path.name} differs from the results: run scripts/vm --write-docs, and look at the difference"
