"""From the kernel's events to queries, each with the identity of its process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

from dnsprobe.kernel import abi
from dnsprobe.kernel.other_messages import unread_reason
from dnsprobe.model import Ancestry, Identity, Query, Rule
from dnsprobe.pipeline.held_events import HeldEvents
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
from dnsprobe.pipeline.turns import Question
from dnsprobe.process.container_names import ContainerNames


class Resolver:
    """Turns events into queries. ``user_name`` returns the name of a user id, None if it has none."""

    def __init__(
        self,
        rules: RulesInForce,
        decisions: NameDecisions,
        processes: KnownProcesses,
        container_names: ContainerNames,
        user_name: Callable[[int], str | None],
    ) -> None:
        self._rules, self._decisions, self._processes = rules, decisions, processes
        self._container_names, self._user_name = container_names, user_name
        self._held = HeldEvents()

    def queries(self, events: Sequence[abi.Event]) -> Iterator[tuple[Query, Identity]]:
        """Yield the query of each event that a rule matches, with the identity of its process.

        An event whose name is not decided yet is held. Its query comes in a later call, which may have no events.
        """
        matched = [*self._matched(events), *self._held.take(self._decisions.take_newly_decided())]
        identified = self._processes.identify([event.chain for event, _ in matched])
        for (event, rule), (ancestry, identity) in zip(matched, identified, strict=True):
            yield _query(event, rule, ancestry), self._completed(identity, event.uid)

    def _matched(self, events: Sequence[abi.Event]) -> Iterator[tuple[abi.Event, Rule]]:
        """Yield the events that a rule matches for certain. Hold the others, and ask for their names."""
        questions = []
        for event in events:
            key = (event.name_hash, event.generation)
            if event.kind != abi.Kind.UNDECIDED:
                rule = self._rules.by_id.get(event.rule)
            elif self._decisions.is_known(key):
                rule = self._decisions.rule(key)
            else:
                self._held.add(event)
                questions.append((Question(event.name_hash, event.generation, event.name), event.chain.share))
                continue
            if rule is not None:
                yield event, rule
        self._decisions.ask(questions)

    @property
    def held(self) -> int:
        """How many events wait until their name is decided."""
        return len(self._held)

    @property
    def refused(self) -> int:
        """How many events had no place to wait."""
        return self._held.refused

    def drop_held(self) -> None:
        """Drop the events that wait."""
        self._held.drop()

    def _completed(self, identity: Identity, uid: int) -> Identity:
        return replace(
            identity,
            # A process can change its user id, so the user is looked up for each query.
            user=self._user_name(uid),
            # A runtime may write a container's names after the container's first query.
            container=self._container_names.container(identity),
        )


def _query(event: abi.Event, rule: Rule, ancestry: Ancestry) -> Query:
    return Query(
        time_ns=event.time_ns,
        rule=rule,
        qname=event.name,
        qtype=event.qtype,
        qclass=event.qclass,
        transport=abi.TRANSPORTS[event.transport],
        server=ip_address(event.server),
        port=event.port,
        uid=event.uid,
        gid=event.gid,
        net_ns=event.net_ns,
        ancestry=ancestry,
        repeats=event.repeats,
        unread=unread_reason(event.qtype) if event.kind == abi.Kind.UNREAD else "",
        share=event.chain.share,
        query_id=event.query_id,
    )
