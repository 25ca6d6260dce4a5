"""Domain rules: what a pattern matches, which rule counts a name, the trie, and the ids."""

from __future__ import annotations

import fnmatch
import random
import re
import sys
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsprobe.model import DECIDE, NO_RULE, Rule
from dnsprobe.names.pattern import RuleError, Scope, parse_pattern
from dnsprobe.names.ruleset import MAX_RULE_ID, RuleSet, TrieEntry
from dnsprobe.names.wire import from_text, to_labels, to_text


def rules(*patterns: str) -> RuleSet:
    return RuleSet.build([(pattern, pattern, 6) for pattern in patterns])


def counted_by(ruleset: RuleSet, name: str) -> str | None:
    rule = ruleset.match(from_text(name))
    return rule.pattern if rule else None


def walk(entries: Sequence[TrieEntry], wire: bytes) -> int:
    """Look a name up in the trie as the kernel does: the longest suffix that ends on a label boundary."""
    by_suffix = {entry.suffix: entry for entry in entries}
    at = 0
    while (entry := by_suffix.get(wire[at:])) is None:
        if wire[at] == 0:
            return NO_RULE
        at += 1 + wire[at]
    return entry.below if at else entry.at


MATCHES = [
    ("example.com", "example.com www.example.com a.b.example.com", "com xexample.com example.com.org ."),
    ("EXAMPLE.com.", "example.com", "example.org"),
    ("=example.com", "example.com", "www.example.com com ."),
    ("*.example.com", "www.example.com a.b.example.com", "example.com xexample.com"),
    (".", ". com a.b.c", ""),
    ("=.", ".", "com a.b"),
    ("*.", "com a.b", "."),
    ("*", "com a.b", "."),
    ("=*", "com", ". a.b"),
    (
        "ads*.example.com",
        "ads.example.com ads7.example.com x.ads7.example.com",
        "example.com x.example.com bads.example.com",
    ),
    ("*tracker*.example", "tracker.example xtrackerx.example a.tracker.example", "example tracker.x.example tracker"),
    ("a?c.example", "abc.example a-c.example x.abc.example", "ac.example abbc.example"),
    ("a*b*c", "abc aXbXc abcbc x.abc", "ab acb"),
    ("=ads*.example.com", "ads1.example.com", "x.ads1.example.com example.com"),
    ("*.ads*.example.com", "x.ads1.example.com y.x.ads.example.com", "ads1.example.com x.example.com"),
    ("=*.example.com", "www.example.com", "example.com a.b.example.com"),
    ("www.*.example.com", "www.a.example.com x.www.a.example.com", "www.example.com www.a.b.example.com"),
    ("*.*.example.com", "a.b.example.com a.b.c.example.com", "a.example.com example.com"),
    ("**.example.com", "www.example.com", "example.com"),
    ("ads*.*", "ads1.com ads.org x.ads.org", "ads1 com x.com"),
    (r"\*.example.com", r"\*.example.com x.\*.example.com", "www.example.com example.com"),
    (r"a\*b", r"a\*b", "axb ab"),
    (r"a\?*", r"a?b a?", "axb"),
    (r"\=example", r"=example", "example"),
    (r"\/x/", r"/x/", "x"),
    (r"a\.b.c", r"a\.b.c", "a.b.c b.c"),
    (r"a\.*.c", r"a\.b.c a\..c", "a.b.c"),
    ("_dns-sd._udp.*", "_dns-sd._udp.local", "_udp.local"),
    ("bücher.example", "xn--bcher-kva.example", "bucher.example"),
    ("*.bücher.example", "x.xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("/ads/", "ads.com bads.com x.ads", "a.ds com ."),
    ("/ADS/", "ads.com", "com"),
    ("/^ads[0-9]+\\./", "ads1.com ADS22.org", "ads.com xads1.com"),
    (r"/^x[0-9]+\.example\.com$/", "x1.example.com", "x.example.com x1.example.com.org"),
    (r"/(^|\.)example\.com$/", "example.com x.example.com", "xexample.com"),
    (r"/^\.$/", ".", "com"),
    (r"/\.com$/", "x.com", r"com x\.com"),
    (r"/\\046com$/", r"x\.com", "x.com"),
    (r"/a\/b/", "a/b", "ab"),
    (r"/\\032/", r"a\032b", "ab"),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), MATCHES)
def test_what_a_pattern_matches(pattern: str, matching: str, others: str) -> None:
    ruleset = rules(pattern)
    trie = ruleset.trie()
    for name in matching.split():
        assert counted_by(ruleset, name) == pattern, name
        assert walk(trie, from_text(name)) in (1, DECIDE), name
    for name in others.split():
        assert counted_by(ruleset, name) is None, name
        assert walk(trie, from_text(name)) in (NO_RULE, DECIDE), name


def test_a_length_byte_does_not_match_a_character() -> None:
    ruleset = rules("example.com")
    # The length of the first label is 45, which is also the code of a hyphen.
    assert ruleset.match(b"\x2d" + 33 * b"x" + b"\x07example\x03com" + b"\0") is None


@pytest.mark.parametrize("wire", [b"", b"\3com", b"\xc0\x0c", b"\0\0"])
def test_match_refuses_malformed_names(wire: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        rules(".").match(wire)


def calls(work: Callable[[], object]) -> int:
    """Return how many functions ``work`` calls, including functions in C."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


PRECEDENCE = [
    (["com", "example.com"], "www.example.com", "example.com"),
    (["example.com", "com"], "www.example.com", "example.com"),
    (["example.com", "*.example.com", "=example.com"], "example.com", "=example.com"),
    (["example.com", "*.example.com", "=example.com"], "x.example.com", "*.example.com"),
    (["example.com", "a*.example.com", "*.example.com"], "ab.example.com", "a*.example.com"),
    (["*b.example.com", "a*.example.com"], "ab.example.com", "*b.example.com"),
    (["a*.example.com", "*b.example.com"], "ab.example.com", "a*.example.com"),
    ([r"/^a.*\.example\.com$/", "a*.example.com"], "ab.example.com", r"/^a.*\.example\.com$/"),
    (["a*.example.com", r"/^a.*\.example\.com$/"], "ab.example.com", "a*.example.com"),
    (["/ab/", "ab.example.com"], "ab.example.com", "ab.example.com"),
    (["ab*.com", "example.com"], "x.example.com", "example.com"),
    (["*.com", "ab*.com"], "abc.com", "ab*.com"),
    (["=*.example.com", "x.example.com"], "x.example.com", "x.example.com"),
    ([r"/^example\.com$/", "=example.com"], "example.com", "=example.com"),
    ([".", "/a/"], "a.com", "/a/"),
    ([".", "/a/"], "b.net", "."),
    (["=.", "/^.$/", "."], ".", "=."),
]


@pytest.mark.parametrize(("patterns", "name", "winner"), PRECEDENCE)
def test_the_rule_with_precedence_counts_a_name(patterns: list[str], name: str, winner: str) -> None:
    assert counted_by(rules(*patterns), name) == winner


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["example.com"], {"example.com": (1, 1)}),
        (["=example.com"], {"example.com": (1, NO_RULE)}),
        (["*.example.com"], {"example.com": (NO_RULE, 1)}),
        (["."], {".": (1, 1)}),
        (["=a.b", "b"], {"a.b": (1, 2), "b": (2, 2)}),
        (["a*.b"], {"b": (NO_RULE, DECIDE)}),
        (["a*.b", "b"], {"b": (2, DECIDE)}),
        # a*.b matches neither x.b nor names below it.
        (["a*.b", "=x.b"], {"b": (NO_RULE, DECIDE), "x.b": (2, NO_RULE)}),
        # a*.b matches ab.b and all names below it.
        (["a*.b", "=ab.b"], {"b": (NO_RULE, DECIDE), "ab.b": (2, 1)}),
        (["a*.b", "*.ab.b"], {"b": (NO_RULE, DECIDE), "ab.b": (1, 2)}),
        (["=a*.b", "*.ab.b"], {"b": (NO_RULE, DECIDE), "ab.b": (1, 2)}),
        (["=a*.b", "=ab.b"], {"b": (NO_RULE, DECIDE), "ab.b": (2, NO_RULE)}),
        (["*.a*.b", "=ab.b"], {"b": (NO_RULE, DECIDE), "ab.b": (2, 1)}),
        (["x.a*.b", "=ab.b"], {"b": (NO_RULE, DECIDE), "ab.b": (2, DECIDE)}),
        # The rule with the longer suffix decides before the expression does.
        (["/x/", "b"], {".": (NO_RULE, DECIDE), "b": (2, 2)}),
        (["/x/", "=b"], {".": (NO_RULE, DECIDE), "b": (2, DECIDE)}),
        (["/x/", "*.x.b", "*.b"], {".": (NO_RULE, DECIDE), "x.b": (3, 2), "b": (NO_RULE, 3)}),
        ([r"/\.b$/", "b"], {"b": (2, DECIDE)}),
        # For the suffix itself, the rule is known even with an expression.
        ([r"/^b$/", "b"], {"b": (1, DECIDE)}),
        (["/^x/", "/c/", "*.b"], {".": (NO_RULE, DECIDE), "b": (NO_RULE, 3)}),
        (["/^x/", "/b/", "*.b"], {".": (NO_RULE, DECIDE), "b": (2, 3)}),
    ],
)
def test_the_trie_has_an_outcome_for_each_suffix(patterns: list[str], expected: dict[str, tuple[int, int]]) -> None:
    entries = rules(*patterns).trie()
    assert {to_text(entry.suffix): (entry.at, entry.below) for entry in entries} == expected
    for entry in entries:
        assert entry.labels == len(to_labels(entry.suffix))
        assert entry.suffix.endswith(b"\0")


ALPHABET = ["a", "b", "ab", "ba"]
wild = st.sampled_from([*ALPHABET, "*", "a*", "*b", "?", "a?"])
bodies = st.one_of(
    st.lists(st.sampled_from(ALPHABET), max_size=3),
    st.lists(wild, min_size=1, max_size=4),
)
name_specs = st.tuples(st.sampled_from(list(Scope)), bodies)
EXPRESSIONS = {
    "/b/": [],
    r"/^a/": [],
    r"/ab$/": [],
    r"/\.b$/": ["b"],
    r"/a\.b$/": ["b"],
    r"/(^|\.)a\.b$/": ["a", "b"],
    r"/^ab\.b$/": ["ab", "b"],
    r"/^[^.]+\.[^.]+$/": [],
}
specs = st.lists(st.one_of(name_specs, name_specs, st.sampled_from(sorted(EXPRESSIONS))), min_size=1, max_size=12)
Spec = tuple[Scope, list[str]] | str


def spelled(spec: Spec) -> str:
    return (
        spec
        if isinstance(spec, str)
        else spec[0].value + (".".join(spec[1]) or ("" if spec[0] is Scope.BELOW else "."))
    )


def usable(spec: Spec) -> bool:
    """Return False for a spec that is spelled like another one: a leading ``*`` means below; ``*.`` needs a name."""
    if isinstance(spec, str):
        return True
    scope, body = spec
    return (scope is Scope.ALONE or body[:1] != ["*"]) and (scope is not Scope.BELOW or bool(body))


def reference(spec: Spec, name: list[str]) -> tuple[bool, int, int]:
    """Return whether a spec matches, the length of its literal suffix and its rank, according to the documentation."""
    if isinstance(spec, str):
        return re.search(spec[1:-1], ".".join(name) or ".") is not None, len(EXPRESSIONS[spec]), 1
    scope, body = spec
    wildcards = [at for at, label in enumerate(body, 1) if "*" in label or "?" in label]
    literal = len(body) - max(wildcards, default=0)
    rank = 1 if wildcards else [Scope.ALONE, None, Scope.BELOW, Scope.TREE].index(scope)
    tail = name[len(name) - len(body) :] if body else []
    fits = len(tail) == len(body) and all(map(fnmatch.fnmatchcase, tail, body))
    extra = len(name) - len(body)
    return fits and {Scope.ALONE: extra == 0, Scope.BELOW: extra > 0, Scope.TREE: True}[scope], literal, rank


@settings(max_examples=500, deadline=None)
@given(specs, st.lists(st.lists(st.sampled_from(ALPHABET), max_size=5), min_size=1, max_size=30))
def test_match_and_trie_agree_with_the_documentation(drawn: list[Spec], names: list[list[str]]) -> None:
    chosen = list({spelled(spec): spec for spec in drawn if usable(spec)}.items()) or [(".", (Scope.TREE, []))]
    ruleset = rules(*(text for text, _ in chosen))
    entries = ruleset.trie()
    for name in names:
        wire = from_text(".".join(name) or ".")
        candidates = []
        for order, (text, spec) in enumerate(chosen):
            matches, literal, rank = reference(spec, name)
            if matches:
                candidates.append((-literal, rank, order, text))
        rule = ruleset.match(wire)
        assert (rule and rule.pattern) == (min(candidates)[-1] if candidates else None)
        assert walk(entries, wire) in (rule.id if rule else NO_RULE, DECIDE)


def test_the_kernel_decides_all_rules_without_wildcards_and_expressions() -> None:
    ruleset = rules("a.b", "=b", "*.c.b", "*.a.c", ".")
    outcomes = {outcome for entry in ruleset.trie() for outcome in (entry.at, entry.below)}
    assert DECIDE not in outcomes


def test_the_work_grows_linearly_with_the_number_of_rules() -> None:
    forms = ["a{0}.x.example", "=b{0}.example", "*.c{0}.org", "ads{0}*.x{0}.com", "*tr{0}*.example", "*tr{0}*"]

    def build(number: int) -> int:
        pick = random.Random(1)
        patterns = [pick.choice(forms).format(each) for each in range(number - number // 100)]
        patterns += [rf"/^ads{each}[a-z]/" for each in range(number // 100)]
        return calls(lambda: rules(*patterns).trie())

    assert build(10_000) < 12 * build(1_000)


def test_no_specs_mean_all_names() -> None:
    ruleset = RuleSet.build([])
    assert ruleset.rules == (Rule(1, ".", ".", 6),)
    assert ruleset.trie() == [TrieEntry(b"\0", 0, 1, 1)]
    assert RuleSet.build([], ruleset).rules == ruleset.rules


def test_rules_keep_the_configured_values() -> None:
    ruleset = RuleSet.build([("one", "Example.COM.", 3), ("two", "/x/", 7)])
    assert ruleset.rules == (Rule(1, "one", "Example.COM.", 3), Rule(2, "two", "/x/", 7))
    assert ruleset.by_id == {1: ruleset.rules[0], 2: ruleset.rules[1]}


def test_unchanged_rules_keep_their_ids() -> None:
    first = RuleSet.build([("a", "a.example", 6), ("b", "b.example", 6), ("c", "c.example", 6)])
    second = RuleSet.build([("c", "C.example.", 2), ("b", "=b.example", 6), ("x", "a.example", 6)], first)
    assert second.rules == (
        Rule(3, "c", "C.example.", 2),
        Rule(4, "b", "=b.example", 6),
        Rule(5, "x", "a.example", 6),
    )
    third = RuleSet.build([("a", "a.example", 6)], second)
    assert third.rules[0].id == 6


def test_reserved_ids_are_not_used() -> None:
    ruleset = RuleSet.build([("a", "a", 6), ("b", "b", 6)], reserved={1, 3})
    assert [rule.id for rule in ruleset.rules] == [2, 4]
    kept = RuleSet.build([("a", "a", 6), ("c", "c", 6)], ruleset, reserved={2, 5})
    assert [rule.id for rule in kept.rules] == [2, 6]


def test_ids_wrap_around_and_run_out() -> None:
    most = [(str(number), str(number), 6) for number in range(MAX_RULE_ID)]
    full = RuleSet.build(most)
    assert set(full.by_id) == set(range(1, MAX_RULE_ID + 1))
    assert RuleSet.build(most, full).rules == full.rules
    with pytest.raises(RuleError, match="too many rules"):
        RuleSet.build([("x", "x", 6)], full)
    last = RuleSet([(Rule(MAX_RULE_ID, "a", "a"), parse_pattern("a"))], MAX_RULE_ID)
    assert [rule.id for rule in RuleSet.build([("a", "a", 6), ("b", "b", 6)], last).rules] == [MAX_RULE_ID, 1]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([("a", "example.com", 6), ("b", "EXAMPLE.com.", 6)], "two rules with the same pattern (EXAMPLE.com.)"),
        ([("a", "a*.com", 6), ("b", "A**.com", 6)], "two rules with the same pattern (A**.com)"),
        (
            [("a", "bücher.com", 6), ("b", "xn--bcher-kva.com", 6)],
            "two rules with the same pattern (xn--bcher-kva.com)",
        ),
        ([("a", "*", 6), ("b", "*.", 6)], "two rules with the same pattern (*.)"),
        ([("a", "/x/", 6), ("b", "/x/", 6)], "two rules with the same pattern (/x/)"),
        ([("a", "a.com", 6), ("a", "b.com", 6)], "two rules with the same name (a)"),
        ([("a", "a..com", 6)], "an empty label"),
    ],
)
def test_bad_rules_are_an_error(specs: list[tuple[str, str, int]], message: str) -> None:
    with pytest.raises(RuleError) as caught:
        RuleSet.build(specs)
    assert message in caught.value.message


def test_the_same_name_in_another_form_is_another_pattern() -> None:
    assert len(rules("a.com", "=a.com", "*.a.com", r"\*.a.com", "=*.a.com", r"/^a\.com$/", r"/^A\.com$/").rules) == 7
