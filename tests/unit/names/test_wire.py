"""Names in wire format and in presentation form."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dnsprobe.names.wire import fold, from_labels, from_text, to_labels, to_text

labels = st.binary(min_size=1, max_size=63)
names = st.lists(labels, max_size=12).filter(lambda each: sum(map(len, each)) + len(each) < 255).map(from_labels)

BOTH_WAYS = [
    (b"\0", "."),
    (b"\3com\0", "com"),
    (b"\7example\3com\0", "example.com"),
    (b"\7_dns-sd\4_udp\5local\0", "_dns-sd._udp.local"),
    (b"\3a.b\1c\0", r"a\.b.c"),
    (b"\3a\\b\0", r"a\\b"),
    (b'\3a"b\0', r"a\"b"),
    (b"\3a;b\0", r"a\;b"),
    (b"\3a b\0", r"a\032b"),
    (b"\4\0\n\x7f\xff\0", r"\000\010\127\255"),
    (b"\7*?=()@$\0", "*?=()@$"),
    (b"\2\xc3\xbc\0", r"\195\188"),
    (b"\x3f" + 63 * b"x" + b"\0", 63 * "x"),
    (3 * (b"\x3f" + 63 * b"x") + b"\x3d" + 61 * b"y" + b"\0", ".".join([*3 * [63 * "x"], 61 * "y"])),
]


@pytest.mark.parametrize(("wire", "text"), BOTH_WAYS)
def test_both_forms_convert_into_each_other(wire: bytes, text: str) -> None:
    assert to_text(wire) == text
    assert from_text(text) == wire


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("example.com.", b"\7example\3com\0"),
        ("EXAMPLE.Com", b"\7example\3com\0"),
        (r"\065\B\099", b"\3abc\0"),
        (r"a\-b", b"\3a-b\0"),
        (r"a\..b", b"\2a.\1b\0"),
        ('a;b"c', b'\5a;b"c\0'),
        ("bücher.example", b"\x0dxn--bcher-kva\7example\0"),
        ("BÜCHER.EXAMPLE.", b"\x0dxn--bcher-kva\7example\0"),
        ("xn--BCHER-kva.example", b"\x0dxn--bcher-kva\7example\0"),
        ("_sip._tcp.bücher", b"\4_sip\4_tcp\x0dxn--bcher-kva\0"),
        ("例え。テスト", b"\x0bxn--r8jz45g\x0axn--zckzah\0"),
        ("straße", b"\x0dxn--strae-oqa\0"),
        ("\uff45xample", b"\7example\0"),
        ("\u212aey", b"\3key\0"),
    ],
)
def test_from_text_reads_every_spelling(text: str, wire: bytes) -> None:
    assert from_text(text) == wire


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty name"),
        ("..", "empty label"),
        (".com", "empty label"),
        ("a..b", "empty label"),
        ("a.b..", "empty label"),
        ("a\u3002\u3002b", "empty label"),
        (64 * "x", "label of 64 bytes, the limit is 63"),
        (60 * "ü" + ".com", "not a valid international label"),
        (".".join([*3 * [63 * "x"], 62 * "y"]), "name of 256 bytes in wire format, the limit is 255"),
        (1021 * "x", "name of 1021 characters"),
        ("\\", "bad escape"),
        ("a\\", "bad escape"),
        ("\\1", "bad escape"),
        ("\\12", "bad escape"),
        ("\\12x", "bad escape"),
        ("\\256", "bad escape: '\\\\256'"),
        ("\\999", "bad escape"),
        ("a b", "' ' in a label"),
        ("a\tb", "in a label"),
        ("\\ ", "in a label"),
        ("a\x7f", "in a label"),
        ("a\\ü", "has both escapes and"),
        ("\\032ü", "has both escapes and"),
        ("_ü", "not a valid international label"),
        ("-ü", "not a valid international label"),
        ("\u00ad", "not a valid international label"),
        ("a\u2024b", "not a valid international label"),
        ("\u202eabc", "not a valid international label"),
        ("\ud800", "not a valid international label"),
    ],
)
def test_from_text_refuses_other_texts(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        from_text(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"", "without its root byte"),
        (b"\3com", "without its root byte"),
        (b"\3co", "without its root byte"),
        (b"\3com\0x", "1 bytes behind the root byte"),
        (b"\0\0", "1 bytes behind the root byte"),
        (b"\xc0\x0c", "length byte of 192"),
        (b"\x40" + 64 * b"x" + b"\0", "length byte of 64"),
        (128 * b"\1x" + b"\0", "name of 257 bytes, the limit is 255"),
    ],
)
def test_to_text_refuses_malformed_names(wire: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_text(wire)


def test_join_refuses_a_name_over_255_bytes() -> None:
    assert len(from_labels(127 * [b"x"])) == 255
    with pytest.raises(ValueError, match="257 bytes"):
        from_labels(128 * [b"x"])


@given(names)
@example(from_labels([b"a\\.b", b".", b"\\"]))
def test_text_is_printable_and_comes_back_folded(wire: bytes) -> None:
    text = to_text(wire)
    assert all("!" <= char <= "~" for char in text)
    assert from_text(text) == fold(wire)
    assert to_labels(fold(wire)) == tuple(map(fold, to_labels(wire)))


@given(names, names)
def test_two_names_never_look_the_same(one: bytes, other: bytes) -> None:
    assert (to_text(one) == to_text(other)) == (one == other)


@given(st.binary(max_size=300))
def test_to_text_takes_a_name_or_raises_value_error(wire: bytes) -> None:
    try:
        assert from_labels(to_labels(wire)) == wire
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            to_text(wire)


@given(st.text(st.characters(), max_size=80) | st.text("aZ.\\0123 *ü。", max_size=12))
def test_from_text_takes_a_name_or_raises_value_error(text: str) -> None:
    try:
        wire = from_text(text)
    except ValueError as error:
        message = str(error)
    else:
        message = "none"
        assert from_text(to_text(wire)) == wire == fold(wire)
    assert message.isprintable()


@given(st.binary())
def test_fold_changes_only_ascii_letters(raw: bytes) -> None:
    assert fold(raw) == bytes(byte + 32 if 0x41 <= byte <= 0x5A else byte for byte in raw)


def test_idna_is_imported_only_for_international_names() -> None:
    code = """if True:
        import sys
        from dnsprobe.names.wire import from_text
        from_text("a.example")
        assert "idna" not in sys.modules
        from_text("bücher.example")
        assert "idna" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
