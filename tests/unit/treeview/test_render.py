"""How counts by process tree look in any terminal, as folded stacks and as JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from counted import COUNTS, chosen
from made_up import HOSTILE

from dnsprobe.model import Ancestry, Process, Series
from dnsprobe.terminal import Look, cells
from dnsprobe.treeview.aggregate import Choice, TreeCounts
from dnsprobe.treeview.nodes import rates, totals_by_path
from dnsprobe.treeview.render import folded_stacks, json_object, tree_lines


def lines(seen: TreeCounts, height: int | None = None, **look: Any) -> list[str]:
    return tree_lines(seen, Look(**look), "dnsprobe 1 at host:1", height)


def test_a_tree_has_numbers_and_bars() -> None:
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
        "connections of DNS over TLS, whose queries are encrypted",
        "   13   13  100.0%  ██████████  sway;browser",
        "",
        "(other): trees counted together, above the limit on series (metrics.max_series) or without room in the kernel",
    ]


def test_a_tree_can_be_ascii() -> None:
    counts = {
        Series(".", "A", "udp", "remote", "é", "a;b;é", "", ""): 995,
        Series(".", "A", "udp", "remote", "c", "a;c;d", "", ""): 4,
        Series(".", "A", "udp", "remote", "e", "a;c;e", "", ""): 1,
    }
    assert lines(chosen(counts=counts), unicode=False)[2:] == [
        "total  own   share              process tree",
        "1,000       100.0%  ##########  a",
        r"  995  995   99.5%  #########   |- b;\xe9",
        "    5         0.5%  #           `- c",
        "    4    4    0.4%  #              |- d",
        "    1    1    0.1%  #              `- e",
    ]


def test_folded_stacks() -> None:
    assert folded_stacks(chosen()) == [
        "(other) 900",
        "app 48",
        "nightly;make 2",
        "nightly;make;curl 8",
        "nightly;make;sh;dig 42",
    ]


def test_json() -> None:
    result = json_object(chosen(Choice(units=("nightly", "user@*"))))
    assert json.loads(json.dumps(result)) == {
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


def test_notes_on_labels_differ_from_notes_on_trees() -> None:
    counts = {Series("test", "(other)", "udp", "remote", "dig", "dig", "", ""): 1}
    (note,) = [line for line in lines(chosen(Choice(by="qtype"), counts)) if line.startswith("(other):")]
    assert "query types without a name" in note


def test_a_process_without_a_name_is_a_node() -> None:
    def tree(*comms: bytes) -> str:
        return Ancestry((*(Process(9, 2, comm) for comm in comms), Process(1, 1, b"systemd"))).tree

    counts = {
        Series("test", "A", "udp", "remote", "", tree(b""), "", ""): 4,
        Series("test", "A", "udp", "remote", "", tree(b"", b"sh"), "", ""): 3,
    }
    result = json_object(chosen(counts=counts))["queries"]["children"]
    assert [(node["name"], node["own"], node["total"]) for node in result] == [(r"\x00", 4, 4), ("sh", 0, 3)]
    assert folded_stacks(chosen(counts=counts)) == [r"\x00 4", r"sh;\x00 3"]


def test_each_value_of_a_label_has_a_tree() -> None:
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
        "se queries are encrypted",
        "user@1000.service",
        "└─ sway;browser",
    ]
    assert drawn[-1].startswith("(unknown): queries of many processes that are counted together")
    assert not any("its tree was known" in line for line in drawn)
    counts = {Series("/a;b/", "A", "udp", "remote", "dig", "dig", "", ""): 3}
    assert folded_stacks(chosen(Choice(by="domain"), counts)) == [r"/a\x3bb/;dig 3"]
    # Connections have no domain.
    assert chosen(Choice(by="domain")).encrypted.children.keys() == {"sway"}


def test_a_second_reading_has_rates() -> None:
    before = chosen()
    more = {series: number + 5 * (series.process == "dig") for series, number in COUNTS.items()}
    new = {**more, Series(".", "A", "udp", "remote", "new", "new", "", ""): 4000}
    after = chosen(counts=new)
    after.rates |= rates(after.queries, totals_by_path(before.queries), 2.0)
    after.rates |= rates(after.encrypted, totals_by_path(before.encrypted), 2.0)
    assert lines(after)[:7] == [
        "5,010 queries by 5 process trees, 2,005 per second, dnsprobe 1 at host:1",
        "",
        "total    own    1/s   share              process tree",
        "4,000  4,000  2,000   79.8%  ███████▉    new",
        "   62      2    5.0    1.2%  ▏           nightly;make",
        "   52     52    5.0    1.0%  ▏           ├─ sh;dig",
        "    8      8      0    0.2%  ▏           └─ curl",
    ]
    assert json_object(after)["queries"]["children"][0]["per_second"] == 2000
    assert "per_second" not in json_object(before)["queries"]


def hostile_counts() -> dict[Series, int]:
    """Return the counts of processes with hostile names, as a daemon makes them."""
    counts = {}
    for at, raw in enumerate(
        [*HOSTILE, "漢字かな".encode(), "e\u0301\u0300\u0302".encode(), "한글".encode(), b"(other)"]
    ):
        ancestry = Ancestry((Process(9, 1, raw[:15]), Process(8, 1, raw[:15]), Process(7, 1, b"up")), complete=False)
        process = ancestry.tree.rpartition(";")[2]
        counts[Series(f"d{at}", "A", "udp", "remote", process, ancestry.tree, f"u{at}", "")] = 10**at
    return counts


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [*range(1, 60), 79, 80, 81, 119, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int, unicode: bool) -> None:
    deep = ";".join(f"level{depth}-漢字" for depth in range(39))
    counts = hostile_counts() | {
        Series(".", "A", "udp", "remote", "x", ";".join([deep, "x"][:2]), "", ""): 5,
        Series(".", "A", "udp", "remote", "y", f"{deep};y", "", ""): 6,
        # A branch at each level.
        **{Series(".", "A", "udp", "remote", "z", ";".join(["z"] * depth), "", ""): 1 for depth in range(1, 40)},
    }
    for choice in (Choice(), Choice(by="domain")):
        seen = chosen(choice, counts | COUNTS)
        seen.rates |= rates(seen.queries, {}, 1.0)
        for line in lines(seen, width=width, unicode=unicode):
            assert cells(line) <= width
            assert line.isprintable()
            assert unicode or line.isascii()
        coloured = lines(seen, width=width, unicode=unicode, colour=True)
        assert [re.sub("\x1b\\[[0-9;]*m", "", line) for line in coloured] == lines(seen, width=width, unicode=unicode)
        assert any("\x1b" in line for line in coloured)


def test_columns_are_aligned_with_hostile_names() -> None:
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


def test_long_chains_keep_the_last_process() -> None:
    chain = ";".join(f"ancestor{depth}" for depth in range(30))
    seen = chosen(counts={Series(".", "A", "udp", "remote", "asker", f"{chain};asker", "", ""): 1})
    assert lines(seen, width=80)[3].endswith(" …;ancestor27;ancestor28;ancestor29;asker")
    assert lines(seen, width=80, unicode=False)[3].endswith(" ...;ancestor27;ancestor28;ancestor29;asker")
    assert lines(seen)[3].endswith(f" {chain};asker")


def test_a_tree_is_cut_to_the_height() -> None:
    full = lines(chosen(), width=80)
    for height in range(1, len(full) + 3):
        short = lines(chosen(), height, width=80)
        assert len(short) == min(height, len(full))
    assert lines(chosen(), len(full), width=80) == full
    assert "3 more lines" in lines(chosen(), len(full) - 3, width=80)


def test_placeholders_are_explained_only_if_present() -> None:
    def notes(tree: str) -> list[str]:
        return lines(chosen(counts={Series(".", "A", "udp", "remote", "x", tree, "", ""): 1}))[4:]

    assert notes("a;x") == []
    assert notes("...;a;x") == ["", "...: the tree is deeper than 40 processes, and its top is cut off"]
    assert notes("(unknown)") == ["", "(unknown): queries whose process exited before its tree was known"]
    # A process that is called like a mark.
    assert notes(r"\x28other)") == []


def test_without_counts_the_tree_is_empty() -> None:
    assert lines(chosen(counts={})) == ["0 queries by 0 process trees, dnsprobe 1 at host:1"]
    assert folded_stacks(chosen(counts={})) == []
    assert json_object(chosen(counts={})) == {
        "queries": {"total": 0, "children": []},
        "encrypted_connections": {"total": 0, "children": []},
    }
