"""The tree of counts: what is chosen, how it adds up, and what it looks like in any terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from made_up import HOSTILE

from dnsprobe.errors import UserError
from dnsprobe.model import Ancestry, Process, Series
from dnsprobe.sinks.metrics import Snapshot, build_registry
from dnsprobe.terminal import Look, cells
from dnsprobe.treeview.aggregate import Choice, Tally, set_rates, tally, totals
from dnsprobe.treeview.client import Scrape, parse
from dnsprobe.treeview.render import document, folded, forest

URL = "http://127.0.0.1:10059/metrics"

COUNTS = {
    Series("example.test", "A", "udp", "dig", "nightly;make;sh;dig", "nightly.service", ""): 30,
    Series("example.test", "AAAA", "tcp", "dig", "nightly;make;sh;dig", "nightly.service", ""): 12,
    Series("example.test", "A", "udp", "curl", "nightly;make;curl", "nightly.service", ""): 7,
    Series("*.other.test", "A", "udp", "curl", "nightly;make;curl", "nightly.service", ""): 1,
    Series("other.test", "A", "udp", "make", "nightly;make", "cron.service", "3f4e3f4e3f4e"): 2,
    Series("other.test", "A", "udp", "app", "app", "", ""): 48,
    Series("other.test", "A", "udp", "(other)", "(other)", "", ""): 900,
    Series("", "", "dot", "browser", "sway;browser", "user@1000.service", ""): 13,
}


def scrape(counts: dict[Series, int] = COUNTS, labels: Sequence[str] = ("unit", "container")) -> Scrape:
    """Return what a daemon with these counts serves, as it is read."""
    from prometheus_client.exposition import generate_latest  # noqa: PLC0415

    return parse(generate_latest(build_registry(lambda: Snapshot(counts=counts), labels)).decode(), URL)


def chosen(choice: Choice = Choice(), counts: dict[Series, int] = COUNTS) -> Tally:  # noqa: B008 - it is frozen
    return tally(scrape(counts), choice)


def lines(seen: Tally, height: int | None = None, **look: Any) -> list[str]:
    return forest(seen, Look(**look), "dnsprobe 1 at host:1", height)


def test_tree() -> None:
    assert lines(chosen()) == [
        "1,000 queries by 4 process trees, dnsprobe 1 at host:1",
        "",
        "total  own   share              process tree",
        "   52    2    5.2%  ▌           nightly;make",
        "   42   42    4.2%  ▍           ├─ sh;dig",
        "    8    8    0.8%  ▏           └─ curl",
        "   48   48    4.8%  ▍           app",
        "  900  900   90.0%  █████████   (other)",
        "",
        "connections of DNS over TLS, whose queries cannot be read",
        "   13   13  100.0%  ██████████  sway;browser",
        "",
        "(other): trees that are not told apart: above the limit on series (metrics.max_series), or no room in the"
        " kernel",
    ]


def test_tree_in_ascii() -> None:
    counts = {
        Series(".", "A", "udp", "é", "a;b;é", "", ""): 995,
        Series(".", "A", "udp", "c", "a;c;d", "", ""): 4,
        Series(".", "A", "udp", "e", "a;c;e", "", ""): 1,
    }
    assert lines(chosen(counts=counts), unicode=False)[2:] == [
        "total  own   share              process tree",
        "1,000       100.0%  ##########  a",
        r"  995  995   99.5%  #########   |- b;\xe9",
        "    5         0.5%  #           `- c",
        "    4    4    0.4%  #              |- d",
        "    1    1    0.1%  #              `- e",
    ]


def test_folded() -> None:
    assert folded(chosen()) == [
        "(other) 900",
        "app 48",
        "nightly;make 2",
        "nightly;make;curl 8",
        "nightly;make;sh;dig 42",
    ]


def test_json() -> None:
    told = document(chosen(Choice(units=("nightly", "user@*"))))
    assert json.loads(json.dumps(told)) == {
        "queries": {
            "total": 50,
            "children": [
                {
                    "name": "nightly",
                    "own": 0,
                    "total": 50,
                    "children": [
                        {
                            "name": "make",
                            "own": 0,
                            "total": 50,
                            "children": [
                                {
                                    "name": "sh",
                                    "own": 0,
                                    "total": 42,
                                    "children": [{"name": "dig", "own": 42, "total": 42, "children": []}],
                                },
                                {"name": "curl", "own": 8, "total": 8, "children": []},
                            ],
                        }
                    ],
                }
            ],
        },
        "encrypted_connections": {
            "total": 13,
            "children": [
                {
                    "name": "sway",
                    "own": 0,
                    "total": 13,
                    "children": [{"name": "browser", "own": 13, "total": 13, "children": []}],
                }
            ],
        },
    }


def test_what_is_said_of_a_label_is_not_what_is_said_of_trees() -> None:
    counts = {Series("test", "(other)", "udp", "dig", "dig", "", ""): 1}
    (note,) = [line for line in lines(chosen(Choice(by="qtype"), counts)) if line.startswith("(other):")]
    assert "query types without a name" in note


def test_a_process_without_a_name() -> None:
    def tree(*comms: bytes) -> str:
        return Ancestry((*(Process(9, 2, comm) for comm in comms), Process(1, 1, b"systemd"))).tree

    counts = {
        Series("test", "A", "udp", "", tree(b""), "", ""): 4,
        Series("test", "A", "udp", "", tree(b"", b"sh"), "", ""): 3,
    }
    told = document(chosen(counts=counts))["queries"]["children"]
    assert [(node["name"], node["own"], node["total"]) for node in told] == [(r"\x00", 4, 4), ("sh", 0, 3)]
    assert folded(chosen(counts=counts)) == [r"\x00 4", r"sh;\x00 3"]


@pytest.mark.parametrize(
    ("choice", "queries", "encrypted", "hidden"),
    [
        (Choice(), 1000, 13, 0),
        (Choice(domains=("example.test",)), 49, 0, 0),
        (Choice(domains=("EXAMPLE.test", "*.other.test")), 50, 0, 0),
        (Choice(domains=("other.test",)), 950, 0, 0),
        (Choice(domains=("*other.test",)), 951, 0, 0),
        (Choice(domains=("test",)), 0, 0, 0),
        (Choice(units=("nightly",)), 50, 0, 900),
        (Choice(units=("nightly.service", "cron.service")), 52, 0, 900),
        (Choice(units=("user@*",)), 0, 13, 900),
        (Choice(units=("",)), 48, 0, 900),
        (Choice(units=("*",)), 100, 13, 900),
        (Choice(domains=("example.test",), units=("nightly",)), 49, 0, 0),
        (Choice(domains=("other.test",), units=("cron",)), 2, 0, 900),
        (Choice(units=("night",)), 0, 0, 900),
    ],
)
def test_choices(choice: Choice, queries: int, encrypted: int, hidden: int) -> None:
    seen = chosen(choice)
    assert (seen.queries.total, seen.encrypted.total, seen.hidden) == (queries, encrypted, hidden)
    assert sum(int(line.rpartition(" ")[2]) for line in folded(seen)) == queries
    assert ("900 queries more in (other) or (unknown), of no known unit" in lines(seen)) == (hidden == 900)


def test_a_tree_for_each_value() -> None:
    drawn = lines(chosen(Choice(by="unit")))
    assert [line[32:] for line in drawn[3:-3]] == [
        "nightly.service",
        "└─ nightly;make",
        "   ├─ sh;dig",
        "   └─ curl",
        "(none)",
        "└─ app",
        "cron.service",
        "└─ nightly;make",
        "(unknown)",
        "└─ (other)",
        "",
        "se queries cannot be read",
        "user@1000.service",
        "└─ sway;browser",
    ]
    assert drawn[-1].startswith("(unknown): what is counted for many processes together")
    assert not any("its tree was known" in line for line in drawn)
    counts = {Series("/a;b/", "A", "udp", "dig", "dig", "", ""): 3}
    assert folded(chosen(Choice(by="domain"), counts)) == [r"/a\x3bb/;dig 3"]
    # Connections have no domain.
    assert chosen(Choice(by="domain")).encrypted.children.keys() == {"sway"}


@pytest.mark.parametrize("choice", [Choice(units=("nightly",)), Choice(by="unit"), Choice(by="container")])
def test_a_label_that_is_left_out(choice: Choice) -> None:
    with pytest.raises(UserError, match=r"this dnsprobe does not tell the (unit|container)"):
        tally(scrape(labels=()), choice)
    assert tally(scrape(labels=()), Choice()).queries.total == 1000


def test_rates() -> None:
    before = chosen()
    more = {series: number + 5 * (series.process == "dig") for series, number in COUNTS.items()}
    new = {**more, Series(".", "A", "udp", "new", "new", "", ""): 4000}
    after = chosen(counts=new)
    set_rates(after.queries, totals(before.queries), 2.0)
    set_rates(after.encrypted, totals(before.encrypted), 2.0)
    assert lines(after)[:7] == [
        "5,010 queries by 5 process trees, 2,005 a second, dnsprobe 1 at host:1",
        "",
        "total    own    1/s   share              process tree",
        "4,000  4,000  2,000   79.8%  ███████▉    new",
        "   62      2    5.0    1.2%  ▏           nightly;make",
        "   52     52    5.0    1.0%  ▏           ├─ sh;dig",
        "    8      8      0    0.2%  ▏           └─ curl",
    ]
    assert document(after)["queries"]["children"][0]["per_second"] == 2000
    assert "per_second" not in document(before)["queries"]


def hostile_counts() -> dict[Series, int]:
    """Return counts as the daemon makes them of processes that are called as hostile as can be."""
    counts = {}
    for at, raw in enumerate(
        [*HOSTILE, "漢字かな".encode(), "e\u0301\u0300\u0302".encode(), "한글".encode(), b"(other)"]
    ):
        ancestry = Ancestry((Process(9, 1, raw[:15]), Process(8, 1, raw[:15]), Process(7, 1, b"up")), complete=False)
        process = ancestry.tree.rpartition(";")[2]
        counts[Series(f"d{at}", "A", "udp", process, ancestry.tree, f"u{at}", "")] = 10**at
    return counts


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [*range(1, 60), 79, 80, 81, 119, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int, unicode: bool) -> None:
    deep = ";".join(f"level{depth}-漢字" for depth in range(39))
    counts = hostile_counts() | {
        Series(".", "A", "udp", "x", ";".join([deep, "x"][:2]), "", ""): 5,
        Series(".", "A", "udp", "y", f"{deep};y", "", ""): 6,
        # A branch at each level.
        **{Series(".", "A", "udp", "z", ";".join(["z"] * depth), "", ""): 1 for depth in range(1, 40)},
    }
    for choice in (Choice(), Choice(by="domain")):
        seen = chosen(choice, counts | COUNTS)
        set_rates(seen.queries, {}, 1.0)
        for line in lines(seen, width=width, unicode=unicode):
            assert cells(line) <= width
            assert line.isprintable()
            assert unicode or line.isascii()
        coloured = lines(seen, width=width, unicode=unicode, colour=True)
        assert [re.sub("\x1b\\[[0-9;]*m", "", line) for line in coloured] == lines(seen, width=width, unicode=unicode)
        assert any("\x1b" in line for line in coloured)


def test_columns_hold_whatever_processes_are_called() -> None:
    table = lines(chosen(counts=hostile_counts()), width=80)
    head = table[2].index("process tree")
    rows = [line for line in table[3:] if line[:1].isspace() or line[:1].isdigit()]
    assert len(rows) > len(HOSTILE)
    for row in rows:
        assert row[head - 2 : head] == "  "
        assert row[head] in "├└│ .…"


def test_numbers_make_room_for_names() -> None:
    seen = chosen()
    assert lines(seen, width=120)[3].split()[-1] == "nightly;make"
    assert cells(lines(seen, width=120)[2]) == cells(lines(seen, width=119)[2]) + 10  # the bar is longer
    first = {width: next(line for line in lines(seen, width=width) if "make" in line) for width in range(18, 57)}
    assert first[56] == "   52    2    5.2%  ▌           nightly;make"
    assert first[55] == first[44] == "   52    2    5.2%  nightly;make"
    assert first[43] == first[36] == "   52    2  nightly;make"
    assert first[35] == first[19] == "   52  nightly;make"
    assert first[18] == "   52  …;make"


def test_of_long_chains_the_asker_stays() -> None:
    chain = ";".join(f"ancestor{depth}" for depth in range(30))
    seen = chosen(counts={Series(".", "A", "udp", "asker", f"{chain};asker", "", ""): 1})
    assert lines(seen, width=80)[3].endswith(" …;ancestor27;ancestor28;ancestor29;asker")
    assert lines(seen, width=80, unicode=False)[3].endswith(" ...;ancestor27;ancestor28;ancestor29;asker")
    assert lines(seen)[3].endswith(f" {chain};asker")


def test_height() -> None:
    full = lines(chosen(), width=80)
    for height in range(1, len(full) + 3):
        short = lines(chosen(), height, width=80)
        assert len(short) == min(height, len(full))
    assert lines(chosen(), len(full), width=80) == full
    assert "3 lines more" in lines(chosen(), len(full) - 3, width=80)


def test_marks_are_explained_only_where_they_are() -> None:
    def notes(tree: str) -> list[str]:
        return lines(chosen(counts={Series(".", "A", "udp", "x", tree, "", ""): 1}))[4:]

    assert notes("a;x") == []
    assert notes("...;a;x") == ["", "...: the upper end of a tree that is deeper than 40 processes"]
    assert notes("(unknown)") == ["", "(unknown): queries whose process was gone before its tree was known"]
    # A process that is called like a mark.
    assert notes(r"\x28other)") == []


def test_nothing_was_counted() -> None:
    assert lines(chosen(counts={})) == ["0 queries by 0 process trees, dnsprobe 1 at host:1"]
    assert folded(chosen(counts={})) == []
    assert document(chosen(counts={})) == {
        "queries": {"total": 0, "children": []},
        "encrypted_connections": {"total": 0, "children": []},
    }
