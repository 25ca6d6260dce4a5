"""Find the metrics and labels in a PromQL expression. It handles what the shipped rules and the dashboard use."""

from __future__ import annotations

import re

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_MATCHERS = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|group_left|group_right)\s*\(([^)]*)\)")
_DURATION = re.compile(r"\[[^\]]*\]|\b\d\w*")
_OPERATOR = re.compile(r"\b(?:and|or|unless|offset)\b")
_FUNCTION = re.compile(r"\b\w+(?=\s*\()")
_NAME = re.compile(r"[A-Za-z_:][\w:]*")


def metrics(expression: str) -> set[str]:
    """Return the names of the metrics that are selected."""
    bare = _STRING.sub("", expression)
    for what in (_MATCHERS, _GROUPING, _DURATION):
        bare = what.sub(" ", bare)
    # An operator before a parenthesis looks like a function.
    return set(_NAME.findall(_FUNCTION.sub("", _OPERATOR.sub(",", bare))))


def labels(expression: str) -> set[str]:
    """Return the labels that are matched, grouped by or joined on."""
    bare = _STRING.sub("", expression)
    matched = [name for group in _MATCHERS.findall(bare) for name in re.findall(r"(\w+)\s*[=!]", group)]
    grouped = [name for group in _GROUPING.findall(bare) for name in _NAME.findall(group)]
    return {*matched, *grouped}
