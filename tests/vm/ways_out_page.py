"""docs/ways-out.md: what each rung of the ladder makes of each situation in which queries leave a host."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kernels import GUESTS
from page import table

sys.path.append(str(Path(__file__).parent / "guest"))  # scripts/vm has only this folder in its path

from ways_out.situations import TITLES

#: The rungs as columns: how they are attached, and the hook.
RUNGS = ("fentry ip_send_skb", "kprobe ip_send_skb", "fentry udp_send_skb", "kprobe udp_send_skb", "cgroup cgroup_skb")
ABSENT = "-"

#: Verdicts by situation, by kernel, by rung.
Verdicts = Mapping[str, Mapping[str, Mapping[str, str]]]

_HEAD = """\
# Ways out of the host

This page shows which queries over UDP dnsprobe counts in which situation, at each hook and on each kernel. It is for
those who want to know whether dnsprobe is right on a host with a firewall, address translation, containers or tunnels.
[How it works](how-it-works.md#the-hook) explains the hooks; [Kernels](kernels.md) shows which hook is used on which
kernel.

`scripts/vm --write-docs` makes this page from a run of its virtual machines. In each of them, the tests play all
situations while one dnsprobe for each hook observes them. They compare what it counted with what was sent.

## How to read it

- `right`: each query was counted once, for the process that asked, with its transport and with the server that it
  asked. Where there is nothing to count, nothing was counted.
- `counted as lost`: queries are missing, and `dnsprobe_packets_unparsed_total` and `dnsprobe_events_lost_total` have as
  many. Or they were counted without their process, and `dnsprobe_queries_unattributed_total` has as many. Runs that the
  kernel skipped (`run_missed`) are left out: they depend on which process interrupts which, not on the situation.
- `not seen`: queries are missing, and no counter has them.
- `-`: the kernel does not have what the situation needs, or it does not have the hook.

If a query was counted for another process, with another server or twice, the tests fail. A query that a firewall drops
should count, because a process has sent it. If the send itself fails because there is no route, there is nothing to
count.

Some situations have queries over TCP, too. Those are read at egress, whatever the hook for UDP is.

"""

_SUMMARY_HEAD = """\
## All kernels

`fentry` and `kprobe` say how dnsprobe attaches to a function. A cell names the kernels that differ from the others.

"""


def verdicts(folder: Path) -> Verdicts:
    """Return the verdicts of a run over all guests. Raises OSError if a result is missing."""
    kept = {
        guest.name: json.loads((folder / guest.name / "out/ways-out.json").read_text())["rungs"] for guest in GUESTS
    }
    return {rung: {guest: rungs.get(rung, {}) for guest, rungs in kept.items()} for rung in RUNGS}


def _in_short(found: Mapping[str, str]) -> str:
    """Return the verdicts on one situation at one rung by kernel in a few words."""
    by_verdict: dict[str, list[str]] = {}
    for guest, verdict in found.items():
        if verdict != ABSENT:
            by_verdict.setdefault(verdict, []).append(guest)
    if not by_verdict:
        return ABSENT
    usual = max(by_verdict, key=lambda verdict: len(by_verdict[verdict]))
    others = (f"{verdict} on {', '.join(guests)}" for verdict, guests in by_verdict.items() if verdict != usual)
    return "; ".join([usual, *others])


def _title(rung: str) -> str:
    attach, hook = rung.split()
    return f"`{hook}`" if attach == "cgroup" else f"`{hook}`, {attach}"


def summary(found: Verdicts) -> str:
    """Return the tables of situations by rung, one for each group of situations."""
    text = ""
    for group in dict.fromkeys(group for group, _ in TITLES.values()):
        rows: list[Sequence[str]] = [(group, *map(_title, RUNGS))]
        for situation, (own, title) in TITLES.items():
            if own == group:
                cells = (
                    _in_short({guest: row.get(situation, ABSENT) for guest, row in found[rung].items()})
                    for rung in RUNGS
                )
                rows.append((title, *cells))
        text += table(rows) + "\n"
    return text


def details(found: Verdicts) -> str:
    """Return the tables of situations by kernel, one for each rung."""
    text = ""
    for rung in RUNGS:
        rows: list[Sequence[str]] = [("Situation", *found[rung])]
        rows += [
            (title, *(row.get(situation, ABSENT) for row in found[rung].values()))
            for situation, (_, title) in TITLES.items()
        ]
        text += f"## {_title(rung)}\n\n{table(rows)}\n"
    return text.rstrip("\n") + "\n"


def page(folder: Path) -> str:
    """Return the whole page from the results of a run over all guests. Raises OSError if a result is missing."""
    found = verdicts(folder)
    return _HEAD + _SUMMARY_HEAD + summary(found) + details(found)


def drift(folder: Path, path: Path) -> str:
    """Return how the page at ``path`` differs from the results of a run over all guests; empty if it does not."""
    if path.exists() and page(folder) == path.read_text():
        return ""
    return f"{path.name} differs from the results: run scripts/vm --write-docs, and look at the difference"


def published(text: str) -> dict[str, dict[str, dict[str, str]]]:
    """Return the verdicts of a page by rung, situation and kernel."""
    situations = {title: situation for situation, (_, title) in TITLES.items()}
    found: dict[str, dict[str, dict[str, str]]] = {}
    for rung in RUNGS:
        section = text.split(f"\n## {_title(rung)}\n")[1].split("\n## ", maxsplit=1)[0]
        kernels, *rows = _rows(section)
        found[rung] = {situations[row[0]]: dict(zip(kernels[1:], row[1:], strict=True)) for row in rows}
    return found


def _rows(section: str) -> Iterator[list[str]]:
    for line in re.findall(r"^\|(.*)\|$", section, re.MULTILINE):
        if not line.startswith("--"):
            yield [cell.strip() for cell in line.split("|")]
