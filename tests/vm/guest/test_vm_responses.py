"""What became of queries: the sums of the metrics are those of what was sent, at the hooks that see each packet."""

from __future__ import annotations

import json
import subprocess

from installed import HERE, PORTS, Service, until

#: Queries that have an answer with a record, by what the asker calls them.
ANSWERED = ("noerror", "wild", "again", "twice", "parts", "options", "together")
ANSWERED_STREAMS = ("stream", "pieces", "large", "pipelined")


def test_each_query_has_one_result(service: Service) -> None:
    service.restart(
        "domains: [answers.test, 'noerror*.wild.test']\n"
        f"probe: {{hook: cgroup_skb, tcp_hook: cgroup_skb, {PORTS}}}\nanswers: {{timeout: 20s, queries: 4096}}"
    )
    command = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]
    command += ["/usr/bin/python3", str(HERE / "asker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asker:
        assert asker.stdin is not None
        assert asker.stdout is not None
        sent: dict[str, int] = json.loads(asker.stdout.readline())
        until(lambda: not sum(service.by("domain", "dnsprobe_queries_waiting").values()), "the timeout")
        asker.stdin.write(b"\n\n")
        asker.stdin.close()
    assert sum(service.by("domain").values()) == sum(sent.values())
    # A part of the answers in one segment is not read.
    untracked = sum(service.by("domain", "dnsprobe_queries_untracked_total").values())
    assert 0 < untracked - sent["raw"] < sent["crowd"]
    assert service.by("rcode", "dnsprobe_responses_total") == {
        "NOERROR": sum(sent[kind] for kind in (*ANSWERED, *ANSWERED_STREAMS, "crowd", "raw")) - untracked,
        **{kind.upper(): sent[kind] for kind in ("formerr", "nodata", "nxdomain", "servfail", "refused")},
    }
    assert service.by("reason", "dnsprobe_unanswered_total") == {
        reason: sent[reason] for reason in ("timeout", "superseded", "closed", "unreachable")
    }
