"""Domain rules: what a pattern matches, which rule counts a name, and the rules in the form of the kernel's trie.

Forms of a pattern, by what they match:

- ``example.com``: the name and all below it; ``.`` all names
- ``=example.com``: the name alone
- ``*.example.com``: all below the name
- ``ads*.example.com``, ``*.ads?.example.com``, ``=www.*.example.com``: the same three with wildcards. ``*`` and ``?``
  stay inside their label; a label that is only ``*``, except a leading one that means "below", is any one label.
- ``/expression/``: what the regular expression is found in

Exactly one rule counts a name. Of those that match it, that is the one with the longest literal suffix, the labels
behind the last one with a wildcard. Where the suffix is the same: first ``=name``, then wildcards and regular
expressions in the order of the file, then ``*.name``, then ``name``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from re import _constants as op  # type: ignore[attr-defined]  # typeshed knows these two by their names before 3.11
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.model import DECIDE, NO_RULE, Rule
from dnsprobe.names import wire as qname
from dnsprobe.text import printable, shorten

#: The kernel side has a slot for each id up to this one; 0 is NO_RULE.
MAX_RULE_ID = 65535

#: Wildcards in the characters of a label, where the others are bytes from 0 up.
_ANY_RUN = -1
_ANY_ONE = -2

#: How many wildcards and regular expressions are tried for one outcome of the trie before it is left to user space, so
#: that thousands of names with thousands of expressions do not make millions of trials at each start.
_TRIES = 32


class RuleError(UserError, ValueError):
    """A pattern or a set of rules that cannot be used: what is wrong, with the value, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, EXIT_USAGE)


class Scope(Enum):
    """Which names around those that a pattern describes it matches; the value is how the pattern shows it."""

    ALONE = "="
    BELOW = "*."
    TREE = ""


class Name:
    """A queried name as patterns look at it: ``labels`` in lower case, root left out."""

    __slots__ = ("_text", "labels")

    def __init__(self, labels: Sequence[bytes]) -> None:
        self.labels = labels
        self._text: str | None = None

    @property
    def text(self) -> str:
        r"""The presentation form that regular expressions see: a dot inside a label is ``\046``.

        So each dot in it is the end of a label, and ``/\.example\.com$/`` cannot be met by a label of the form
        ``x\.example`` under ``com``.
        """
        if self._text is None:
            self._text = ".".join([qname.label_text(label).replace("\\.", "\\046") for label in self.labels]) or "."
        return self._text


@dataclass(frozen=True, slots=True)
class Wildcard:
    """A label with ``*`` or ``?``: its bytes in lower case, _ANY_RUN and _ANY_ONE among them.

    No two _ANY_RUN follow each other.
    """

    chars: tuple[int, ...]

    def matches(self, label: bytes) -> bool:
        """Tell whether the whole label matches, in time bounded by the product of the lengths."""
        chars = self.chars
        at = char = 0
        retry_char, retry_at = -1, 0
        while at < len(label):
            if char < len(chars) and chars[char] == _ANY_RUN:
                retry_char, retry_at = char, at
                char += 1
            elif char < len(chars) and chars[char] in (_ANY_ONE, label[at]):
                char += 1
                at += 1
            elif retry_char >= 0:
                # Only the last run needs another length: an earlier one that took more would leave less to the rest.
                retry_at += 1
                char, at = retry_char + 1, retry_at
            else:
                return False
        return all(left == _ANY_RUN for left in chars[char:])


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern; equal to another that means the same in the same form, whatever its case and spelling.

    ``text`` is as it was written; ``suffix`` the literal suffix, a folded name in wire format with its root byte;
    ``depth`` its number of labels; ``front`` the labels before it, left to right, the last one a Wildcard;
    ``expression`` the regular expression, searched in ``Name.text``.
    """

    text: str = field(compare=False)
    scope: Scope
    suffix: bytes
    depth: int
    front: tuple[bytes | Wildcard, ...] = ()
    expression: re.Pattern[str] | None = None

    @property
    def rank(self) -> int:
        """The place among patterns with the same suffix, lowest first; see the precedence above."""
        if self.front or self.expression:
            return 1
        return {Scope.ALONE: 0, Scope.BELOW: 2, Scope.TREE: 3}[self.scope]

    def verdict(self, name: Name, below: bool = False) -> bool | None:
        """Tell whether the pattern matches a name that ends in its suffix.

        With ``below``, tell it for all names strictly below ``name`` at once: None where that depends on the name.
        """
        if self.expression:
            return None if below else self.expression.search(name.text) is not None
        described = len(self.front) + self.depth
        known = len(name.labels)
        rest = name.labels[: known - self.depth]
        for label, wanted in zip(reversed(rest), reversed(self.front), strict=False):
            if label != wanted and not (isinstance(wanted, Wildcard) and wanted.matches(label)):
                return False
        if below:
            if described > known:
                return None
            return self.scope is not Scope.ALONE
        if self.scope is Scope.TREE:
            return known >= described
        return known == described if self.scope is Scope.ALONE else known > described


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that ``text`` describes; raise RuleError, with message and hint, where it describes none."""
    if text.startswith("/"):
        return _parse_expression(text)
    try:
        return _parse_name(text)
    except RuleError:
        raise
    except ValueError as error:
        raise _bad(str(error), text, _hint(text)) from error


def _bad(message: str, text: str, hint: str) -> RuleError:
    return RuleError(f"{message} ({shorten(text)})", hint)


def _hint(text: str) -> str:
    if not text.strip("=*."):
        return "give a domain name, or . for all names"
    if "://" in text:
        return "give the host's name alone"
    if text.lstrip("=").startswith("."):
        return f"for a name and all below it write {shorten(text.strip('=.'))}"
    return "write a name as example.com, =example.com or *.example.com"


def _parse_name(text: str) -> Pattern:
    scope = Scope.ALONE if text.startswith("=") else Scope.TREE
    body = text.removeprefix("=")
    if body.startswith("/"):
        raise ValueError("a regular expression cannot have = before it")
    if "://" in body:
        raise ValueError("an address of a page, not a name")
    labels = [_parse_label(tokens) for tokens in qname.split(body)]
    if scope is Scope.TREE and labels and labels[0] == Wildcard((_ANY_RUN,)):
        scope = Scope.BELOW
        del labels[0]
    cut = max((at for at, label in enumerate(labels, 1) if isinstance(label, Wildcard)), default=0)
    # A name that is too long even with the shortest labels would never match.
    qname.join([_shortest(label) for label in labels])
    literal = [label for label in labels[cut:] if isinstance(label, bytes)]
    return Pattern(text, scope, qname.join(literal), len(literal), tuple(labels[:cut]))


def _parse_label(tokens: Sequence[str]) -> bytes | Wildcard:
    if "*" not in tokens and "?" not in tokens:
        return qname.encode_label(tokens)
    if not "".join(tokens).isascii():
        raise RuleError(
            f"a wildcard in a label that is not ASCII ({shorten(''.join(tokens))})",
            "write the label as it goes over the wire: its xn-- form",
        )
    chars: list[int] = []
    for token in tokens:
        char = {"*": _ANY_RUN, "?": _ANY_ONE}.get(token)
        if char != _ANY_RUN or chars[-1:] != [_ANY_RUN]:
            chars.append(qname.token_byte(token) if char is None else char)
    label = Wildcard(tuple(chars))
    if len(_shortest(label)) > qname.MAX_LABEL:
        raise ValueError(f"a label of {len(_shortest(label))} bytes or more: over {qname.MAX_LABEL}")
    return label


def _shortest(label: bytes | Wildcard) -> bytes:
    if isinstance(label, bytes):
        return label
    return bytes(max(1, sum(char != _ANY_RUN for char in label.chars)))


def _parse_expression(text: str) -> Pattern:
    body = text[1:-1]
    if len(text) < len("//") or not text.endswith("/"):
        raise _bad("a regular expression without / at its end", text, r"write /expression/; a name's own slash is \/")
    if not body:
        raise _bad("an empty regular expression", text, "for all names write .")
    try:
        with warnings.catch_warnings():
            # What re warns of, such as [[:alpha:]], it takes for something else than was meant.
            warnings.simplefilter("error")
            expression = re.compile(body, re.IGNORECASE)
            suffix = _literal_suffix(body)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        message = f"not a regular expression: {printable(str(error))}"
        raise _bad(message, text, "the syntax is that of Python's re module") from error
    return Pattern(text, Scope.TREE, suffix, len(qname.wire_labels(suffix)), (), expression)


_ENDS = ((op.AT, op.AT_END), (op.AT, op.AT_END_STRING))
_BEGINS = ((op.AT, op.AT_BEGINNING), (op.AT, op.AT_BEGINNING_STRING))
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)


def _literal_suffix(body: str) -> bytes:
    """Return a folded name in wire format that every name the expression is found in ends in: the root where in doubt.

    That is what stands literally between a label boundary and a ``$`` at the end. It relies on ``Name.text``, where
    each dot is a boundary.
    """
    tree = _parser.parse(body, re.IGNORECASE)
    # Under other flags $ may be the end of a line, or a space nothing at all.
    if tree.state.flags != re.IGNORECASE | re.UNICODE:
        return qname.ROOT
    items = list(_flatten(tree))
    if not items or items[-1] not in _ENDS:
        return qname.ROOT
    while items and items[-1] in _ENDS:
        items.pop()
    literal: list[str] = []
    # Beyond ASCII there are letters that match another one when case is ignored: U+017F is found in "s".
    while items and items[-1][0] is op.LITERAL and items[-1][1] < 0x80:
        literal.append(chr(items.pop()[1]))
    text = "".join(reversed(literal))
    if not _at_boundary(items, False):
        text = text.partition(".")[2]
    try:
        return qname.from_text(text) if text else qname.ROOT
    except ValueError:  # it is no name, so nothing is below it
        return qname.ROOT


def _flatten(items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield a parse tree's sequence with the groups in it dissolved, those with flags of their own left out of this."""
    for code, value in items:
        if code is op.SUBPATTERN and not value[1] and not value[2]:
            yield from _flatten(value[3])
        else:
            yield code, value


def _at_boundary(items: Sequence[tuple[Any, Any]], before: bool) -> bool:
    """Tell whether a label begins wherever ``items`` ends to match; ``before``: whether one does where it begins to."""
    if not items:
        return before
    code, value = items[-1]
    if items[-1] in _BEGINS or items[-1] == (op.LITERAL, ord(".")):
        return True
    if code is op.BRANCH:
        before = _at_boundary(items[:-1], before)
        return all(_at_boundary(list(_flatten(branch)), before) for branch in value[1])
    if code in _REPEATS:
        least, _, repeated = value
        before = _at_boundary(items[:-1], before)
        return (least > 0 or before) and _at_boundary(list(_flatten(repeated)), before)
    return False


@dataclass(frozen=True, slots=True)
class TrieEntry:
    """What a suffix says of a name that equals it (``at``) and of those below it (``below``): ``struct outcome``.

    ``suffix`` is in wire format, lower case, root byte included; ``labels`` does not count the root. An outcome is a
    rule's id, NO_RULE or DECIDE.
    """

    suffix: bytes
    labels: int
    at: int
    below: int


class RuleSet:
    """The rules in force: which one counts a name, and what the kernel gets to decide that by itself.

    ``rules`` are in the order of the configuration, ``by_id`` the same by their ids. ``next_id`` is where the search
    for the ids of new rules begins.
    """

    def __init__(self, rules: Sequence[tuple[Rule, Pattern]], next_id: int) -> None:
        self.rules: tuple[Rule, ...] = tuple(rule for rule, _ in rules)
        self.by_id: Mapping[int, Rule] = {rule.id: rule for rule in self.rules}
        self.next_id = next_id
        self._ids = {(rule.name, pattern): rule.id for rule, pattern in rules}
        self._groups: dict[bytes, list[tuple[Pattern, Rule]]] = {}
        # Sorting is stable: conditional patterns stay in the order of the file.
        for rule, pattern in sorted(rules, key=lambda item: item[1].rank):
            self._groups.setdefault(pattern.suffix, []).append((pattern, rule))

    @classmethod
    def build(
        cls,
        specs: Iterable[tuple[str, str, int]],
        previous: RuleSet | None = None,
        reserved: Collection[int] = (),
    ) -> RuleSet:
        """Return the rules for ``specs``: name, pattern and priority each; none at all means one rule for all names.

        A rule with name and pattern of one in ``previous`` keeps its id. The others get ids from 1 to MAX_RULE_ID that
        neither ``previous`` nor ``reserved`` has. Raises RuleError for a bad pattern, two rules of one name or one
        pattern, and more rules than there are ids.
        """
        parsed = [(name, parse_pattern(text), priority) for name, text, priority in specs]
        parsed = parsed or [(".", parse_pattern("."), 6)]
        names: set[str] = set()
        patterns: set[Pattern] = set()
        for name, pattern, _ in parsed:
            if pattern in patterns:
                raise _bad("two rules of the same pattern", pattern.text, "remove one of them")
            if name in names:
                raise _bad("two rules of the same name", name, "give one of them another name")
            names.add(name)
            patterns.add(pattern)

        kept = previous._ids if previous else {}
        next_id = previous.next_id if previous else 1
        new_ids = _free_ids(next_id, {*kept.values(), *reserved})
        rules = []
        for name, pattern, priority in parsed:
            rule_id = kept.get((name, pattern))
            if rule_id is None:
                rule_id = next(new_ids, None)
                if rule_id is None:
                    raise RuleError(f"too many rules ({len(parsed)})", f"{MAX_RULE_ID} can be told apart at a time")
                next_id = rule_id % MAX_RULE_ID + 1
            rules.append((Rule(rule_id, name, pattern.text, priority), pattern))
        return cls(rules, next_id)

    def match(self, wire: bytes) -> Rule | None:
        """Return the rule that counts a name in wire format, folded to lower case; None where no rule matches.

        Raises ValueError for what is not a name in wire format.
        """
        return self.by_id.get(self._decide(wire, below=False, tries=len(self.rules)))

    def trie(self) -> list[TrieEntry]:
        """Return one entry for each distinct literal suffix; the longest one that a name ends in has its outcome."""
        return [
            TrieEntry(
                suffix,
                group[0][0].depth,
                self._decide(suffix, below=False, tries=_TRIES),
                self._decide(suffix, below=True, tries=_TRIES),
            )
            for suffix, group in self._groups.items()
        ]

    def _decide(self, wire: bytes, *, below: bool, tries: int) -> int:
        """Return the outcome for a name, or for those below it that end in no longer suffix of a rule.

        DECIDE where it depends on the name below, or would take more than ``tries`` wildcards and expressions.
        """
        name = Name(qname.wire_labels(wire))
        at = 0
        for label in (*name.labels, b""):
            for pattern, rule in self._groups.get(wire[at:], ()):
                tries -= pattern.rank == 1
                verdict = pattern.verdict(name, below) if tries >= 0 else None
                if verdict is None:
                    return DECIDE
                if verdict:
                    return rule.id
            at += 1 + len(label)
        return NO_RULE


def _free_ids(first: int, taken: Collection[int]) -> Iterator[int]:
    """Yield ids from ``first`` up and around: those of rules that are gone come back as late as possible."""
    for step in range(MAX_RULE_ID):
        candidate = (first - 1 + step) % MAX_RULE_ID + 1
        if candidate not in taken:
            yield candidate
