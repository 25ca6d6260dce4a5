"""A YAML file as a tree of places: each value with the key that leads to it and the line for what is wrong with it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.text import printable, shorten

#: libyaml's binding builds nested nodes by recursion in C, without a limit: far deeper than this ends the process.
_MAX_DEPTH = 32

#: libyaml's loader reads 10,000 domains eight times as fast; not every build of PyYAML has it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: What may not be in a YAML stream (YAML 1.1, section 5.1), or only at its start: the byte order mark.
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One error: ``line`` from 1 up, 0 for the file as a whole; ``key`` a path such as ``domains[2].pattern``."""

    file: str
    line: int
    key: str
    message: str
    hint: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        what = f"{self.key}: {self.message}" if self.key else self.message
        return f"{where}: {what}; {self.hint}" if self.hint else f"{where}: {what}"


class ConfigError(UserError):
    """All that is wrong with a configuration file, one line for each error, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)), status=EXIT_USAGE)


def document(path: str | os.PathLike[str], problems: list[Problem], option: str = "--config") -> Place | None:
    """Return the root of a file, None if there is nothing in it; what its places report goes to ``problems``.

    Raises ConfigError if the file is not one of YAML. ``option`` is where a user gives the path.
    """
    file = printable(os.fspath(path))
    root = _compose(_read(path, file, option), file)
    return None if root is None else Place(root, "", file, problems)


def _read(path: str | os.PathLike[str], file: str, option: str) -> str:
    try:
        with open(path, "rb") as stream:
            raw = stream.read()
    except OSError as error:
        hints = {
            FileNotFoundError: f"give the path of a configuration file with {option}",
            IsADirectoryError: "give the path of a file in it",
            PermissionError: "make it readable for the user that runs dnsprobe",
        }
        hint = hints.get(type(error), "check the path")
        raise ConfigError([Problem(file, 0, "", f"cannot be read: {error.strerror}", hint)]) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The marker at the start, if there is one, is not in the bytes that the error counts in.
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
        raise ConfigError([Problem(file, line, "", message, "save the file as UTF-8")]) from error
    stray = _NOT_YAML.search(text)
    if stray:
        line = text.count("\n", 0, stray.start()) + 1
        message = f"a character that YAML does not allow (U+{ord(stray[0]):04X})"
        raise ConfigError([Problem(file, line, "", message, "remove it")])
    return text


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise ConfigError([Problem(file, line, "", "nested too deeply", "no key takes lists in lists")])
        node: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        message = f"not valid YAML: {error.problem or error.context}"
        raise ConfigError([Problem(file, line, "", message, _yaml_hint(text, mark))]) from error
    return node


def _yaml_hint(text: str, mark: yaml.Mark | None) -> str:
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if re.search(r"(^|[-:\[,])\s*\*", line):
        return 'a pattern that begins with * needs quotes: "*.example.com"'
    if re.search(r'"[^"]*\\', line):
        return "put a value with backslashes in single quotes"
    if re.search(r":\s+\[[0-9A-Fa-f.]*:", line):
        return 'an address in brackets needs quotes: "[::1]:10059"'
    if "\t" in line:
        return "indent with spaces, not with tabs"
    return "check quotes, colons and indentation here and in the line before"


class Place:
    """A node of the file, the key path that leads to it, and where to report what is wrong with it."""

    __slots__ = ("file", "key", "node", "problems")

    def __init__(self, node: yaml.Node, key: str, file: str, problems: list[Problem]) -> None:
        self.node = node
        self.key = key
        self.file = file
        self.problems = problems

    @property
    def line(self) -> int:
        """Where it begins, from 1 up."""
        return int(self.node.start_mark.line) + 1

    @property
    def empty(self) -> bool:
        """Whether there is a key, but no value."""
        return self.scalar("null") is not None

    def scalar(self, *types: str) -> str | None:
        """Return the text of a scalar whose YAML type is one of ``types``, or of any without; None for all else."""
        if not isinstance(self.node, yaml.ScalarNode):
            return None
        return str(self.node.value) if not types or self.node.tag.rpartition(":")[2] in types else None

    def report(self, message: str, hint: str) -> None:
        """Report what is wrong here."""
        self.problems.append(Problem(self.file, self.line, self.key, message, hint))

    def wrong(self, what: str, hint: str) -> None:
        """Report the value of this node as ``what``."""
        if isinstance(self.node, yaml.ScalarNode):
            shown = "no value" if self.empty else shorten(self.node.value)
        else:
            shown = "a list" if isinstance(self.node, yaml.SequenceNode) else "a mapping"
        self.report(f"{what} ({shown})", hint)

    def items(self) -> Iterator[Place]:
        """Yield the items of a list."""
        for index, node in enumerate(self.node.value):
            yield Place(node, f"{self.key}[{index}]", self.file, self.problems)

    def pairs(self, hint: str) -> Iterator[tuple[str, Place, Place]]:
        """Yield each key with its place and that of its value; report what is not a mapping, and duplicate keys."""
        if not isinstance(self.node, yaml.MappingNode):
            self.wrong("not a mapping of keys to values", hint)
            return
        found: dict[str, Place] = {}
        for key_node, value_node in self.node.value:
            place = Place(key_node, self.key, self.file, self.problems)
            key = place.scalar()
            if key is None:
                place.wrong("not a key", hint)
                continue
            place.key = f"{self.key}.{shorten(key)}" if self.key else shorten(key)
            if key in found:
                place.report(f"a duplicate of the key in line {found[key].line}", "remove one of them")
            else:
                found[key] = Place(value_node, place.key, self.file, self.problems)
                yield key, place, found[key]

    def entries(self, known: Sequence[str]) -> dict[str, Place]:
        """Return the values of a mapping by key; report unknown keys, too."""
        found: dict[str, Place] = {}
        for key, place, value in self.pairs(f"known keys: {', '.join(known)}"):
            if key in known:
                found[key] = value
            else:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
                place.report(f"an unknown key ({shorten(key)})", hint)
        return found
