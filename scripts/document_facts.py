"""Write the table of journal fields into docs/journal.md and docs/man/dnsprobe-journal.7.

Usage: .venv/bin/python scripts/document_facts.py, after each change of dnsprobe/sinks/fields.py. A test fails while the
documents differ from the table there. Rows and items that do not begin with DNSPROBE_ are written by hand.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from dnsprobe.sinks.fields import FACTS

_DOCS = Path(__file__).parents[1] / "docs"
MARKDOWN, MANUAL = _DOCS / "journal.md", _DOCS / "man/dnsprobe-journal.7"

#: The columns of the table that are padded.
_FIELD, _KEY = 28, 19


def _row(field: str, key: str, meaning: str, absent: str) -> str:
    return f"| {field:<{_FIELD}} | {key:<{_KEY}} | {meaning} | {absent} |\n"


def _rows() -> str:
    return "".join(
        _row(
            f"`{fact.field}`" if fact.field else "-",
            f"`{fact.key}`" if fact.key else "-",
            fact.meaning,
            (fact.absent or "never") if fact.field else "-",
        )
        for fact in FACTS
    )


def _literal(text: str) -> str:
    """Return a literal as an argument of a macro (mdoc(7)): no delimiter, one argument."""
    text = f"\\&{text}" if text[0] in ".;:,()" else text
    return f'"{text}"' if " " in text else text


def _sentence(markdown: str) -> Iterator[str]:
    """Yield the lines of a sentence in mdoc(7): literals become macros, links their text."""
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", markdown)
    words, *rest = re.split(r"`(.*?)`([.,;:)]*)", f"{text[0].upper()}{text[1:]}.")
    yield from textwrap.wrap(words, 78)
    for literal, delimiters, following in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        yield f".Li {' '.join((_literal(literal), *delimiters))}"
        yield from textwrap.wrap(following.strip(), 78)


def _items() -> str:
    lines = []
    for fact in FACTS:
        if fact.field:
            lines += [f".It Va {fact.field}", *_sentence(fact.meaning)]
            lines += _sentence(f"absent when {fact.absent}") if fact.absent else ()
    return "".join(f"{line}\n" for line in lines)


def documents() -> dict[Path, str]:
    """Return what each document should contain."""
    rows = re.compile(r"^\| `DNSPROBE_DOMAIN`.*\n(\|.*\n)*", re.MULTILINE)
    items = re.compile(r"^\.It Va DNSPROBE_DOMAIN\n((?!\.El\n).*\n)*", re.MULTILINE)
    return {
        MARKDOWN: rows.sub(lambda _: _rows(), MARKDOWN.read_text("utf-8"), count=1),
        MANUAL: items.sub(lambda _: _items(), MANUAL.read_text("utf-8"), count=1),
    }


def main() -> None:
    """Write the documents."""
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
