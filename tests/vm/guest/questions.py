"""The questions to the journal that docs/journal.md has, as commands for a shell."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def questions(page: str) -> dict[str, list[str]]:
    """Return the commands of a Markdown page by the heading that they stand below, in order.

    A command begins at the start of a line of a block marked ``sh``; indented lines belong to the one before.
    """
    found: dict[str, list[str]] = {}
    for section in re.split("^##+ ", page, flags=re.MULTILINE)[1:]:
        heading = section.splitlines()[0]
        for block in _BLOCK.findall(section):
            found.setdefault(heading, []).extend(re.findall(r"^\S.*\n(?:[ \t].*\n)*", block, re.MULTILINE))
    return found


def follows(command: str) -> bool:
    """Tell whether a command goes on until it is ended."""
    return " -f" in command
