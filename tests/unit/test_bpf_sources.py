"""The structure of the BPF sources: what each header is, what it includes, and how long functions are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BPF = Path(__file__).parents[2] / "bpf"

#: The sources in the order of their includes: each includes only from its left. The folders udp and tcp do not include
#: each other.
ORDER = (
    "abi.h",
    "verifier.h",
    "kernel_read.h",
    "route.h",
    "maps.h",
    "socket_storage.h",
    "dns/hash.h",
    "scratch.h",
    "dns/message.h",
    "dns/question.h",
    "dns/name.h",
    "dns/match.h",
    "process/current.h",
    "process/asker.h",
    "process/share.h",
    "query/server.h",
    "answers/latency.h",
    "answers/note.h",
    "process/lineage.h",
    "process/ancestry.h",
    "process/identity.h",
    "query/count.h",
    "query/recent.h",
    "query/repeat.h",
    "query/submit.h",
    "query/handler.h",
    "udp/headers.h",
    "udp/datagram.h",
    "udp/packet.h",
    "udp/function.h",
    "udp/origin.h",
    "udp/egress.h",
    "answers/rcode.h",
    "answers/ingress.h",
    "answers/socket.h",
    "tcp/destination.h",
    "tcp/iov.h",
    "tcp/message.h",
    "tcp/connection.h",
    "tcp/reassembly.h",
    "tcp/handler.h",
    "tcp/segment.h",
    "tcp/writer.h",
    "tcp/egress.h",
    "answers/stream.h",
    "dnsprobe.bpf.c",
)
HEADERS = [name for name in ORDER if name.endswith(".h")]
MAX_LINES = 60

#: Tricks of verifier.h. Each use needs a reason.
_TRICK = re.compile(r"\b(FORGET|READ_ONCE|KEEP_BELOW|tail_call|read_user)(?:_\d+)?\(")
_HEAD = re.compile(r"/\* SPDX-License-Identifier: MIT OR GPL-2\.0-only\n \*\n \* [A-Z](?:[^*]|\*(?!/))*[.:]\n \*/\n")


def read(name: str) -> str:
    return (BPF / name).read_text(encoding="utf-8")


def without_comments(source: str) -> str:
    """Return C without its comments, line for line."""
    return re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), source, flags=re.DOTALL)


def included(source: str) -> list[str]:
    return re.findall(r'^#include "([^"]+)"', source, re.MULTILINE)


def backward(name: str, source: str) -> list[str]:
    """Return the includes of a source that do not point to its left."""
    here = ORDER.index(name)
    others = {"udp": "tcp", "tcp": "udp"}
    apart = others.get(name.partition("/")[0])
    return [
        other
        for other in included(source)
        if other not in ORDER[:here] or (apart is not None and other.startswith(f"{apart}/"))
    ]


def functions(source: str) -> dict[str, int]:
    """Return the lines of each function, from its name to its closing brace."""
    found = {}
    name, start = "", 0
    for number, line in enumerate(without_comments(source).splitlines()):
        if signature := re.match(r"(?:static|int) [\w *]*?(\w+)\(", line):
            name, start = signature[1], number
        elif line == "}" and name:
            found[name], name = number - start + 1, ""
    return found


def unexplained(source: str) -> list[str]:
    """Return the lines that use a trick of verifier.h without a reason.

    The reason is a comment right above the line (or above uses that are right above it), or a comment further up in the
    function that names the trick.
    """
    lines, code = source.splitlines(), without_comments(source).splitlines()
    found = []
    for number, line in enumerate(code):
        for trick in _TRICK.findall(line):
            above = number - 1
            while _TRICK.search(code[above]):
                above -= 1
            start = max((at for at in range(number) if lines[at] == "{"), default=0)
            comments = [
                text for text, left in zip(lines[start:number], code[start:number], strict=True) if text != left
            ]
            if not lines[above].endswith("*/") and not any(trick in text for text in comments):
                found.append(line.strip())
    return found


def test_every_source_has_a_place() -> None:
    stand_ins = BPF / "include"
    sources = {path for path in BPF.rglob("*.[ch]") if stand_ins not in path.parents}
    assert {str(path.relative_to(BPF)) for path in sources} == set(ORDER)


@pytest.mark.parametrize("name", HEADERS)
def test_header_has_a_guard_named_for_its_path(name: str) -> None:
    guard = "DNSPROBE_" + re.sub(r"\W", "_", name).upper()
    source = without_comments(read(name)).strip()
    assert source.startswith(f"#ifndef {guard}\n#define {guard}\n")
    assert source.endswith("\n#endif")


@pytest.mark.parametrize("path", sorted(BPF.rglob("*.[ch]")), ids=lambda path: str(path.relative_to(BPF)))
def test_first_comment_says_what_the_source_is(path: Path) -> None:
    assert _HEAD.match(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ORDER)
def test_a_source_includes_only_from_its_left(name: str) -> None:
    assert backward(name, read(name)) == []


@pytest.mark.parametrize("name", ORDER)
def test_no_function_is_too_long(name: str) -> None:
    assert {function: lines for function, lines in functions(read(name)).items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize("name", ORDER)
def test_each_trick_for_the_verifier_has_a_reason(name: str) -> None:
    if name != "verifier.h":
        assert unexplained(read(name)) == []


def test_scratch_space_names_functions_that_exist() -> None:
    existing = {function for name in ORDER for function in functions(read(name))}
    fields = read("scratch.h").partition("struct scratch {")[2].partition("\n};")[0]
    members = set(re.findall(r"(\w+)(?:\[.*\])?;", without_comments(fields)))
    named = {
        word for comment in re.findall(r"/\*.*?\*/", fields, re.DOTALL) for word in re.findall(r"\w+_\w+", comment)
    }
    assert len(named) > 20
    assert {word for word in named if word.islower()} - members <= existing


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("maps.h", '#include "abi.h"\n#include <linux/types.h>\n', []),
        ("maps.h", '#include "scratch.h"\n', ["scratch.h"]),
        ("maps.h", '#include "maps.h"\n', ["maps.h"]),
        ("dns/name.h", '#include "question.h"\n', ["question.h"]),
        ("tcp/iov.h", '#include "udp/packet.h"\n#include "dns/message.h"\n', ["udp/packet.h"]),
        ("dnsprobe.bpf.c", '#include "udp/packet.h"\n#include "tcp/iov.h"\n', []),
    ],
)
def test_an_include_that_points_to_the_right_is_found(name: str, source: str, found: list[str]) -> None:
    assert backward(name, source) == found


def test_functions_are_measured() -> None:
    source = """
/* static int not_this(void)
 * {
 */
static __always_inline u32 short_one(void)
{
        return 1;
}

int long_one(struct pt_regs *ctx,
             u64 other)
{
        /* a comment
         * of two lines */
        return 0;
}
"""
    assert functions(source) == {"short_one": 4, "long_one": 7}


def test_a_trick_without_a_reason_is_found() -> None:
    source = """
{
        /* Why. */
        KEEP_BELOW_512(at);
        KEEP_BELOW_64(size);
        at++;
        KEEP_BELOW_128(at);
        /* FORGET, here and below: why. */
        have = FORGET(s->size);
        /* FORGET() is named in a comment alone. */
        return FORGET(s->size);
}
{
        return FORGET(s->size);
}
"""
    assert unexplained(source) == ["KEEP_BELOW_128(at);", "return FORGET(s->size);"]
