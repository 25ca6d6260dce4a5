"""The manual pages: accepted by the tools, and complete in keys and fields."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import document_facts
import pytest
import yaml
from made_up import IDENTITY, QUERY
from test_completion import commands, options

from dnsprobe.config import main as config
from dnsprobe.sinks import journal
from dnsprobe.sinks.fields import FACTS

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs/man"
PAGES = sorted(FOLDER.iterdir())
COMMANDS = (FOLDER / "dnsprobe.1").read_text("utf-8")
CONFIGURATION = (FOLDER / "dnsprobe.yaml.5").read_text("utf-8")
JOURNAL = (FOLDER / "dnsprobe-journal.7").read_text("utf-8")
FIELDS = [name for name, _ in journal.fields(QUERY, IDENTITY) if not name.startswith("DNSPROBE_")]
FIELDS += [fact.field for fact in FACTS if fact.field]
SECTIONS = {**config.SECTIONS, "answers": config.ANSWERS}
KEYS = [f"{name}.{key}" for name, section in SECTIONS.items() for key in section.keys]


def plain(page: str) -> str:
    """Return the text of a part of a page, without macros."""
    text = re.sub(r"^\.[A-Z][a-z] ", "", page, flags=re.MULTILINE).replace("\\&", "")
    return re.sub(r" ([,.;:)])", r"\1", " ".join(text.split())).replace("( ", "(").replace('"', "")


def items(page: str, macro: str) -> dict[str, str]:
    """Return the text of each item of lists."""
    return {
        name: plain(text)
        for name, text in re.findall(rf"^\.It {macro} (\S+)\n((?:(?!\.It |\.El).*\n)+)", page, re.MULTILINE)
    }


def table(page: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table below a heading of a Markdown page, by their first cell."""
    section = (REPOSITORY / "docs" / page).read_text("utf-8").split(f"\n{heading}", 1)[1].split("\n#", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    return {cells[0].strip("`"): cells[1:] for cells in rows[2:]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_tools_have_no_complaint(page: Path) -> None:
    for package, command in {
        "man-db": ["man", "--warnings", "--encoding=UTF-8", "--local-file", str(page)],
        "mandoc": ["mandoc", "-T", "lint", "-W", "style", str(page)],
    }.items():
        if shutil.which(command[0]) is None:
            pytest.skip(f"takes: apt-get install {package}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        output = done.stderr + (done.stdout if package == "mandoc" else "")
        # Complaints about manual pages that are not installed, or that are newer than the database of mandoc.
        others = re.compile("referenced manual not found|outdated mandoc.db")
        assert [line for line in output.splitlines() if not others.search(line)] == []


def test_the_synopsis_has_every_command_with_its_options() -> None:
    (synopsis,) = re.findall(r"^\.Sh SYNOPSIS\n(.*?)^\.Sh", COMMANDS, re.MULTILINE | re.DOTALL)
    found = {}
    for usage in re.split(r"^\.Nm\b", synopsis, flags=re.MULTILINE):
        if command := re.search(r"Cm (\w+)", usage):
            found[command[1]] = {f"-{option}" for option in re.findall(r"Fl (-[a-z.-]+)", usage)}
    assert found == {name: options(parser) - {"--help"} for name, parser in commands().items()}


def test_the_manual_has_every_key_with_values_and_default() -> None:
    described = items(CONFIGURATION, "Ic")
    domain = [f"domains[].{key}" for key in config.DOMAIN_KEYS]
    assert list(described) == ["domains", *domain, *KEYS]
    shipped: dict[str, Any] = yaml.load((REPOSITORY / "config/dnsprobe.yaml").read_text("utf-8"), yaml.BaseLoader)
    for key in KEYS:
        section, _, name = key.partition(".")
        if section == "answers":  # is off by default, so the shipped file does not have its keys
            continue
        default = shipped[section][name]
        shown = f"[{', '.join(default)}]" if isinstance(default, list) else default
        assert described[key].endswith(f"Default: {shown}."), key
        assert "Values: " in described[key], key
    assert all(priority in described["domains[].priority"] for priority in config.PRIORITIES)
    assert all(key in described["domains[].alert"].split() for key in config.ALERT_KEYS)
    for key, choices in {
        "probe.hook": config.HOOKS,
        "probe.tcp_hook": config.TCP_HOOKS,
        "probe.attach": config.ATTACH,
    }.items():
        assert f"Values: {', '.join(choices)}." in described[key]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_document_on_configuration_has_the_same(section: str) -> None:
    described = items(CONFIGURATION, "Ic")
    rows = table("configuration.md", f"### `{section}`")
    assert [f"{section}.{key}" for key in rows] == [key for key in KEYS if key.startswith(f"{section}.")]
    for key, (_, values, default) in rows.items():
        assert described[f"{section}.{key}"].endswith(f"Values: {values}. Default: {default}.".replace("`", "")), key


def test_the_manual_has_every_field_in_order() -> None:
    assert len(FIELDS) > 30
    assert list(items(JOURNAL, "Va")) == FIELDS
    assert [name for name in table("journal.md", "## Fields") if name != "-"] == FIELDS


@pytest.mark.parametrize("path", document_facts.documents(), ids=lambda path: str(path.name))
def test_the_documents_have_the_table_of_facts(path: Path) -> None:
    assert path.read_text("utf-8") == document_facts.documents()[path], "run scripts/document_facts.py"


def test_the_manual_has_every_message_id() -> None:
    ids = {value for name, value in vars(journal).items() if name.endswith("_ID")}
    assert set(items(JOURNAL, "Li")) == ids


def test_the_example_is_a_good_configuration(tmp_path: Path) -> None:
    examples = re.findall(r"^\.Bd -literal -offset indent\n(.*?)^\.Ed$", CONFIGURATION, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        file = tmp_path / "dnsprobe.yaml"
        file.write_text(example.replace("\\e", "\\"))
        assert config.load(file) != config.default()
