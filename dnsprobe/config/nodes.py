"""A YAML file as a tree of places: each value with its key path and its line, so that errors can name them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.files import UnsuitableFileError, read_file
from dnsprobe.text import printable, shorten

#: PyYAML's binding of libyaml builds nested nodes by recursion in C without a limit: deep nesting crashes the process.
_MAX_DEPTH = 32

#: Octets. The most rules, each with a long name, take less.
_MAX_FILE = 32 << 20

#: The loader of libyaml reads 10,000 domains eight times as fast, but not every build of PyYAML has it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: Characters that YAML forbids (YAML 1.1, section 5.1), and the byte order mark, which is allowed only at the start.
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One error. ``line`` begins at 1; 0 means the whole file. ``key`` is a path such as ``domains[2].pattern``."""

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
    """All errors in a configuration file: the message has one line for each, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)), status=EXIT_USAGE)


def document(path: str | os.PathLike[str], problems: list[Problem], option: str = "--config") -> Place | None:
    """Return the root of a YAML file, or None if the file is empty. Places add their problems to ``problems``.

    ``option`` is the command-line option for the path, for a hint. Raises ConfigError if the file cannot be read or is
    not YAML.
    """
    file = printable(os.fspath(path))
    root = _compose(_read(path, file, option), file)
    return None if root is None else Place(root, "", file, problems)


def _read(path: str | os.PathLike[str], file: str, option: str) -> str:
    try:
        raw = read_file(path, _MAX_FILE)
    except OSError as error:
        hints = {
            FileNotFoundError: f"give the path of a configuration file with {option}",
            IsADirectoryError: "give the path of a file, not of a folder",
            UnsuitableFileError: f"give the path of a YAML file with {option}",
            PermissionError: "make it readable for the user that runs dnsprobe",
        }
        hint = hints.get(type(error), "check the path")
        raise ConfigError([Problem(file, 0, "", f"cannot be read: {error.strerror}", hint)]) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.object is without the byte order mark, so count lines there.
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
                raise ConfigError([Problem(file, line, "", "nested too deeply", "no key has lists inside lists")])
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
    """A node of the file, with its key path, and with the list to which it reports problems."""

    __slots__ = ("file", "key", "node", "problems")

    def __init__(self, node: yaml.Node, key: str, file: str, problems: list[Problem]) -> None:
        self.node = node
        self.key = key
        self.file = file
        self.problems = problems

    @property
    def line(self) -> int:
        """The number of its first line; the file begins with line 1."""
        return int(self.node.start_mark.line) + 1

    @property
    def empty(self) -> bool:
        """True if the key has no value."""
        return self.scalar("null") is not None

    def scalar(self, *types: str) -> str | None:
        """Return the text of a scalar whose YAML type is in ``types``, of any scalar if that is empty; else None."""
        if not isinstance(self.node, yaml.ScalarNode):
            return None
        return str(self.node.value) if not types or self.node.tag.rpartition(":")[2] in types else None

    def report(self, message: str, hint: str) -> None:
        """Report a problem at this place."""
        self.problems.append(Problem(self.file, self.line, self.key, message, hint))

    def wrong(self, what: str, hint: str) -> None:
        """Report that the value of this node is ``what``; the message shows the value."""
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
        """Yield each key of a mapping, its place and the place of its value; report other nodes and duplicate keys."""
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
        """Return the values of a mapping by key; report unknown keys and all that :meth:`pairs` reports."""
        found: dict[str, Place] = {}
        for key, place, value in self.pairs(f"known keys: {', '.join(known)}"):
            if key in known:
                found[key] = value
            else:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
                place.report(f"an unknown key ({shorten(key)})", hint)
        return found
