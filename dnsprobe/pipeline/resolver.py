"""From the kernel's events to queries, each with the identity of its process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

from dnsprobe.kernel import abi
from dnsprobe.model import Ancestry, Identity, Query, Rule
from dnsprobe.pipeline.known_processes import KnownProcesses
from dnsprobe.pipeline.rules import NameDecisions, RulesInForce
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

    def queries(self, events: Sequence[abi.Event]) -> Iterator[tuple[Query, Identity]]:
        """Yield the query of each event that a rule matches, with the identity of its process."""
        self._decisions.decide([(event.name_hash, event.name) for event in events if event.kind == abi.Kind.UNDECIDED])
        matched = [(event, rule) for event in events if (rule := self._rule(event)) is not None]
        identified = self._processes.identify([event.chain for event, _ in matched])
        for (event, rule), (ancestry, identity) in zip(matched, identified, strict=True):
            yield _query(event, rule, ancestry), self._completed(identity, event.uid)

    def _rule(self, event: abi.Event) -> Rule | None:
        if event.kind == abi.Kind.UNDECIDED:
            return self._rules.match(event.name, event.generation)
        return self._rules.by_id.get(event.rule)

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
        share=event.chain.share,
    )
