"""The messages to a watched port that are not standard queries: where each kind is counted, and what it is.

They are no losses: such a message asks for no name, or in a way that servers refuse. ``/metrics`` has their numbers,
and a test compares docs/metrics.md with :data:`OTHER_MESSAGES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dnsprobe.kernel.abi import Statistic
from dnsprobe.kernel.losses import LOSSES


@dataclass(frozen=True, slots=True)
class OtherMessage:
    """One kind of message: the label ``reason``, the statistic of the BPF programs, and the words of the documents."""

    reason: str
    statistic: Statistic
    what: str


OTHER_MESSAGES = (
    OtherMessage("notify", Statistic.OTHER_NOTIFY, "NOTIFY (RFC 1996): a zone has changed"),
    OtherMessage("update", Statistic.OTHER_UPDATE, "UPDATE (RFC 2136): changes a zone"),
    OtherMessage("dso", Statistic.OTHER_DSO, "a message of DNS Stateful Operations (RFC 8490)"),
    OtherMessage("opcode", Statistic.OTHER_OPCODE, "any other OPCODE, such as STATUS"),
    OtherMessage("no_question", Statistic.OTHER_NO_QUESTION, "a query without a question"),
    OtherMessage("response", Statistic.OTHER_RESPONSE, "a response, such as each answer of multicast DNS"),
    OtherMessage("questions", Statistic.OTHER_QUESTIONS, "a query with several questions, except over multicast DNS"),
)


def read_other_messages(statistics: Mapping[Statistic, int]) -> dict[str, int]:
    """Return the number of each kind of message by its reason, including zeros."""
    return {kind.reason: statistics[kind.statistic] for kind in OTHER_MESSAGES}


#: Why a message is not read as a query, by the statistic. The kernel side counts each such message by its process, with
#: the statistic in place of the type. It has a counter of its own for each type that has a name, so each of these
#: numbers must be one.
UNREAD_REASONS: dict[int, str] = {
    **{kind.statistic: kind.reason for kind in OTHER_MESSAGES},
    **{
        loss.source: loss.reason
        for loss in LOSSES
        if isinstance(loss.source, Statistic) and loss.metric == "dnsprobe_packets_unparsed_total"
    },
}


def unread_reason(statistic: int) -> str:
    """Return the reason why a message could not be read as a query, by the number of its statistic."""
    return UNREAD_REASONS.get(statistic, str(statistic))
