"""Which server is asked: the label ``server``, at each kind of hook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from installed import HERE, Service, run

#: Hooks for UDP and TCP, and how to attach them.
HOOKS = (
    ("cgroup_skb", "cgroup_skb", "auto"),
    ("ip_send_skb", "tcp_sendmsg", "auto"),
    ("ip_send_skb", "tcp_sendmsg", "kprobe"),
)
#: Debian's kernels keep kprobes from whoever lacks CAP_SYS_ADMIN above 2.
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
#: How often the queries are sent at most, until no run was skipped.
ATTEMPTS = 5


@pytest.fixture
def _kprobes_allowed() -> Iterator[None]:
    before = PARANOID.read_text("ascii")
    PARANOID.write_text("2")
    yield
    PARANOID.write_text(before)


def counted(service: Service) -> dict[str, Counter[tuple[str, str]]]:
    """Return the queries, connections and messages by transport and server."""
    found = {}
    for metric in ("queries", "encrypted_connections", "messages_unread"):
        found[metric] = Counter[tuple[str, str]]()
        for labels, value in service.samples(f"dnsprobe_{metric}_total"):
            found[metric][labels["transport"], labels["server"]] += int(value)
    return found


@pytest.mark.usefixtures("_kprobes_allowed")
@pytest.mark.parametrize(("hook", "tcp_hook", "attach"), HOOKS)
@pytest.mark.parametrize("answers", ["off", "{timeout: 2s}"])
def test_each_query_is_counted_for_its_server(
    service: Service, hook: str, tcp_hook: str, attach: str, answers: str
) -> None:
    service.restart(
        "domains: [www.server.test, 'a-*.server.test']\n"
        f"probe: {{hook: {hook}, tcp_hook: {tcp_hook}, attach: {attach}, "
        f"ports: [53, {servers.OTHER_PORT}], dot_ports: [853]}}\n"
        f"metrics: {{labels: [unit, server]}}\nanswers: {answers}"
    )
    right = {
        "queries": servers.queries(),
        "encrypted_connections": servers.connections(),
        "messages_unread": servers.unread(),
    }
    for _ in range(ATTEMPTS):
        before, missed = counted(service), service.missed_runs
        run("unshare", "--net", "/usr/bin/python3", HERE / "servers.py", "server.test")
        found = {metric: numbers - before[metric] for metric, numbers in counted(service).items()}
        if found == right or service.missed_runs == missed:
            break
    assert found == right
