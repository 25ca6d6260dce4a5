"""Domain patterns: how they are parsed, and which names they match.

The forms of a pattern:

- ``example.com`` matches the name and all names below it; ``.`` matches all names.
- ``=example.com`` matches only the name.
- ``*.example.com`` matches all names below the name.
- ``ads*.example.com``, ``*.ads?.example.com`` and ``=www.*.example.com`` are the same three forms with wildcards. ``*``
  and ``?`` do not cross a dot. A label that is only ``*`` matches any one label; a leading ``*.`` means "below".
- ``/expression/`` matches each name in which the regular expression is found.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.names.wire import (
    MAX_LABEL,
    ROOT,
    encode_label,
    from_labels,
    from_text,
    label_text,
    split_labels,
    to_labels,
    token_byte,
)
from dnsprobe.text import printable, shorten

#: Wildcards among the bytes of a label: ``*`` and ``?``.
_ANY_RUN = -1
_ANY_ONE = -2

#: A literal name at the end of an expression: labels of letters, digits, ``_`` and ``-``, then ``$``. The part
#: before it ensures that a label begins there: it matches the start of the name, a dot, or either of the two.
_LITERAL_TAIL = re.compile(
    r"""
    (?: ^\^                                     # ^
      | ^\^ \( (?:\?:)? \.[*+] \\\. \) [?*]     # ^(.*\.)?
      | (?<!\\) (?:\\\\)* \\\.                  # \. that is not the end of \\ and a dot
      | (?<!\\) \( (?:\?:)? \^\|\\\. \)         # (^|\.)
    )
    ( [a-z0-9_-]+ (?: \\\. [a-z0-9_-]+ )* )
    (?: \$ | \\Z ) \Z
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
#: Groups that can change the meaning of what follows: flags such as ``(?x)``, comments and conditions.
_UNUSUAL_GROUP = re.compile(r"\(\?[^:=!<>P]")
_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_INNERMOST_GROUP = re.compile(r"\([^()]*\)")
#: A part of an expression: a literal character, a class or other escape, or any other character; its quantifier.
_TOKEN = re.compile(
    r"""
    (?: (?P<literal> [a-z0-9_-] | \\[.-] ) | \\. | \[\^?\]?(?:\\.|[^\]\\])*\] | . )
    (?P<quantifier> [*+?] | \{[0-9]*,?[0-9]*\} )?
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII | re.DOTALL,
)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{[0-9]*,?[0-9]*\})*")
#: Escapes that go on behind their first character: a character by its number or name, and a group by its number.
_LONG_ESCAPE = re.compile(r"\\[xuUN0-9]")
#: Shorter texts are in too many names.
_SHORTEST_LITERAL = 2


class RuleError(UserError, ValueError):
    """A pattern or a list of rules that cannot be used: what is wrong, with the value, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, EXIT_USAGE)


class Scope(Enum):
    """Which names a pattern matches, relative to the name in the pattern; the value is the prefix before that name."""

    ALONE = "="
    BELOW = "*."
    TREE = ""


class Name:
    """A queried name as patterns see it: ``labels`` in lower case, without the root's empty label."""

    __slots__ = ("_text", "labels")

    def __init__(self, labels: Sequence[bytes]) -> None:
        self.labels = labels
        self._text: str | None = None

    @property
    def text(self) -> str:
        r"""The presentation form for regular expressions. A dot inside a label is ``\046``, so each dot ends a label.

        Otherwise ``/\.example\.com$/`` would be found in a name under ``com`` whose label is ``x\.example``.
        """
        if self._text is None:
            self._text = ".".join([label_text(label).replace("\\.", "\\046") for label in self.labels]) or "."
        return self._text


@dataclass(frozen=True, slots=True)
class Wildcard:
    """A label with ``*`` or ``?``: its bytes in lower case, with _ANY_RUN and _ANY_ONE between them.

    No two _ANY_RUN are neighbours.
    """

    chars: tuple[int, ...]

    def matches(self, label: bytes) -> bool:
        """Return whether the whole label matches; the time is at most proportional to the product of the lengths."""
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
                # Only the last run needs another length: a longer earlier run would leave less for the rest.
                retry_at += 1
                char, at = retry_char + 1, retry_at
            else:
                return False
        return all(left == _ANY_RUN for left in chars[char:])


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern. Two patterns are equal if form and meaning are the same; case and spelling do not matter.

    ``text`` is the pattern as it was written. ``suffix`` is the literal suffix: a name in wire format, in lower case,
    with its root byte, in which every matching name ends. ``depth`` is the number of labels in ``suffix``. ``front``
    has the labels before the suffix, left to right; the last one is a Wildcard. ``expression`` is the regular
    expression, searched in ``Name.text``. ``literals`` are texts that each name has in which it is found: looking for
    them takes a tenth of the time, and most names have none of them.
    """

    text: str = field(compare=False)
    scope: Scope
    suffix: bytes
    depth: int
    front: tuple[bytes | Wildcard, ...] = ()
    expression: re.Pattern[str] | None = None
    literals: tuple[str, ...] = field(default=(), compare=False)

    @property
    def conditional(self) -> bool:
        """True for wildcards and regular expressions: the literal suffix does not decide."""
        return bool(self.front or self.expression)

    @property
    def rank(self) -> int:
        """The place among patterns with the same suffix: the matching one with the lowest rank counts the name."""
        if self.conditional:
            return 1
        return {Scope.ALONE: 0, Scope.BELOW: 2, Scope.TREE: 3}[self.scope]

    def matches(self, name: Name) -> bool:
        """Return whether the pattern matches a name that ends in its suffix."""
        if self.expression:
            text = name.text
            return all(literal in text for literal in self.literals) and self.expression.search(text) is not None
        if not self._front_matches(name):
            return False
        described, labels = len(self.front) + self.depth, len(name.labels)
        if self.scope is Scope.TREE:
            return labels >= described
        return labels == described if self.scope is Scope.ALONE else labels > described

    def matches_below(self, name: Name) -> bool | None:
        """Return whether the pattern matches all names below ``name``, or none of them; None if it depends on the name.

        ``name`` ends in the pattern's suffix. ``name`` itself does not count.
        """
        if self.expression:
            return None
        if not self._front_matches(name):
            return False
        if len(self.front) + self.depth > len(name.labels):
            return None
        return self.scope is not Scope.ALONE

    def _front_matches(self, name: Name) -> bool:
        """Return whether the labels before the suffix match, as far as both the name and the pattern have them."""
        rest = name.labels[: len(name.labels) - self.depth]
        return all(
            label == wanted or (isinstance(wanted, Wildcard) and wanted.matches(label))
            for label, wanted in zip(reversed(rest), reversed(self.front), strict=False)
        )


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that ``text`` describes; raise RuleError, with message and hint, if it is not a pattern."""
    if text.startswith("/"):
        return _parse_expression(text)
    try:
        return _parse_name(text)
    except RuleError:
        raise
    except ValueError as error:
        raise pattern_error(str(error), text, _hint(text)) from error


def pattern_error(message: str, text: str, hint: str) -> RuleError:
    """Return an error that shows the wrong value behind its message."""
    return RuleError(f"{message} ({shorten(text)})", hint)


def _hint(text: str) -> str:
    if not text.strip("=*."):
        return "give a domain name, or . for all names"
    if "://" in text:
        return "give only the name of the host"
    if text.lstrip("=").startswith("."):
        return f"for a name and all names below it write {shorten(text.strip('=.'))}"
    return "write a name as example.com, =example.com or *.example.com"


def _parse_name(text: str) -> Pattern:
    scope = Scope.ALONE if text.startswith("=") else Scope.TREE
    body = text.removeprefix("=")
    if body.startswith("/"):
        raise ValueError("a regular expression cannot have = before it")
    if "://" in body:
        raise ValueError("a URL, not a name")
    labels = [_parse_label(tokens) for tokens in split_labels(body)]
    if scope is Scope.TREE and labels and labels[0] == Wildcard((_ANY_RUN,)):
        scope = Scope.BELOW
        del labels[0]
    cut = max((at for at, label in enumerate(labels, 1) if isinstance(label, Wildcard)), default=0)
    # This raises ValueError if the name is too long even with the shortest labels: it would never match.
    from_labels([_shortest(label) for label in labels])
    literal = [label for label in labels[cut:] if isinstance(label, bytes)]
    return Pattern(text, scope, from_labels(literal), len(literal), tuple(labels[:cut]))


def _parse_label(tokens: Sequence[str]) -> bytes | Wildcard:
    if "*" not in tokens and "?" not in tokens:
        return encode_label(tokens)
    if not "".join(tokens).isascii():
        raise RuleError(
            f"a wildcard in a label that is not ASCII ({shorten(''.join(tokens))})",
            "write the label in its xn-- form",
        )
    chars: list[int] = []
    for token in tokens:
        char = {"*": _ANY_RUN, "?": _ANY_ONE}.get(token)
        if char != _ANY_RUN or chars[-1:] != [_ANY_RUN]:
            chars.append(token_byte(token) if char is None else char)
    label = Wildcard(tuple(chars))
    if len(_shortest(label)) > MAX_LABEL:
        raise ValueError(f"a label of at least {len(_shortest(label))} bytes, the limit is {MAX_LABEL}")
    return label


def _shortest(label: bytes | Wildcard) -> bytes:
    """Return a label of the smallest length that matches."""
    if isinstance(label, bytes):
        return label
    return bytes(max(1, sum(char != _ANY_RUN for char in label.chars)))


def _parse_expression(text: str) -> Pattern:
    body = text[1:-1]
    if len(text) < len("//") or not text.endswith("/"):
        hint = r"write /expression/; in a name, write / as \/"
        raise pattern_error("a regular expression without / at its end", text, hint)
    if not body:
        raise pattern_error("an empty regular expression", text, "for all names write .")
    try:
        with warnings.catch_warnings():
            # If re warns, as it does about [[:alpha:]], the expression does not mean what the user expects.
            warnings.simplefilter("error")
            expression = re.compile(body, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        message = f"not a regular expression: {printable(str(error))}"
        raise pattern_error(message, text, "use the syntax of Python's re module") from error
    suffix = _literal_suffix(body)
    return Pattern(text, Scope.TREE, suffix, len(to_labels(suffix)), (), expression, _required_literals(body))


def _literal_suffix(body: str) -> bytes:
    r"""Return a suffix of all names that a valid expression can match: its literal tail, or the root.

    The tail is valid only if every match must contain it. So an expression with an alternative to the tail gets the
    root, which is always right, and so does one with flags, a comment or a condition before the tail. The tail itself
    is never inside a class, a group or a comment: that would need a ``]`` or ``)`` behind it, but it ends the
    expression.
    """
    tail = _LITERAL_TAIL.search(body)
    if tail is None:
        return ROOT
    head = body[: tail.start()]
    if _UNUSUAL_GROUP.search(head) or _has_outer_alternative(head):
        return ROOT
    try:
        return from_text(tail[1].replace("\\", ""))
    except ValueError:  # A label or a name over the limits: no name ends in it.
        return ROOT


def _has_outer_alternative(head: str) -> bool:
    """Return whether a part of an expression has ``|`` outside of all groups and classes."""
    rest = _ESCAPE_OR_CLASS.sub("", head)
    while (less := _INNERMOST_GROUP.sub("", rest)) != rest:
        rest = less
    return "|" in rest


def _required_literals(body: str) -> tuple[str, ...]:
    """Return texts, in lower case, that each name has in which a valid expression can be found; none if in doubt.

    They are the runs of letters, digits, ``_``, ``-`` and escaped dots outside of all groups and classes. A character
    with a quantifier ends a run and does not belong to it, even if the quantifier is ``+``.
    """
    if _UNUSUAL_GROUP.search(body) or _LONG_ESCAPE.search(body) or _has_outer_alternative(body):
        return ()
    runs = [""]
    at = 0
    while at < len(body):
        if body[at] == "(":
            runs.append("")
            at = _end_of_group(body, at)
            continue
        token = _TOKEN.match(body, at)
        assert token, "the last alternative is any character"
        if token["literal"] and not token["quantifier"]:
            runs[-1] += token["literal"].removeprefix("\\").lower()
        else:
            runs.append("")
        at = token.end()
    return tuple(dict.fromkeys(run for run in runs if len(run) >= _SHORTEST_LITERAL))


def _end_of_group(body: str, at: int) -> int:
    """Return the end of the group that begins at a place of a valid expression, with its quantifier."""
    depth = 0
    while at < len(body):
        if skipped := _ESCAPE_OR_CLASS.match(body, at):
            at = skipped.end()
            continue
        depth += {"(": 1, ")": -1}.get(body[at], 0)
        at += 1
        if depth == 0:
            break
    quantifier = _QUANTIFIER.match(body, at)
    return quantifier.end() if quantifier else at
