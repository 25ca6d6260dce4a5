"""The one table of losses: where each is counted, what its metric is called, and what it means.

``/metrics``, the page, the last line of the log and the summary of ``dnsprobe watch`` are made from :data:`LOSSES`.
Tests compare docs/metrics.md and the alert rules with it. "Add a loss" in docs/architecture.md has all steps.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from dnsprobe.kernel.abi import Statistic
from dnsprobe.text import number


class Counted(StrEnum):
    """Whether ``dnsprobe_queries_total`` has the query all the same."""

    YES = "counted"
    NO = "not counted"
    IN_PART = "counted in part"
    NO_QUERY = "not a query"


class Source(Enum):
    """Where the number of a loss comes from, unless it is a :class:`Statistic` of the BPF programs."""

    MISSED_RUNS = auto()
    PARTS_LOST = auto()
    LINEAGE_FULL = auto()
    LINEAGE_MISSED_RUNS = auto()
    IDENTITIES_FULL = auto()
    JOURNAL_DROPPED = auto()
    LOG_DROPPED = auto()
    SERIES_FOLDED = auto()
    EVENTS_UNDECIDED = auto()
    NAMES_UNDECIDED = auto()
    RESULTS_FORGOTTEN = auto()


@dataclass(frozen=True, slots=True)
class Loss:
    """One way to lose something.

    ``metric`` is the name in ``/metrics``, ``reason`` the value of its label (empty: the metric has no label).
    ``what`` completes the sentence "N times …".
    """

    metric: str
    reason: str
    source: Statistic | Source
    what: str
    counted: Counted


#: Seconds from a hook at a function to the hook at egress, even if the sender has to wait for a processor.
_ON_ITS_WAY = 0.2

_EVENTS = "dnsprobe_events_lost_total"
_UNATTRIBUTED = "dnsprobe_queries_unattributed_total"
_UNPARSED = "dnsprobe_packets_unparsed_total"
_LINEAGE = "dnsprobe_lineage_lost_total"
_JOURNAL = "dnsprobe_journal_dropped_total"
_LOG = "dnsprobe_log_dropped_total"
_FOLDED = "dnsprobe_series_folded_total"
_UNDECIDED = "dnsprobe_names_undecided_total"

#: What each metric of losses counts.
_TITLES = {
    _EVENTS: "Events lost",
    _UNATTRIBUTED: "Queries counted without their process or server, processes without their tree, and processes that "
    "only /proc can describe, for want of room or because a firewall in user space sent the query on",
    _UNPARSED: "Packets and writes to a watched port that could not be read as a query, or not in full",
    _LINEAGE: "Processes whose lineage is not tracked for want of room, and forks, exits and changes of name that were "
    "missed",
    _JOURNAL: "Entries that could not be sent to the journal",
    _LOG: "Lines of the log of dnsprobe itself that nobody read",
    _FOLDED: "Different series that were refused for the limit on series and count under (other)",
    _UNDECIDED: "Names that took wildcards and regular expressions too long, whose queries count under the domain "
    "(undecided)",
}

LOSSES = (
    Loss(
        _EVENTS,
        "ring_full",
        Statistic.LOST_RING_FULL,
        "no room for an event in the ring buffer, so no journal entry",
        Counted.YES,
    ),
    Loss(
        _EVENTS,
        "names_full",
        Statistic.UNDECIDED_NAMES_FULL,
        "no room to remember a name that only the daemon can decide",
        Counted.NO,
    ),
    Loss(_EVENTS, "run_missed", Source.MISSED_RUNS, "the kernel skipped a run of a BPF program", Counted.NO),
    Loss(
        _EVENTS,
        "segmented",
        Statistic.LOST_SEGMENTED,
        "a send of so many datagrams (UDP_SEGMENT) that not each new query has an event",
        Counted.YES,
    ),
    Loss(
        _EVENTS,
        "undecided",
        Source.EVENTS_UNDECIDED,
        "an event of which it was not decided in time whether a rule matches its name, so no journal entry",
        Counted.YES,
    ),
    Loss(
        _EVENTS,
        "results",
        Statistic.LOST_RESULTS,
        "no room for the result of a query in the ring buffer, so no journal entry has it",
        Counted.YES,
    ),
    Loss(
        _EVENTS,
        "results_waiting",
        Source.RESULTS_FORGOTTEN,
        "too many queries with a journal entry wait for their result, so no journal entry has it",
        Counted.YES,
    ),
    Loss(
        _UNATTRIBUTED,
        "counters_full",
        Statistic.UNATTRIBUTED_COUNTERS_FULL,
        "no room for one more counter, so the query has no process",
        Counted.YES,
    ),
    Loss(
        _UNATTRIBUTED,
        "servers_full",
        Statistic.SERVERS_FULL,
        "no room for one more server, so the query has the server (other)",
        Counted.YES,
    ),
    Loss(
        _UNATTRIBUTED,
        "firewall",
        Statistic.UNATTRIBUTED_SENT_ON,
        "a firewall in user space (NFQUEUE) or a kernel thread sent the query on, and it is not certain who asked",
        Counted.YES,
    ),
    Loss(
        _UNATTRIBUTED,
        "processes_full",
        Statistic.UNATTRIBUTED_PROCESSES_FULL,
        "no room for the tree of a process",
        Counted.YES,
    ),
    Loss(
        _UNATTRIBUTED,
        "identities_full",
        Source.IDENTITIES_FULL,
        "no room for the executable, command line and control group of a program that a process runs",
        Counted.YES,
    ),
    Loss(
        _UNPARSED,
        "malformed",
        Statistic.UNPARSED_MALFORMED,
        "a packet or write to a watched port without a whole question",
        Counted.NO_QUERY,
    ),
    Loss(
        _UNPARSED,
        "nonlinear",
        Statistic.UNPARSED_NONLINEAR,
        "a question in a part of the packet that BPF cannot read",
        Counted.NO,
    ),
    Loss(
        _UNPARSED,
        "parts",
        Source.PARTS_LOST,
        "a packet whose question only the hook at egress can read, and which did not get there",
        Counted.NO,
    ),
    Loss(
        _UNPARSED,
        "segmented",
        Statistic.UNPARSED_SEGMENTED,
        "a datagram in a send of several (UDP_SEGMENT) that is not read",
        Counted.NO,
    ),
    Loss(
        _UNPARSED,
        "busy",
        Statistic.UNPARSED_BUSY,
        "no room for a run of the BPF program at egress, or for the state of a TCP connection",
        Counted.NO,
    ),
    Loss(
        _UNPARSED,
        "more_questions",
        Statistic.UNPARSED_QUESTIONS,
        "questions of a message over multicast DNS that are not read",
        Counted.IN_PART,
    ),
    Loss(
        _UNPARSED,
        "unreadable",
        Statistic.UNPARSED_UNREADABLE,
        "TCP data that BPF cannot read",
        Counted.NO,
    ),
    Loss(
        _UNPARSED,
        "unaligned",
        Statistic.UNPARSED_UNALIGNED,
        "TCP data where the beginning of a message is not known",
        Counted.NO,
    ),
    Loss(
        _UNPARSED,
        "pipelined",
        Statistic.UNPARSED_PIPELINED,
        "a message in a TCP packet or write with so many that only the first ones are read",
        Counted.IN_PART,
    ),
    Loss(_LINEAGE, "full", Source.LINEAGE_FULL, "no room to track who started a process", Counted.YES),
    Loss(
        _LINEAGE,
        "run_missed",
        Source.LINEAGE_MISSED_RUNS,
        "a fork, exit or change of name was missed",
        Counted.YES,
    ),
    Loss(_JOURNAL, "", Source.JOURNAL_DROPPED, "an entry that the journal did not get", Counted.YES),
    Loss(_LOG, "", Source.LOG_DROPPED, "a line of the daemon's own log that nobody read", Counted.YES),
    Loss(_FOLDED, "", Source.SERIES_FOLDED, "a series above the limit, added to (other)", Counted.YES),
    Loss(
        _UNDECIDED,
        "",
        Source.NAMES_UNDECIDED,
        "a name that took the rules too long, so its queries are under (undecided)",
        Counted.YES,
    ),
)

#: Every loss at zero.
NO_LOSSES: dict[Loss, int] = dict.fromkeys(LOSSES, 0)


def _help(metric: str, title: str) -> str:
    reasons: dict[Counted, list[str]] = {}
    for loss in LOSSES:
        if loss.metric == metric and loss.reason:
            reasons.setdefault(loss.counted, []).append(loss.reason)
    if not reasons:
        return f"{title}."
    by_counted = [f"{counted}: {', '.join(names)}" for counted, names in reasons.items()]
    return f"{title}, by reason ({'; '.join(by_counted)})."


#: Each metric of losses with its HELP text.
METRICS = {metric: _help(metric, title) for metric, title in _TITLES.items()}


class LostParts:
    """Compares the packets that were left to the hook at egress with those that it took.

    The hook sees a packet right after it was left to it, or never. A reader may look in between, so a packet counts as
    lost only if it is missing at two looks. The second one is at least ``_ON_ITS_WAY`` seconds later.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: When how many were missing, oldest first. Only the first one is older than ``_ON_ITS_WAY``.
        self._looks: deque[tuple[float, int]] = deque([(-math.inf, 0)])
        self._is_detached = False

    def read(self, statistics: Mapping[Statistic, int]) -> int:
        """Return how many are missing. It is negative if the hook took packets that were not left to it."""
        now = self._clock()
        missing = statistics[Statistic.PARTS_LEFT] - statistics[Statistic.PARTS_TAKEN]
        if self._is_detached:
            return missing
        while len(self._looks) > 1 and self._looks[1][0] <= now - _ON_ITS_WAY:
            self._looks.popleft()
        at, lowest = self._looks[-1]
        if at > now - _ON_ITS_WAY / 4:  # many readers need no more memory
            self._looks[-1] = at, min(lowest, missing)
        else:
            self._looks.append((now, missing))
        return min(number for _, number in self._looks)

    def detach(self) -> None:
        """Take note that the hooks are detached: from now on, no packet is on its way."""
        self._is_detached = True


def read_losses(others: Mapping[Source, int], statistics: Mapping[Statistic, int], parts: LostParts) -> dict[Loss, int]:
    """Return the number of each loss, including zeros. A source that is missing in ``others`` counts as zero.

    The numbers are read one after the other. So a loss that is computed from two of them may be lower than before.
    ``others`` has to be read before ``statistics``: otherwise, a run may be known as skipped, but not yet that its
    packet was taken.
    """
    missing = parts.read(statistics)
    missed = others.get(Source.MISSED_RUNS, 0)
    # The kernel counts each event of a program for which it has no room, the daemon each program that it finds missing.
    programs = min(others.get(Source.IDENTITIES_FULL, 0), statistics[Statistic.IDENTITIES_FULL])
    # A packet that the hook at egress took, but the one at the function did not leave to it: the kernel skipped the run
    # at the function and counted it as missed, although the packet was read.
    others = {
        **others,
        Source.IDENTITIES_FULL: programs,
        Source.PARTS_LOST: max(missing, 0),
        Source.MISSED_RUNS: max(missed + min(missing, 0), 0),
    }
    return {
        loss: statistics[loss.source] if isinstance(loss.source, Statistic) else others.get(loss.source, 0)
        for loss in LOSSES
    }


def describe_losses(losses: Mapping[Loss, int]) -> str:
    """Return all losses above zero in one line of plain words, or ``0 lost``."""
    lost = [f"{number(times, 'time')} {loss.what} ({loss.counted})" for loss, times in losses.items() if times]
    return f"lost: {'; '.join(lost)}" if lost else "0 lost"
