"""The facts of a query as fields of a journal entry."""

from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from made_up import (
    ADDRESS,
    ANCESTRY,
    ANSWERED,
    HOSTILE,
    IDENTITY,
    NXDOMAIN,
    ORPHANED,
    QUERY,
    RULE,
    SILENT,
    TOO_MANY,
    hostile,
    query,
)

from dnsprobe.model import Alert, Ancestry, Container, Identity, Outcome, Process, Query, Rule
from dnsprobe.sinks.journal import ALERT_ID, MESSAGE_ID, RATE_ID, RESULT_ID, fields


def test_an_entry_has_all_fields_in_order() -> None:
    assert fields(QUERY, IDENTITY) == [
        ("MESSAGE", "dig[4242] asked for www.example.test (A, udp) by bash;make;dig"),
        ("MESSAGE_ID", MESSAGE_ID),
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "dnsprobe"),
        ("DNSPROBE_DOMAIN", "example.test"),
        ("DNSPROBE_QNAME", "www.example.test"),
        ("DNSPROBE_QTYPE", "A"),
        ("DNSPROBE_TRANSPORT", "udp"),
        ("DNSPROBE_SERVER", "127.0.0.53"),
        ("DNSPROBE_PORT", "53"),
        ("DNSPROBE_PID", "4242"),
        ("DNSPROBE_COMM", "dig"),
        ("DNSPROBE_EXE", "/usr/bin/dig"),
        ("DNSPROBE_CMDLINE", "dig +short www.example.test"),
        ("DNSPROBE_UID", "1000"),
        ("DNSPROBE_GID", "1001"),
        ("DNSPROBE_LOGINUID", "1000"),
        ("DNSPROBE_USER", "ada"),
        ("DNSPROBE_UNIT", "session-3.scope"),
        ("DNSPROBE_SLICE", "user-1000.slice"),
        ("DNSPROBE_CGROUP", "/user.slice/user-1000.slice/session-3.scope"),
        ("DNSPROBE_NET_NS", "4026531840"),
        ("DNSPROBE_PID_NS", "4026531836"),
        ("DNSPROBE_MNT_NS", "4026531841"),
        ("DNSPROBE_TREE", "bash;make;dig"),
        ("DNSPROBE_TREE_PIDS", "4200;4210;4242"),
        ("DNSPROBE_REPEATS", "0"),
        ("DNSPROBE_ANCESTOR", "4210 make"),
        ("DNSPROBE_ANCESTOR", "4200 bash"),
        ("DNSPROBE_ANCESTOR", "1 systemd"),
    ]


def lineage_fields(ancestry: Ancestry) -> list[tuple[str, str]]:
    return [field for field in fields(query(ancestry=ancestry), IDENTITY) if field[0].startswith("DNSPROBE_LINEAGE")]


def test_an_orphan_has_fields_for_its_starters() -> None:
    expected = [
        ("DNSPROBE_LINEAGE_TREE", "sshd;bash;make;dig"),
        ("DNSPROBE_LINEAGE_TREE_PIDS", "4100;4200;4210;4242"),
        ("DNSPROBE_LINEAGE", "exited 4210 make"),
        ("DNSPROBE_LINEAGE", "exited 4200 bash"),
        ("DNSPROBE_LINEAGE", "4100 sshd"),
        ("DNSPROBE_LINEAGE", "1 systemd"),
    ]
    assert lineage_fields(ORPHANED) == expected
    found = fields(query(ancestry=ORPHANED), IDENTITY)
    assert [value for name, value in found if name == "DNSPROBE_ANCESTOR"] == ["1 systemd"]
    assert dict(found)["DNSPROBE_TREE"] == "dig"
    by_lineage = replace(ORPHANED, by_lineage=True)
    assert lineage_fields(by_lineage) == expected
    assert dict(fields(query(ancestry=by_lineage), IDENTITY))["DNSPROBE_TREE"] == "sshd;bash;make;dig"


def test_unknown_starters_are_marked_as_cut() -> None:
    unknown = replace(ORPHANED, lineage=ORPHANED.chain[:1], lineage_complete=False)
    assert lineage_fields(unknown) == [
        ("DNSPROBE_LINEAGE_TREE", "...;dig"),
        ("DNSPROBE_LINEAGE_TREE_PIDS", "...;4242"),
        ("DNSPROBE_LINEAGE_CUT", "yes"),
    ]


def test_facts_from_procfs_are_named() -> None:
    read = Identity(exe="/usr/bin/dig", cmdline=b"dig", from_procfs=frozenset({"exe", "cmdline"}))
    assert dict(fields(QUERY, read))["DNSPROBE_FROM_PROCFS"] == "cmdline exe"
    assert "DNSPROBE_NET_NS" not in dict(fields(query(net_ns=0), read))


def test_a_container_has_fields_for_what_is_known() -> None:
    found = dict(fields(QUERY, Identity(container=Container("3f4e" * 16, "cri-o", "a-pod"))))
    expected = {"CONTAINER": "3f4e" * 16, "CONTAINER_RUNTIME": "cri-o", "POD": "a-pod"}
    assert {name: found[f"DNSPROBE_{name}"] for name in expected} == expected
    found = dict(fields(QUERY, Identity(container=Container("a\nb", ""))))
    assert found["DNSPROBE_CONTAINER"] == r"a\x0ab"
    assert not found.keys() & {
        *("DNSPROBE_CONTAINER_RUNTIME", "DNSPROBE_CONTAINER_NAME"),
        *("DNSPROBE_POD", "DNSPROBE_POD_NAME", "DNSPROBE_POD_NAMESPACE"),
    }


def test_names_of_containers_are_escaped() -> None:
    found = dict(
        fields(QUERY, Identity(container=Container("3f4e" * 16, "", "uid", "a\nb", "web-\x1b", "de\u202efault")))
    )
    assert found["DNSPROBE_CONTAINER_NAME"] == r"a\x0ab"
    assert found["DNSPROBE_POD_NAME"] == r"web-\x1b"
    assert found["DNSPROBE_POD_NAMESPACE"] == r"de\u202efault"


def test_unknown_facts_have_no_field() -> None:
    known = dict(fields(QUERY, Identity()))
    unknown = ("CLASS", "EXE", "CMDLINE", "USER", "UNIT", "CGROUP", "LOGINUID", "PID_NS", "MNT_NS", "FROM_PROCFS")
    assert not known.keys() & {f"DNSPROBE_{name}" for name in unknown}
    assert known["DNSPROBE_UID"] == "1000"


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"rule": Rule(2, "example.test", "example.test", priority=3)}, "PRIORITY", "3"),
        ({"rule": Rule(2, "example.test", "example.test", priority=0)}, "PRIORITY", "0"),
        ({"rule": Rule(2, ".", ".")}, "DNSPROBE_DOMAIN", "."),
        ({"qname": b"\0"}, "DNSPROBE_QNAME", "."),
        ({"qname": b"\3a.b\1 \0"}, "DNSPROBE_QNAME", r"a\.b.\032"),
        ({"qtype": 65280}, "DNSPROBE_QTYPE", "TYPE65280"),
        ({"qclass": 3}, "DNSPROBE_CLASS", "CH"),
        ({"qclass": 1234}, "DNSPROBE_CLASS", "CLASS1234"),
        ({"transport": "tcp"}, "DNSPROBE_TRANSPORT", "tcp"),
        ({"server": IPv6Address("2001:db8::53"), "port": 5353}, "DNSPROBE_SERVER", "2001:db8::53"),
        ({"server": IPv6Address("2001:db8::53"), "port": 5353}, "DNSPROBE_PORT", "5353"),
        ({"repeats": 12}, "DNSPROBE_REPEATS", "12"),
        ({"uid": 0}, "DNSPROBE_UID", "0"),
        (
            {"repeats": 12},
            "MESSAGE",
            "dig[4242] asked for www.example.test (A, udp) by bash;make;dig, and 12 more like it",
        ),
        (
            {"qtype": 255, "qclass": 255},
            "MESSAGE",
            "dig[4242] asked for www.example.test (ANY ANY, udp) by bash;make;dig",
        ),
        ({"ancestry": Ancestry(ANCESTRY.chain, complete=False)}, "DNSPROBE_ANCESTRY_CUT", "yes"),
        ({"ancestry": Ancestry(ANCESTRY.chain, complete=False)}, "DNSPROBE_TREE", "...;bash;make;dig"),
        ({"ancestry": Ancestry((Process(1, 0, b"systemd"),))}, "DNSPROBE_TREE", "systemd"),
    ],
)
def test_each_value_has_its_form(changes: dict[str, object], name: str, value: str) -> None:
    assert dict(fields(query(**changes), IDENTITY))[name] == value


@pytest.mark.parametrize(
    ("cmdline", "shown"),
    [
        (b"dig", "dig"),
        (b"sh\0-c\0dig a; dig b\0", "sh -c 'dig a; dig b'"),
        (b"a\0\0b\0", "a '' b"),
        (b"nginx: worker process\0\0\0\0", "'nginx: worker process'"),
        (b"a\0it's\0", """a 'it'"'"'s'"""),
        (b"a\0\x1b[31m\n\0", r"a '\x1b[31m\x0a'"),
        (b"a\0\xff\0", r"a '\xff'"),
    ],
)
def test_a_command_line_is_quoted_as_for_a_shell(cmdline: bytes, shown: str) -> None:
    assert dict(fields(QUERY, Identity(cmdline=cmdline)))["DNSPROBE_CMDLINE"] == shown


@pytest.mark.parametrize("raw", HOSTILE)
def test_hostile_values_are_printable_and_add_no_field(raw: bytes) -> None:
    known = fields(*hostile(raw * 40))
    assert [name for name, _ in known if name in {"MESSAGE", "PRIORITY"}] == ["MESSAGE", "PRIORITY"]
    for name, value in known:
        assert name.replace("_", "").isalpha()
        assert value
        assert value.isprintable()
        value.encode()  # no lone surrogates


def test_rule_name_keeps_its_escapes() -> None:
    assert dict(fields(query(rule=Rule(2, r"a\.b", r"a\.b")), IDENTITY))["DNSPROBE_DOMAIN"] == r"a\.b"
    assert dict(fields(query(rule=Rule(2, "a\nb", "x")), IDENTITY))["DNSPROBE_DOMAIN"] == r"a\x0ab"
    assert RULE.priority == 6


ID = 0x0102_0304_0506_0708
OF_RESULTS = ("QUERY_ID", "RCODE", "LATENCY_USEC", "ANSWER", "ANSWER_CUT", "UNANSWERED")


def result_fields(made: Query) -> list[tuple[str, str]]:
    names = {f"DNSPROBE_{name}" for name in OF_RESULTS}
    return [(name, value) for name, value in fields(made, IDENTITY) if name in names]


TOOK = [("DNSPROBE_RCODE", "NXDOMAIN"), ("DNSPROBE_LATENCY_USEC", "250")]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (None, []),
        (
            ANSWERED,
            [
                ("DNSPROBE_RCODE", "NOERROR"),
                ("DNSPROBE_LATENCY_USEC", "12345"),
                ("DNSPROBE_ANSWER", "www.example.test. 60 IN CNAME b.example.test."),
                ("DNSPROBE_ANSWER", "B.example.test. 300 IN A 192.0.2.7"),
            ],
        ),
        (NXDOMAIN, TOOK),
        (replace(NXDOMAIN, whole=False), [*TOOK, ("DNSPROBE_ANSWER_CUT", "yes")]),
        (SILENT, [("DNSPROBE_UNANSWERED", "timeout")]),
    ],
)
def test_an_entry_has_the_result_of_its_query(outcome: Outcome | None, expected: list[tuple[str, str]]) -> None:
    made = query(query_id=ID, outcome=outcome)
    assert result_fields(made) == [("DNSPROBE_QUERY_ID", "0102030405060708"), *expected]


def test_an_entry_without_answers_has_no_field_about_them() -> None:
    assert result_fields(QUERY) == []


def test_a_later_result_is_another_kind_of_entry_with_the_same_fields() -> None:
    first = dict(fields(query(query_id=ID), IDENTITY))
    late = dict(fields(query(query_id=ID, outcome=SILENT, is_late=True), IDENTITY))
    assert late["MESSAGE_ID"] == RESULT_ID
    assert late["MESSAGE"] == f"{first['MESSAGE']}: no answer"
    differing = {name for name in late if late[name] != first.get(name)}
    assert differing == {"MESSAGE", "MESSAGE_ID", "DNSPROBE_UNANSWERED", "DNSPROBE_LATE"}
    assert late["DNSPROBE_LATE"] == "yes"


@pytest.mark.parametrize("is_late", [False, True])
def test_an_alert_is_another_kind_of_entry_with_the_same_fields(is_late: bool) -> None:
    rule = replace(RULE, alert=Alert(3, ("NXDOMAIN",), latency_ns=1000))
    ordinary = query(query_id=ID, rule=rule, outcome=NXDOMAIN, is_late=is_late)
    found = fields(replace(ordinary, alerts=("rcode", "latency")), IDENTITY)
    assert [value for name, value in found if name == "DNSPROBE_ALERT"] == ["rcode", "latency"]
    others = [field for field in found if field[0] != "DNSPROBE_ALERT"]
    expected = dict(fields(ordinary, IDENTITY))
    changed = {
        "MESSAGE": f"{expected['MESSAGE']} (alert: rcode, latency)",
        "MESSAGE_ID": ALERT_ID,
        "PRIORITY": "3",
    }
    assert others == [(name, changed.get(name, value)) for name, value in fields(ordinary, IDENTITY)]


@pytest.mark.parametrize("raw", HOSTILE)
def test_records_that_are_not_printable_are_escaped(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    outcome = replace(ANSWERED, records=(replace(ADDRESS, name=text, rdtype=text, data=text),))
    assert all(value.isprintable() for _, value in fields(query(outcome=outcome), IDENTITY))


def test_a_process_tree_above_a_rate_has_an_entry_of_its_own() -> None:
    assert fields(TOO_MANY, Identity()) == [
        (
            "MESSAGE",
            "bash;dig sent 131 queries of example.test within 60 s, more than 100 (alert: rate)",
        ),
        ("MESSAGE_ID", RATE_ID),
        ("PRIORITY", "4"),
        ("SYSLOG_IDENTIFIER", "dnsprobe"),
        ("DNSPROBE_DOMAIN", "example.test"),
        ("DNSPROBE_ALERT", "rate"),
        ("DNSPROBE_TREE", "bash;dig"),
        ("DNSPROBE_QUERIES", "131"),
        ("DNSPROBE_WINDOW_USEC", "60000000"),
    ]
    urgent = replace(TOO_MANY, rule=replace(TOO_MANY.rule, priority=2))
    assert dict(fields(urgent, Identity()))["PRIORITY"] == "2"


@pytest.mark.parametrize("raw", HOSTILE)
def test_a_hostile_process_tree_is_printable(raw: bytes) -> None:
    tree = Ancestry((Process(4242, 9, raw[:15]), Process(4210, 8, raw[:15]))).tree
    for name, value in fields(replace(TOO_MANY, tree=tree), Identity()):
        assert name.replace("_", "").isalpha()
        assert value.isprintable()
        value.encode()
