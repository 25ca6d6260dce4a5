"""The commands of a document, such as docs/journal.md, by the headings above them."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def questions(page: str) -> dict[str, list[str]]:
    """Return the commands of a Markdown page by their heading, in order.

    A command begins at the start of a line in a block marked ``sh``. Indented lines continue it.
    """
    found: dict[str, list[str]] = {}
    for section in re.split("^##+ ", page, flags=re.MULTILINE)[1:]:
        heading = section.splitlines()[0]
        for block in _BLOCK.findall(section):
            found.setdefault(heading, []).extend(re.findall(r"^\S.*\n(?:[ \t].*\n)*", block, re.MULTILINE))
    return found


def follows(command: str) -> bool:
    """Return whether a command follows the journal, so that it does not end by itself."""
    return " -f" in command
