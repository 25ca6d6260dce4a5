"""docs/kernels.md has the kernels of the list of guests, and is made from the results of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from kernels import GUESTS
from page import HOOKS, TCP_HOOKS, drift, page

PUBLISHED = Path(__file__).parents[2] / "docs" / "kernels.md"


def test_the_page_has_the_kernels_of_the_list() -> None:
    text = PUBLISHED.read_text("utf-8")
    for heading, column in (("What to expect", "Kernel"), ("The kernels", "Name")):
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        names = [match[1] for match in re.finditer(r"^\| (\S+) ", section, re.MULTILINE)]
        assert names == [column, *(guest.name for guest in GUESTS)]
    for place in (*(f"UDP at `{hook}`" for hook in HOOKS), *(f"TCP at `{hook}`" for hook in TCP_HOOKS)):
        (head,) = re.findall(rf"^### {place}.*\n\n(\|.*\|)$", text, re.MULTILINE)
        assert [cell.strip() for cell in head.strip("|").split("|")][2:] == [guest.name for guest in GUESTS]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return the files of a run in which one kernel refuses one hook."""
    for guest in GUESTS:
        out = tmp_path / guest.name / "out"
        out.mkdir(parents=True)
        (tmp_path / guest.name / "kernel.versions").write_text(f"release={guest.name}.1-test\n")
        (tmp_path / guest.name / "userland.versions").write_text(
            "systemd=252.1-1\npython3=3.11.2-1\npython3-bpfcc=0.26.0-1\n"
        )
        (out / "hooks.json").write_text(json.dumps({"hooks": dict.fromkeys(("udp4", "udp6", "tcp4", "tcp6"), "f")}))
        for hook in HOOKS:
            rows = {"sendto-4": "yes", "corked-mapped": "no: 0 of 7"}
            refuses = guest.source and hook == "udp_send_skb"
            (out / f"paths-{hook}.json").write_text(json.dumps({"rows": {} if refuses else rows}))
        for hook in TCP_HOOKS:
            if hook != "tcp_tracepoint" or guest.name == "sid":
                rows = {"length-first-4": "yes", "dig-6": "no: {} of {'dig': 7}"}
                (out / f"streams-{hook}.json").write_text(json.dumps({"rows": rows}))
    return tmp_path


def test_the_results_of_a_run_make_the_page(results: Path) -> None:
    text = page(results)
    assert "| 5.10     | 5.10.1-test" in text
    summary = text.split("\n## ")[1]
    assert re.search(r"^\| 6\.1-isra +\| all but corked sends +\| refused +\|", summary, re.MULTILINE)
    dig = r"all but `dig \+tcp`"
    assert re.search(rf"^\| 6\.12 +(\| all but corked sends +){{3}}(\| {dig} +){{3}}\| - +\|$", summary, re.MULTILINE)
    assert "bookworm: systemd 252.1, Python 3.11.2, BCC 0.26.0" in text
    assert re.search(r"^\| `sendto` +\| IPv4 +\| yes +\| yes +\| refused +\| yes +\| yes +\|$", text, re.MULTILINE)
    assert "IPv4-mapped IPv6 | no: 0 of 7" in text
    tracepoint = text.split("### TCP at `tcp_tracepoint`")[1]
    assert re.search(r"^\| the length in a write of its own \| IPv4 (\| - +){4}\| yes +\|$", tracepoint, re.MULTILINE)
    assert "| `dig +tcp` " in tracepoint


def test_another_result_is_a_difference_and_another_version_is_not(results: Path, tmp_path: Path) -> None:
    published = tmp_path / "kernels.md"
    assert drift(results, published)
    published.write_text(page(results))
    assert not drift(results, published)
    (results / "sid" / "kernel.versions").write_text("release=9.9\n")
    assert not drift(results, published)
    (results / "sid" / "out" / "paths-ip_send_skb.json").write_text(
        json.dumps({"rows": {"sendto-4": "no: 3 of 7", "corked-mapped": "no: 0 of 7"}})
    )
    assert drift(results, published)
