"""Queries as text: the line of a log, the tree on a terminal, JSON."""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

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
    SILENT,
    TOO_MANY,
    hostile,
    query,
)

from dnsprobe.model import Ancestry, Container, Identity, Outcome, Process, Query, Rule
from dnsprobe.sinks.console import ConsoleSink, json_line, line, tree, tree_alert
from dnsprobe.sinks.wording import wall_offset_ns
from dnsprobe.terminal import Look, cells

#: 2026-01-02 03:04:05 UTC, less the query's own time.
OFFSET = 1_767_323_045_000_000_000 - 12_345_678_901 + 678_901_234

ESC = "\x1b"


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_line_has_all_facts() -> None:
    assert line(QUERY, IDENTITY) == (
        "dig[4242] asked for www.example.test (A, udp) by bash;make;dig, server 127.0.0.53#53, user ada,"
        " unit session-3.scope, exe /usr/bin/dig, command dig +short www.example.test"
    )
    assert line(QUERY, Identity()) == (
        "dig[4242] asked for www.example.test (A, udp) by bash;make;dig, server 127.0.0.53#53, uid 1000"
    )


def test_a_tree_has_headline_ancestors_and_command() -> None:
    assert tree(QUERY, IDENTITY, OFFSET).split("\n") == [
        "03:04:05.678 www.example.test A udp 127.0.0.53#53 (example.test)",
        "systemd[1]",
        "└─ bash[4200]",
        "   └─ make[4210]",
        "      └─ dig[4242] ada dig +short www.example.test",
    ]


def test_tree_in_ascii() -> None:
    chain = (Process(4242, 9, "dég".encode()), Process(1, 1, b"systemd"))
    changed = query(ancestry=Ancestry(chain, complete=False), server=IPv6Address("::1"), repeats=2)
    assert tree(changed, Identity(), OFFSET, Look(unicode=False)).split("\n") == [
        "03:04:05.678 www.example.test A udp ::1#53 (example.test) and 2 more",
        "...",
        "`- systemd[1]",
        r"   `- d\xe9g[4242] uid 1000",
    ]


def test_another_class_than_in_stands_before_the_type() -> None:
    version = query(qtype=16, qclass=3)
    assert tree(version, IDENTITY, OFFSET).split("\n")[0] == (
        "03:04:05.678 www.example.test CH TXT udp 127.0.0.53#53 (example.test)"
    )
    assert line(version, IDENTITY).startswith("dig[4242] asked for www.example.test (CH TXT, udp) by ")
    assert json.loads(json_line(version, IDENTITY, OFFSET))["qclass"] == "CH"


def test_the_rule_for_all_names_is_not_shown() -> None:
    text = tree(query(rule=Rule(1, ".", ".")), IDENTITY, OFFSET)
    assert text.split("\n")[0] == "03:04:05.678 www.example.test A udp 127.0.0.53#53"


def test_a_tree_of_parents_names_the_starters() -> None:
    orphan = query(ancestry=ORPHANED)
    assert tree(orphan, Identity(), OFFSET).split("\n")[1:] == [
        "systemd[1]",
        "└─ dig[4242] uid 1000",
        "started by make[4210] (exited), bash[4200] (exited), sshd[4100], systemd[1]",
    ]
    assert line(orphan, Identity()).endswith(
        " by dig, server 127.0.0.53#53, uid 1000,"
        " started by make[4210] (exited), bash[4200] (exited), sshd[4100], systemd[1]"
    )


def test_a_tree_of_starters_names_the_parents() -> None:
    orphan = query(ancestry=replace(ORPHANED, by_lineage=True))
    assert tree(orphan, Identity(), OFFSET).split("\n")[1:] == [
        "systemd[1]",
        "└─ sshd[4100]",
        "   └─ bash[4200] (exited)",
        "      └─ make[4210] (exited)",
        "         └─ dig[4242] uid 1000",
        "now below systemd[1]",
    ]


def test_tree_of_an_incomplete_lineage() -> None:
    unknown = replace(ORPHANED, lineage=ORPHANED.lineage[:2], lineage_complete=False)
    assert tree(query(ancestry=unknown), Identity(), OFFSET).split("\n")[3:] == ["started by make[4210] (exited), …"]
    nothing = query(ancestry=replace(unknown, lineage=unknown.chain[:1], by_lineage=True))
    assert tree(nothing, Identity(), OFFSET, Look(unicode=False)).split("\n")[1:] == [
        "...",
        "`- dig[4242] uid 1000",
        "now below systemd[1]",
    ]


def test_pid_1_alone_is_a_tree() -> None:
    text = tree(query(ancestry=Ancestry((Process(1, 0, b"systemd"),))), Identity(), OFFSET)
    assert text.split("\n")[1:] == ["systemd[1] uid 1000"]


@pytest.mark.parametrize(
    ("width", "last"),
    [
        (None, "      └─ dig[4242] ada dig +short www.example.test"),
        (80, "      └─ dig[4242] ada dig +short www.example.test"),
        (50, "      └─ dig[4242] ada dig +short www.example.test"),
        (49, "      └─ dig[4242] ada dig +short www.example.te…"),
        (10, "  └dig[4242] ada dig +short www.exam…"),
    ],
)
def test_the_command_line_is_cut_to_the_terminal(width: int | None, last: str) -> None:
    assert tree(QUERY, IDENTITY, OFFSET, Look(width=width)).split("\n")[-1] == last


def test_a_deep_tree_fits() -> None:
    chain = tuple(Process(pid, 1, b"process") for pid in range(39, 0, -1))
    lines = tree(query(ancestry=Ancestry(chain)), IDENTITY, OFFSET, Look(width=80)).split("\n")
    assert all(cells(line) <= 80 for line in lines)
    assert lines[-1] == " " * 37 + "└process[39] ada dig +short www.example.te…"
    assert tree(query(ancestry=Ancestry(chain)), IDENTITY, OFFSET).split("\n")[-1].startswith("   " * 37 + "└─ process")


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("argument", ["漢字" * 40, "e\u0301\u0300" * 40, "한글" * 40, "\u202e" * 40])
def test_wide_characters_are_cut_where_the_terminal_ends(argument: str, unicode: bool) -> None:
    identity = replace(IDENTITY, cmdline=argument.encode(), user="漢")
    last = tree(QUERY, identity, OFFSET, Look(width=60, unicode=unicode)).split("\n")[-1]
    assert 57 <= cells(last) <= 60


def test_colour_does_not_change_the_text() -> None:
    coloured = tree(QUERY, IDENTITY, OFFSET, Look(colour=True, width=49))
    assert ESC in coloured
    plain = coloured
    for code in ("0", "1", "2", "36", "1;32"):
        plain = plain.replace(f"{ESC}[{code}m", "")
    assert plain == tree(QUERY, IDENTITY, OFFSET, Look(width=49))
    assert coloured.count(f"{ESC}[0m") == coloured.count(ESC) / 2


@pytest.mark.parametrize("raw", HOSTILE)
def test_hostile_text_is_printable_in_line_and_tree(raw: bytes) -> None:
    for shown in (line(*hostile(raw)), *tree(*hostile(raw), OFFSET).split("\n")):
        assert shown.isprintable()
        shown.encode()
    assert tree(*hostile(raw), OFFSET).count("\n") == 5
    ascii_only = tree(*hostile(raw), OFFSET, Look(unicode=False))
    assert ascii_only.isascii()
    assert ascii_only.count("\n") == 5


def test_json_has_all_facts() -> None:
    text = json_line(QUERY, IDENTITY, OFFSET)
    assert "\n" not in text
    assert json.loads(text) == {
        "time": "2026-01-02T03:04:05.678901+00:00",
        "domain": "example.test",
        "qname": "www.example.test",
        "qtype": "A",
        "qclass": "IN",
        "transport": "udp",
        "server": "127.0.0.53",
        "port": 53,
        **dict.fromkeys(["query_id", "rcode", "latency_usec", "answer", "answer_cut", "unanswered"]),
        "alert": [],
        "late": False,
        "pid": 4242,
        "comm": "dig",
        "start_ns": 9_000_000_000,
        "exe": "/usr/bin/dig",
        "cmdline": ["dig", "+short", "www.example.test"],
        "uid": 1000,
        "gid": 1001,
        "loginuid": 1000,
        "user": "ada",
        "unit": "session-3.scope",
        "slice": "user-1000.slice",
        "cgroup": "/user.slice/user-1000.slice/session-3.scope",
        "container": None,
        "container_runtime": None,
        "container_name": None,
        "pod": None,
        "pod_name": None,
        "pod_namespace": None,
        "net_ns": 4026531840,
        "pid_ns": 4026531836,
        "mnt_ns": 4026531841,
        "user_ns": None,
        "from_procfs": [],
        "tree": "bash;make;dig",
        "unread": None,
        "repeats": 0,
        "ancestors": [
            {"pid": 4210, "comm": "make", "start_ns": 8_000_000_000},
            {"pid": 4200, "comm": "bash", "start_ns": 7_000_000_000},
            {"pid": 1, "comm": "systemd", "start_ns": 10_000_000},
        ],
        "complete": True,
        "lineage": [],
        "lineage_complete": True,
    }


def test_json_has_the_starters_of_an_orphan() -> None:
    found = json.loads(json_line(query(ancestry=ORPHANED), IDENTITY, OFFSET))
    assert [starter["pid"] for starter in found["lineage"]] == [4210, 4200, 4100, 1]
    assert found["lineage"][0] == {"pid": 4210, "comm": "make", "start_ns": 8_000_000_000, "exited": True}
    assert found["lineage"][2]["exited"] is False
    assert [parent["pid"] for parent in found["ancestors"]] == [1]
    assert (found["tree"], found["lineage_complete"]) == ("dig", True)
    unknown = replace(ORPHANED, lineage=ORPHANED.chain[:1], lineage_complete=False)
    found = json.loads(json_line(query(ancestry=unknown), IDENTITY, OFFSET))
    assert (found["lineage"], found["lineage_complete"]) == ([], False)


def test_a_container_is_in_line_and_json() -> None:
    inside = replace(IDENTITY, container=Container("3f4e" * 16, "docker", ""))
    found = json.loads(json_line(QUERY, inside, OFFSET))
    assert (found["container"], found["container_runtime"], found["pod"]) == ("3f4e" * 16, "docker", None)
    assert "unit session-3.scope, container 3f4e3f4e3f4e," in line(QUERY, inside)


def test_names_of_containers_are_escaped() -> None:
    inside = replace(IDENTITY, container=Container("3f4e" * 16, "", "uid", "a\nb", "web-\x1b", "\u202edefault"))
    found = json.loads(json_line(QUERY, inside, OFFSET))
    assert (found["container_name"], found["pod_name"], found["pod_namespace"]) == (
        r"a\x0ab",
        r"web-\x1b",
        r"\u202edefault",
    )
    assert r"container 3f4e3f4e3f4e (a\x0ab)," in line(QUERY, inside)
    assert "container web," in line(QUERY, replace(IDENTITY, container=Container("web", "lxc", name="web")))


def test_json_time_has_microseconds_on_a_whole_second() -> None:
    found = json.loads(json_line(query(time_ns=0), IDENTITY, 1_767_323_045_000_000_000))
    assert found["time"] == "2026-01-02T03:04:05.000000+00:00"


def test_unknown_facts_are_null_in_json() -> None:
    found = json.loads(json_line(query(ancestry=Ancestry(ANCESTRY.chain, complete=False)), Identity(), OFFSET))
    assert [found[key] for key in ("exe", "cmdline", "user", "unit", "cgroup")] == [None] * 5
    assert found["complete"] is False


@pytest.mark.parametrize("raw", HOSTILE)
def test_hostile_text_is_printable_in_json(raw: bytes) -> None:
    text = json_line(*hostile(raw), OFFSET)
    assert text.isascii()
    assert text.isprintable()

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for part in value.values():
                yield from texts(part)
        elif isinstance(value, list):
            for part in value:
                yield from texts(part)

    assert all(found.isprintable() for found in texts(json.loads(text)))


def test_the_offset_leads_from_the_monotonic_to_the_wall_clock() -> None:
    before = time.time_ns()
    shown = time.monotonic_ns() + wall_offset_ns()
    # The clocks are read one after the other, and the wall clock may be set in between, so the limit is generous.
    assert abs(shown - before) < 60_000_000_000


def test_a_sink_writes_each_query_as_a_line() -> None:
    reader, writer = os.pipe()
    sink = ConsoleSink(10, writer)
    sink.put(QUERY, IDENTITY)
    sink.put(*hostile(b"\xff\n"))
    assert sink.close(60.0)
    os.close(writer)
    with open(reader, encoding="utf-8") as lines:
        assert lines.read().split("\n") == [line(QUERY, IDENTITY), line(*hostile(b"\xff\n")), ""]
    assert (sink.entries, sink.dropped) == (2, 0)


def test_a_sink_escapes_what_its_encoding_lacks() -> None:
    reader, writer = os.pipe()
    sink = ConsoleSink(10, writer, render=lambda _query, _identity: "é└", encoding="ascii")
    sink.put(QUERY, IDENTITY)
    assert sink.close(60.0)
    os.close(writer)
    with open(reader, "rb") as lines:
        assert lines.read() == b"\\xe9\\u2514\n"


def test_a_reader_that_does_not_read_blocks_nobody() -> None:
    reader, writer = os.pipe()
    sink = ConsoleSink(2, writer, render=lambda _query, _identity: "x" * 100_000)
    dropped = 0
    while dropped < 3:  # the pipe takes 64 KiB, then the queue fills
        dropped += not sink.put(QUERY, IDENTITY)
    assert sink.close(0.01) is False
    os.close(reader)  # the write fails now, and the thread ends
    assert sink.close(60.0) is True
    assert sink.dropped >= 4
    os.close(writer)


def test_closed_reader_is_an_error_that_is_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sink = ConsoleSink(2, writer)
    sink.put(QUERY, IDENTITY)
    assert sink.close(60.0)
    assert (sink.entries, sink.dropped) == (0, 1)
    os.close(writer)


def test_a_line_of_which_only_a_part_was_written_is_not_continued() -> None:
    """A disk that gets full takes a part of a line, as a pipe does that must not wait."""
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    sink = ConsoleSink(10, writer, render=lambda made, _identity: "x" * made.repeats if isinstance(made, Query) else "")
    sink.put(query(repeats=size + 1), IDENTITY)
    until = time.monotonic() + 60.0
    while not sink.dropped:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert os.read(reader, 2 * size) == b"x" * size
    for repeats in (3, 2):
        sink.put(query(repeats=repeats), IDENTITY)
    assert sink.close(60.0)
    assert os.read(reader, size) == b"\nxxx\nxx\n"
    assert (sink.entries, sink.dropped) == (2, 1)
    os.close(reader)
    os.close(writer)


def test_a_full_disk_is_an_error_that_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with open("/dev/full", "wb") as full:
        sink = ConsoleSink(10, full.fileno())
        for _ in range(3):
            sink.put(QUERY, IDENTITY)
        assert sink.close(60.0)
    assert (sink.entries, sink.dropped) == (0, 3)
    assert caplog.text.count("entries are being lost: OSError: [Errno 28] No space left on device") == 1


ALL_RESULTS = (
    (replace(QUERY, outcome=ANSWERED), "→ 192.0.2.7 in 12 ms"),
    (
        replace(QUERY, outcome=replace(ANSWERED, records=(ADDRESS, ADDRESS), whole=False)),
        "→ 192.0.2.7, 192.0.2.7, … in 12 ms",
    ),
    (replace(QUERY, outcome=NXDOMAIN), "NXDOMAIN in 0.25 ms"),
    (replace(QUERY, outcome=replace(NXDOMAIN, latency_ns=1_250_000_000)), "NXDOMAIN in 1.2 s"),
    (replace(QUERY, outcome=replace(NXDOMAIN, latency_ns=999_600_000)), "NXDOMAIN in 1.0 s"),
    (replace(QUERY, outcome=replace(NXDOMAIN, latency_ns=0)), "NXDOMAIN in 0 ms"),
    (replace(QUERY, outcome=SILENT), "no answer"),
    (replace(QUERY, outcome=SILENT, alerts=("unanswered",)), "no answer (alert: unanswered)"),
    (replace(QUERY, outcome=ANSWERED, alerts=("latency",)), "→ 192.0.2.7 in 12 ms (alert: latency)"),
    (replace(QUERY, outcome=Outcome(reason="unreachable")), "refused by ICMP"),
    (replace(QUERY, outcome=Outcome(reason="closed")), "no answer before the socket was closed"),
    (replace(QUERY, outcome=Outcome(reason="superseded")), "sent again before an answer came"),
)


@pytest.mark.parametrize(("made", "words"), ALL_RESULTS)
def test_a_result_is_below_the_headline(made: Query, words: str) -> None:
    without = tree(QUERY, IDENTITY, OFFSET).splitlines()
    assert tree(made, IDENTITY, OFFSET).splitlines() == [without[0], words, *without[1:]]


@pytest.mark.parametrize(("made", "words"), ALL_RESULTS)
def test_a_later_result_has_no_tree(made: Query, words: str) -> None:
    headline = tree(QUERY, IDENTITY, OFFSET).splitlines()[0]
    assert tree(replace(made, is_late=True), IDENTITY, OFFSET).splitlines() == [f"{headline} by dig[4242]", words]


@pytest.mark.parametrize("raw", HOSTILE)
@pytest.mark.parametrize("width", [80, 20])
@pytest.mark.parametrize("alerts", [(), ("latency",)])
def test_records_fit_into_a_line_of_a_terminal(raw: bytes, width: int, alerts: tuple[str, ...]) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    records = (replace(ADDRESS, data=text * 30), *[ADDRESS] * 20)
    made = replace(QUERY, outcome=replace(ANSWERED, records=records), alerts=alerts)
    mark = " (alert: latency)" if alerts else ""
    for look in (Look(width=width), Look(width=width, unicode=False), Look(width=width, colour=True)):
        shown = re.sub("\x1b\\[[0-9;]*m", "", tree(made, IDENTITY, OFFSET, look)).splitlines()[1]
        assert shown.isprintable()
        assert cells(shown) <= max(width, 32 + len(mark))
        assert shown.endswith(f" in 12 ms{mark}")
        assert look.unicode or shown.isascii()


def test_an_alert_is_red_and_has_its_reasons_in_json() -> None:
    made = replace(QUERY, outcome=NXDOMAIN, alerts=("rcode", "latency"))
    assert "\x1b[1;31m (alert: rcode, latency)\x1b[0m\n" in tree(made, IDENTITY, OFFSET, Look(colour=True))
    assert json.loads(json_line(made, IDENTITY, OFFSET))["alert"] == ["rcode", "latency"]


def test_a_process_tree_above_a_rate_is_one_line() -> None:
    words = "bash;dig sent 131 queries of example.test within 60 s, more than 100 (alert: rate)"
    assert line(TOO_MANY, IDENTITY) == words
    headline = tree_alert(TOO_MANY, OFFSET, Look())
    assert headline.split(" ", 1)[1] == words
    assert headline.split(" ")[0] == tree(QUERY, IDENTITY, OFFSET).split(" ")[0]
    assert tree_alert(TOO_MANY, OFFSET, Look(colour=True)).endswith(f"\x1b[1;31m{words}\x1b[0m")
    hostile = replace(TOO_MANY, tree="\u65e5;dig")
    assert tree_alert(hostile, OFFSET, Look(unicode=False)).isascii()


def test_a_process_tree_above_a_rate_has_all_keys_in_json() -> None:
    found = json.loads(json_line(TOO_MANY, IDENTITY, OFFSET))
    of_query = json.loads(json_line(QUERY, IDENTITY, OFFSET))
    assert found.keys() == of_query.keys() | {"queries", "window_usec"}
    assert {key: value for key, value in found.items() if value is not None} == {
        "time": of_query["time"],
        "domain": "example.test",
        "alert": ["rate"],
        "tree": "bash;dig",
        "queries": 131,
        "window_usec": 60_000_000,
    }


def test_an_answer_in_json_is_a_list_of_records() -> None:
    found = json.loads(json_line(replace(QUERY, outcome=ANSWERED, query_id=1 << 63), IDENTITY, OFFSET))
    assert (found["query_id"], found["rcode"], found["latency_usec"]) == ("8000000000000000", "NOERROR", 12345)
    assert found["answer"] == [
        {"name": "www.example.test.", "ttl": 60, "type": "CNAME", "data": "b.example.test."},
        {"name": "B.example.test.", "ttl": 300, "type": "A", "data": "192.0.2.7"},
    ]
    assert (found["answer_cut"], found["unanswered"], found["late"]) == (False, None, False)
