"""docs/ways-out.md has all situations, rungs and kernels, and is made from the results of a run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from kernels import GUESTS
from run import main
from ways_out.observers import RUNGS as OBSERVED
from ways_out.observers import Seen, verdict
from ways_out.place import Asked
from ways_out.situations import TITLES
from ways_out_page import ABSENT, RUNGS, drift, page, published

PUBLISHED = Path(__file__).parents[2] / "docs" / "ways-out.md"
#: Resolvers in containers and behind service addresses, firewalls in user space, resolvers on port 5353, payloads in
#: parts of a packet.
EVERYWHERE_RIGHT = (
    *("dnat_local", "docker", "redirected", "dnat_remote", "queued", "queued_tcp", "unicast_5353"),
    *("container", "control_group"),
    *("zerocopy", "zerocopy_padded", "sendfile", "spliced", "corked", "more_behind_header", "more_behind_question"),
    *("segmented_2", "segmented_10", "segmented_64", "multicast_interface", "silent_neighbour4", "redirected_by_tc"),
)
VERDICTS = {"right", "counted as lost", "not seen", ABSENT}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return the files of a run in which one kernel has only one rung, and one situation is not seen there."""
    for guest in GUESTS:
        out = tmp_path / guest.name / "out"
        out.mkdir(parents=True)
        rungs = {rung: dict.fromkeys(TITLES, "right") for rung in RUNGS}
        if guest.source:
            rungs = {RUNGS[-1]: rungs[RUNGS[-1]] | {"plain": "not seen"}}
        (out / "ways-out.json").write_text(json.dumps({"rungs": rungs}))
    return tmp_path


def test_the_rungs_of_the_page_are_those_that_are_observed() -> None:
    assert tuple(rung.name for rung in OBSERVED) == RUNGS


def test_titles_tell_situations_apart() -> None:
    assert len({title for _, title in TITLES.values()}) == len(TITLES)


def test_the_page_has_a_verdict_for_each_situation_rung_and_kernel() -> None:
    found = published(PUBLISHED.read_text("utf-8"))
    assert list(found) == list(RUNGS)
    for situations in found.values():
        assert list(situations) == list(TITLES)
        for kernels in situations.values():
            assert list(kernels) == [guest.name for guest in GUESTS]
            assert set(kernels.values()) <= VERDICTS


@pytest.mark.parametrize("situation", EVERYWHERE_RIGHT)
def test_what_users_meet_every_day_is_right_at_each_hook(situation: str) -> None:
    for rung, situations in published(PUBLISHED.read_text("utf-8")).items():
        assert set(situations[situation].values()) - {ABSENT} == {"right"}, rung


def test_the_page_names_the_command_that_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "`scripts/vm --write-docs` makes this page" in PUBLISHED.read_text("utf-8")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "docs/ways-out.md" in " ".join(capsys.readouterr().out.split())


def test_the_results_of_a_run_make_the_page(results: Path) -> None:
    text = page(results)
    found = published(text)
    assert found[RUNGS[0]]["plain"]["6.1-isra"] == ABSENT
    assert found[RUNGS[-1]]["plain"] == {guest.name: "not seen" if guest.source else "right" for guest in GUESTS}
    (line,) = (line for line in text.split("\n## ")[2].splitlines() if line.startswith("| `sendto` "))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "`sendto`",
        *["right"] * 4,
        "right; not seen on 6.1-isra",
    ]


def test_another_result_is_a_difference(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "ways-out.md"
    assert drift(results, path)
    path.write_text(page(results))
    assert not drift(results, path)
    out = results / "sid" / "out" / "ways-out.json"
    out.write_text(out.read_text().replace("right", "counted as lost", 1))
    assert "scripts/vm --write-docs" in drift(results, path)


ASKED = Asked("q00.plain.ways.test", "asker", "udp", "192.0.2.53", 53)


@pytest.mark.parametrize(
    ("counted", "shown", "lost", "found"),
    [
        ({("asker", "udp"): 2}, {ASKED}, 0, "right"),
        ({("asker", "udp"): 1}, {ASKED}, 1, "counted as lost"),
        ({}, set(), 2, "counted as lost"),
        ({("(unknown)", "udp"): 2}, set(), 2, "counted as lost"),
        ({("asker", "udp"): 1}, {ASKED}, 0, "not seen"),
        ({}, set(), 1, "not seen"),
        ({("asker", "udp"): 3}, {ASKED}, 0, "wrong"),
        ({("asker", "udp"): 2}, {ASKED}, 1, "wrong"),
        ({("asker", "mdns"): 2}, {ASKED}, 0, "wrong"),
        ({("firewall", "udp"): 2}, set(), 0, "wrong"),
        ({("asker", "udp"): 2}, {Asked("q00.plain.ways.test", "asker", "udp", "10.0.0.1", 53)}, 0, "wrong"),
    ],
)
def test_a_verdict_compares_what_was_counted_with_what_was_sent(
    counted: dict[tuple[str, str], int], shown: set[Asked], lost: int, found: str
) -> None:
    assert verdict(Counter({ASKED: 2}), Seen(Counter(counted), shown, {"lost": lost})).partition(":")[0] == found


@pytest.mark.parametrize(
    ("skipped", "lost", "found"),
    [
        (1, 0, "right"),
        # The run that was skipped had another packet, such as one of a scrape.
        (1, 1, "counted as lost"),
        (1, 2, "wrong"),
        (0, 0, "not seen"),
        (0, 1, "counted as lost"),
    ],
)
def test_a_run_that_the_kernel_skipped_is_not_held_against_a_rung(skipped: int, lost: int, found: str) -> None:
    seen = Seen(Counter({("asker", "udp"): 1}), {ASKED}, {"lost": lost}, skipped)
    assert verdict(Counter({ASKED: 2}), seen).partition(":")[0] == found
