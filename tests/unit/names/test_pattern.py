"""Patterns: how they are parsed, their literal suffixes, and how wildcards match."""

from __future__ import annotations

import fnmatch
import itertools
import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.names.pattern import Name, RuleError, Wildcard, parse_pattern
from dnsprobe.names.wire import fold, from_labels, from_text, to_labels, to_text


def suffix(pattern: str) -> str:
    return to_text(parse_pattern(pattern).suffix)


@pytest.mark.parametrize(
    ("pattern", "message", "hint"),
    [
        ("", "an empty name ()", "for all names"),
        ("=", "an empty name (=)", "for all names"),
        ("..", "an empty label", "for all names"),
        ("*..", "an empty label", "for all names"),
        (".example.com", "an empty label", "write example.com"),
        ("=.example.com", "an empty label", "write example.com"),
        ("a..b", "an empty label: two dots in a row, or a dot at the start (a..b)", "=example.com"),
        ("a b", "' ' in a label", "example.com"),
        ("https://example.com/", "a URL, not a name", "only the name of the host"),
        ("\\300", "a bad escape", "example.com"),
        (64 * "x", "a label of 64 bytes", "example.com"),
        ("*" + 64 * "x", "a label of at least 64 bytes", "example.com"),
        (64 * "?", "a label of at least 64 bytes", "example.com"),
        (".".join(128 * ["*x"]), "a name of 257 bytes", "example.com"),
        ("bü*.example", "a wildcard in a label that is not ASCII (bü*)", "xn--"),
        ("_ü.example", "not a valid international label", "example.com"),
        ("a *", "' ' in a label", "example.com"),
        ("=/x/", "a regular expression cannot have = before it", ""),
        ("/", "a regular expression without / at its end (/)", r"\/"),
        ("/x", "a regular expression without / at its end (/x)", r"\/"),
        ("//", "an empty regular expression (//)", "for all names"),
        ("/(/", "not a regular expression: missing )", "Python's re"),
        ("/[/", "not a regular expression: unterminated character set", "Python's re"),
        ("/x(?i)/", "not a regular expression: global flags", "Python's re"),
        ("/a{99999999999}/", "not a regular expression", "Python's re"),
        ("/[[:alpha:]]/", "not a regular expression: Possible nested set", "Python's re"),
        ("/" + 5000 * "(" + 5000 * ")" + "/", "not a regular expression", "Python's re"),
    ],
)
def test_a_bad_pattern_is_an_error_with_a_hint(pattern: str, message: str, hint: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_pattern(pattern)
    error = caught.value
    assert isinstance(error, ValueError)
    assert isinstance(error, UserError)
    assert message in error.message
    assert hint in error.hint
    assert error.status == EXIT_USAGE
    assert error.message.isprintable()
    assert len(error.message) < 400


@given(st.text(max_size=40) | st.text("a.*?=/\\0129 [](){}^$|ü", max_size=20))
def test_parse_pattern_takes_a_pattern_or_raises_rule_error(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except RuleError as error:
        message, hint = error.message, error.hint
    else:
        message = hint = "none"
        assert pattern.depth == len(to_labels(pattern.suffix))
        assert pattern.suffix == fold(pattern.suffix)
    assert message.isprintable()
    assert hint


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("example.com", "example.com"),
        ("*.Example.com", "example.com"),
        ("ads*.example.com", "example.com"),
        ("www.*.example.com", "example.com"),
        ("ads*.*", "."),
        ("*", "."),
        (".", "."),
        # A literal tail behind a dot.
        (r"/\.example\.com$/", "example.com"),
        (r"/\.EXAMPLE\.com$/", "example.com"),
        (r"/\.example\.com\Z/", "example.com"),
        (r"/^x[0-9]+\.example\.com$/", "example.com"),
        (r"/^(ads|track)[0-9]*\.example\.com$/", "example.com"),
        (r"/^((a|b)|c[|(])d\.example\.com$/", "example.com"),
        (r"/[]|(]\.example\.com$/", "example.com"),
        (r"/[^]|(]\|\.example\.com$/", "example.com"),
        (r"/(?:a|(?=b)|(?<=c)|(?P<d>e)|(?P=d))\.example\.com$/", "example.com"),
        (r"/\._tcp\.a-b\.x1$/", "_tcp.a-b.x1"),
        (r"/example\.com$/", "com"),
        (r"/com$/", "."),
        # The start of the name, or either the start or a dot.
        (r"/^example\.com$/", "example.com"),
        (r"/^com$/", "com"),
        (r"/(^|\.)example\.com$/", "example.com"),
        (r"/(?:^|\.)example\.com$/", "example.com"),
        (r"/\^example\.com$/", "com"),
        (r"/^x(^|\.)example\.com$/", "example.com"),
        (r"/(^|\.)(^|\.)example\.com$/", "example.com"),
        (r"/^(.*\.)?example\.com$/", "example.com"),
        (r"/^(?:.+\.)*example\.com$/", "example.com"),
        (r"/(.*\.)?example\.com$/", "com"),
        (r"/x^(.*\.)?example\.com$/", "com"),
        (r"/^(.*\.)example\.com$/", "com"),
        (r"/([a-z]+\.)+example\.com$/", "com"),
        (r"/(a|b)example\.com$/", "com"),
        (r"/(\(^|\.)example\.com$/", "com"),
        # Backslashes that do not escape a dot.
        (r"/\\.example\.com$/", "com"),
        (r"/\\\.example\.com$/", "example.com"),
        (r"/\\\\.example\.com$/", "com"),
        (r"/\.\dexample\.com$/", "com"),
        (r"/\.example\.\d$/", "."),
        (r"/\.example\.com\$/", "."),
        (r"/\.example\.com\\$/", "."),
        (r"/\.example.com$/", "."),
        (r"/\.example[.]com$/", "."),
        # Quantifiers.
        (r"/\.examplex*\.com$/", "com"),
        (r"/\.example\.com?$/", "."),
        (r"/\.example\.com{0}$/", "."),
        (r"/\.example\.com(?:$)?/", "."),
        (r"/\.example\.(?:com)?$/", "."),
        (r"/\.*com$/", "."),
        (r"/(^|\.)?com$/", "."),
        # No end of the name behind the literal.
        (r"/\.com/", "."),
        (r"/\.com$x?/", "."),
        (r"/\.com$$/", "."),
        (r"/\.com\.$/", "."),
        (r"/\.example\.com(?=x|$)/", "."),
        (r"/(?:\.example\.com$)/", "."),
        (r"/[\.example\.com$]/", "."),
        (r"/(?#\.example\.com$)/", "."),
        # Alternatives.
        (r"/\.com$|\.org$/", "."),
        (r"/a|b\.example\.com$/", "."),
        (r"/|\.example\.com$/", "."),
        (r"/a\(|b\.example\.com$/", "."),
        (r"/[(]|b\.example\.com$/", "."),
        (r"/[](]|b\.example\.com$/", "."),
        (r"/[^](]|b\.example\.com$/", "."),
        (r"/[\](]|b\.example\.com$/", "."),
        (r"/(a\)|b)|c\.example\.com$/", "."),
        (r"/a|^\.example\.com$/", "."),
        (r"/a|(^|\.)example\.com$/", "."),
        (r"/\.(com|org)$/", "."),
        # Flags, comments and conditions.
        (r"/(?i)\.example\.com$/", "."),
        (r"/(?m)\.example\.com$/", "."),
        (r"/(?s)\.example\.com$/", "."),
        (r"/(?x)a#\.example\.com$/", "."),
        (r"/(?x)\.example\. com$/", "."),
        ("/(?x:a#(\n)|b\\.example\\.com$/", "."),
        (r"/(?#()a|b\.example\.com$/", "."),
        (r"/(?#[)a|b]\.example\.com$/", "."),
        (r"/(a)?(?(1)b|c)\.example\.com$/", "."),
        (r"/(?-i:\.example)\.com$/", "."),
        # Names that are impossible.
        ("/\\.\u017fhop\\.com$/", "com"),
        ("/\\.example\\.\u017f$/", "."),
        (r"/\.a b\.com$/", "com"),
        (r"/\.a\\032b\.com$/", "com"),
        ("/\\." + 64 * "x" + "$/", "."),
        ("/\\." + 127 * "xy\\." + "xy$/", "."),
        (r"/\.$/", "."),
        (r"/\.\.com$/", "com"),
        (r"/$/", "."),
        (r"/^$/", "."),
        (r"/^\.$/", "."),
    ],
)
def test_the_suffix_is_the_literal_end_of_a_pattern(pattern: str, expected: str) -> None:
    assert suffix(pattern) == expected


label_bytes = st.sampled_from(
    [b"a", b"b", b"ab", b"x1", b"s", b"k", b".", b"a.b", b"\\", b"a\\", b"\\.", b'"', b" ", b"046"]
)
odd_names = st.lists(label_bytes, max_size=5)
pieces = st.sampled_from(
    [
        "a",
        "b",
        "s",
        "1",
        ".",
        r"\.",
        r"\\",
        r"\\.",
        "^",
        "$",
        r"\Z",
        r"\A",
        r"\b",
        "[ab]",
        "[^.]",
        ".*",
        "",
        r"\\046",
        "\u017f",
    ]
)
bounded = st.sampled_from(["?", "{2}", "{0,1}", "{1,2}?", "?+"])
# An unbounded repeat inside another repeat could take exponential time.
simple = st.lists(st.sampled_from(["a", "b", ".", r"\.", "[^.]", "^", r"\\"]), min_size=1, max_size=2).map("".join)
unbounded = st.tuples(simple, st.sampled_from(["*", "+", "*?", "++"])).map(lambda two: f"(?:{two[0]}){two[1]}")
expressions = st.recursive(
    pieces | unbounded,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, bounded).map(lambda two: f"(?:{two[0]}){two[1]}"),
        inner.map(lambda one: f"(?={one})"),
        inner.map(lambda one: f"(?!{one})"),
        inner.map(lambda one: f"(?i:{one})"),
    ),
    max_leaves=6,
)
tokens = [r"\.", "\\", "(", ")", "[", "]", "|", "^", "$", "?", "*", "{2}", "(?x)", "(?m)", "(?:", "(?x:", "(?#", "(?="]
raw = st.lists(st.sampled_from([*tokens, "#", "\n", "-", "(^|\\.)", "^(.*\\.)?", "a", "b", ".", "x"]), max_size=9)
endings = st.sampled_from(["", "$", r"a\.b$", r"\.a$", r"\.a\.b$", r"\.x1\.ab$", r"\\\.a$", r"\\a$", r"\.\\$", r"b\Z"])
#: If any name matches a short expression, probably one of these does.
SHORT_NAMES = [
    list(labels)
    for depth in range(4)
    for labels in itertools.product(
        [b"a", b"b", b"xa", b"x", b"a.b", b"(", b"|", b"\\", b"-"][: 11 - 2 * depth], repeat=depth
    )
]


@settings(max_examples=1000, deadline=None)
@given(st.tuples(expressions | raw.map("".join), endings).map("".join), st.lists(odd_names, max_size=5))
@example(r"\.a\.b$", [[b"x.a", b"b"], [b"x\\.a", b"b"]])
@example(r"(^|\.)a$", [[b"a"], [b"b.a"], [b"b\\", b"a"]])
@example(r"(?#()x|b\.a$", [])
@example("(?x:x#(\n)|b\\.a$", [])
@example(r"(?x)x#\.a$", [])
def test_every_name_that_an_expression_matches_ends_in_the_literal_suffix(body: str, names: list[list[bytes]]) -> None:
    try:
        pattern = parse_pattern(f"/{body}/")
    except RuleError:
        return
    suffix_labels = list(to_labels(pattern.suffix))
    # The last two are likely to match: the suffix, whole or without its first label, below another name.
    candidates = [
        *SHORT_NAMES,
        *names,
        *(name + suffix_labels for name in names),
        *(name + suffix_labels[1:] for name in names),
    ]
    for labels in candidates if suffix_labels else ():
        if re.search(body, Name(labels).text, re.IGNORECASE):
            assert labels[len(labels) - len(suffix_labels) :] == suffix_labels


@given(st.lists(label_bytes, max_size=4))
def test_each_dot_for_an_expression_is_between_labels(labels: list[bytes]) -> None:
    text = Name(labels).text
    assert text == "." if not labels else text.count(".") == len(labels) - 1
    assert from_text(text) == from_labels(labels)


@given(st.text("ab*?", max_size=8), st.text("ab", min_size=1, max_size=8))
@example("*a*a*a*b", 63 * "a")
def test_wildcards_match_as_in_file_names(glob: str, label: str) -> None:
    collapsed = re.sub(r"\*+", "*", glob)
    chars = tuple({"*": -1, "?": -2}.get(char, ord(char)) for char in collapsed)
    assert Wildcard(chars).matches(label.encode()) == fnmatch.fnmatchcase(label, collapsed)


def test_wildcards_take_no_exponential_time() -> None:
    label = parse_pattern("=" + 31 * "*a" + "b").front[0]
    assert isinstance(label, Wildcard)
    # An algorithm with exponential time would not end.
    assert not label.matches(63 * b"a")


# Literal texts of regular expressions


@pytest.mark.parametrize(
    ("expression", "literals"),
    [
        (r"ads.*track.*pixel.*\.f\.test$", ("ads", "track", "pixel", ".f.test")),
        (r"(^|\.)(ads?|track(er|ing)?)[0-9]*\.", ()),
        (r"a(b|c)defg?h", ("def",)),
        (r"ab{2}cd", ("cd",)),
        (r"(ab){12}cd", ("cd",)),
        (r"ab{cd", ("ab", "cd")),
        (r"foo|bar", ()),
        (r"[|]xy\|zz", ("xy", "zz")),
        (r"\[abc(d[)]e)fgh", ("abc", "fgh")),
        (r"(?:abc)?XYZ", ("xyz",)),
        (r"(?x)ab cd", ()),
        (r"\x61bc", ()),
        (r"(a)\1bcd", ()),
        ("straße", ("stra",)),
    ],
)
def test_literals_that_each_match_has(expression: str, literals: tuple[str, ...]) -> None:
    assert parse_pattern(f"/{expression}/").literals == literals


PARTS = ["ab", "a", "b", "cd", ".", "*", "+", "?", "{2}", "{1,3}", "{12}", "{", "}", "(", "(?:", "(?=", "(?!", ")", "|"]
PARTS += ["[", "[^", "]", r"\.", r"\-", r"\d", r"\w", r"\\", r"\x61", r"\1", "^", "$", "-", "12", r"\b", "{,2}", r"\("]


def test_literals_are_in_each_text_in_which_an_expression_is_found() -> None:
    rng = random.Random(21)
    found = 0
    for _ in range(40_000):
        text = "".join(rng.choice(PARTS) for _ in range(rng.randint(1, 8)))
        try:
            pattern = parse_pattern(f"/{text}/")
        except RuleError:
            continue
        assert pattern.expression
        for _ in range(4):
            name = "".join(rng.choice("abcd.-12") for _ in range(rng.randint(0, 12)))
            if pattern.literals and pattern.expression.search(name):
                found += 1
                assert all(literal in name for literal in pattern.literals), (text, name)
    assert found > 100
