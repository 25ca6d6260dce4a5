"""Pieces of HTML. Each value from outside is escaped here before it becomes part of the page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from datetime import UTC

from dnsprobe.sinks.wording import moment
from dnsprobe.text import shown

#: The most characters of a rule's name, its pattern, or an error: a pattern has no limit of its own.
_MAX_TEXT = 300


def embedded(value: object) -> str:
    """Return a value as JSON for a ``script`` element. It can contain neither ``</script>`` nor ``<!--``."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def text(value: str) -> str:
    """Return a value from outside as an element with its own writing direction and with control characters escaped."""
    return f"<bdi>{html.escape(shown(value))}</bdi>"


def short_text(value: str) -> str:
    """Return the beginning of a value from outside as such an element."""
    return text(value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "…")


def good(phrase: str) -> str:
    """Return a phrase that reports a good state."""
    return f'<span class="good">{phrase}</span>'


def bad(phrase: str) -> str:
    """Return a phrase that reports a problem."""
    return f'<span class="bad">{phrase}</span>'


def time(time_ns: int, *, day: bool) -> str:
    """Return a moment in local time: with its day to the second, without its day to the millisecond."""
    local = moment(time_ns).astimezone()
    utc = local.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    written = f"{local:%Y-%m-%d %H:%M:%S}" if day else local.time().isoformat("milliseconds")
    return f'<time datetime="{utc}">{written}</time>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, css_class: str = "") -> str:
    """Return a table. The cells are HTML already. A column whose title begins with ``#`` contains numbers."""
    heads = [(column.lstrip("#"), ' class="number"' if column.startswith("#") else "") for column in columns]
    head = "".join(f'<th scope="col"{style}>{title}</th>' for title, style in heads)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td{style} data-label="{title}">{cell}</td>' for (title, style), cell in zip(heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    attribute = f' class="{css_class}"' if css_class else ""
    return f"<table{attribute}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def live(identifier: str, content: str) -> str:
    """Return a part of the page that each refresh replaces."""
    return f'<div id="{identifier}" data-live>\n{content}\n</div>'


def section(identifier: str, title: str, content: str) -> str:
    """Return a section with its title."""
    return f'<section aria-labelledby="{identifier}">\n<h2 id="{identifier}">{title}</h2>\n{content}\n</section>'
