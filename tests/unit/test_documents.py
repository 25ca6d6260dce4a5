"""The documents name only what exists: pages, headings, metrics, reasons of losses and configuration keys."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from exported import names_with_answers

from dnsprobe.config.main import AnswersConfig, JournalConfig, MetricsConfig, ProbeConfig
from dnsprobe.kernel.abi import Unmatched
from dnsprobe.kernel.losses import LOSSES
from dnsprobe.pipeline.answers import REASONS

REPOSITORY = Path(__file__).parents[2]
PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
SECTIONS = {"probe": ProbeConfig, "journal": JournalConfig, "metrics": MetricsConfig, "answers": AnswersConfig}
#: Variables of the Ansible playbook, and the middle part of the names of recording rules.
OTHER_NAMES = {
    *("dnsprobe_package", "dnsprobe_configuration", "dnsprobe_queries"),
    *("dnsprobe_results", "dnsprobe_failures", "dnsprobe_failures_per_result"),
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    bare = (re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in bare}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(\s*([^)\s]+)\s*\)", page.read_text("utf-8"))
    for link in (link for link in links if "://" not in link):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_metrics_are_exported(page: Path) -> None:
    named = set(re.findall(r"(?<![\w.])dnsprobe_[a-z_]*[a-z]\b(?![.*])", page.read_text("utf-8")))
    assert named - OTHER_NAMES <= names_with_answers()


@every_page
def test_reasons_of_losses_exist(page: Path) -> None:
    reasons = set(re.findall(r'reason!?="(\w+)"', page.read_text("utf-8")))
    assert reasons <= {loss.reason for loss in LOSSES} | {*REASONS.values()} | {
        reason.name.lower() for reason in Unmatched
    }


@every_page
def test_configuration_keys_exist(page: Path) -> None:
    known = {
        f"{name}.{field.name.removesuffix('_ns')}" for name, of in SECTIONS.items() for field in dataclasses.fields(of)
    }
    named = set(re.findall(r"`((?:probe|journal|metrics|answers)\.[a-z_]+)[`:\[]", page.read_text("utf-8")))
    assert named - {"metrics.md", "journal.md"} <= known


def test_quoted_messages_exist() -> None:
    """In troubleshooting, curly quotes have texts of the log and the status line, for which an operator may search."""
    page = (REPOSITORY / "docs/troubleshooting.md").read_text("utf-8")
    source = "".join(path.read_text("utf-8") for path in (REPOSITORY / "dnsprobe").rglob("*.py"))
    quoted = {" ".join(text.split()) for text in re.findall("“([^”]+)”", page)}
    assert quoted
    assert {text for text in quoted if text not in source} == set()
