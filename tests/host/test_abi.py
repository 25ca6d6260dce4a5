"""Both sides of ``bpf/abi.h``: Python packs and unpacks the structs as a C compiler lays them out."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from dnsprobe.kernel import abi
from dnsprobe.kernel.compiler import bpf_folder
from dnsprobe.kernel.maps import SCRATCH_SIZE
from dnsprobe.model import DECIDE, NO_RULE, Process
from dnsprobe.names import ruleset

#: Each struct of abi.h and its mirror. Structs without one are decoded in pieces; other tests check those.
MIRRORS: dict[str, struct.Struct | None] = {
    "share": abi.SHARE,
    "returned": abi.RETURNED,
    "settings": abi.SETTINGS,
    "outcome": abi.OUTCOME,
    "process_key": abi.PROCESS_KEY,
    "count": abi.COUNT,
    "tracked_count": abi.TRACKED_COUNT,
    "server": abi.SERVER,
    "numbered_server": abi.NUMBERED_SERVER,
    "count_key": abi.COUNT_KEY,
    "pending_key": abi.PENDING_KEY,
    "note": abi.NOTE,
    "canary_result": abi.CANARY_RESULT,
    "noted_socket": abi.NOTED_SOCKET,
    "latency_bounds": abi.LATENCY_BOUNDS,
    "latency_key": abi.LATENCY_KEY,
    "latencies": abi.LATENCIES,
    "seen": abi.SEEN,
    "cached": abi.CACHED,
    "name": abi.NAME,
    "stream": abi.STREAM,
    "opener": abi.OPENER,
    "ancestor_key": abi.ANCESTOR_KEY,
    "ancestor": abi.ANCESTOR,
    "process": abi.PROCESS,
    "chain": None,
    "connection": abi.CONNECTION,
    "begun": abi.BEGUN,
    "answer_stream": abi.ANSWER_STREAM,
    "path": abi.PATH,
    "identity": abi.IDENTITY,
    "event": None,
    "ended": abi.ENDED,
}
STRUCTS = list(MIRRORS)

CONSTANTS = {
    "NAME_SIZE": abi.NAME_SIZE,
    "COMM_SIZE": abi.COMM_SIZE,
    "CHAIN_SIZE": abi.CHAIN_SIZE,
    "LINEAGE_SIZE": abi.LINEAGE_SIZE,
    "CHAIN_ROOM": abi.CHAIN_ROOM,
    "PATH_SIZE": abi.PATH_SIZE,
    "CMDLINE_SIZE": abi.CMDLINE_SIZE,
    "NO_RULE": NO_RULE,
    "CANARY": abi.CANARY,
    "DECIDE": DECIDE,
    "RULE_IDS": abi.RULE_IDS,
    "ENCRYPTED": abi.ENCRYPTED,
    "OVER_LIMIT": abi.OVER_LIMIT,
    "UNREAD": abi.UNREAD,
    "OVERFLOW_SLOTS": abi.OVERFLOW_SLOTS,
    "OTHER_QTYPE": abi.OTHER_QTYPE,
    "SHARE_OF_NOBODY": abi.SHARE_OF_NOBODY,
    "SHARE_OF_OTHERS": abi.SHARE_OF_OTHERS,
    "SHARE_OF_USER": abi.SHARE_OF_USER,
    "SHARE_OF_CGROUP": abi.SHARE_OF_CGROUP,
    "SHARES": abi.SHARES,
    "TO_LOCAL": abi.TO_LOCAL,
    "HASH_KEYS": abi.HASH_KEYS,
    "RESULT_ROOM": abi.RESULT_ROOM,
    "ZEROS_SIZE": abi.ZEROS_SIZE,
    "SERVERS": abi.SERVERS,
    "OTHER_SERVER": abi.OTHER_SERVER,
    "NOTED_KEY_SIZE": abi.NOTED_KEY_SIZE,
    "CANARY_NOTES": abi.CANARY_NOTES,
    "SOCKET_NOTES": abi.SOCKET_NOTES,
    "SOCKET_EVENTS": abi.SOCKET_EVENTS,
    "LATENCY_BUCKETS": abi.LATENCY_BUCKETS,
    "TAKEN_NOTES": abi.TAKEN_NOTES,
    "OUTCOMES": abi.OUTCOMES,
    "STREAM_SIZE": abi.STREAM_SIZE,
    "STREAM_HEAD": abi.STREAM_HEAD,
    "ANSWER_SIZE": abi.ANSWER_SIZE,
}

#: Sizes of arrays in abi.h.
SIZES = {**CONSTANTS, "RESOURCES": len(abi.Resource)}

# The functions of the headers call helpers of the kernel. They are never called here: declarations are enough.
HEAD = """
#include <linux/types.h>

unsigned long long bpf_pseudo_fd(unsigned long long, unsigned long long);
void *bpf_map_lookup_elem(void *, const void *);
#define MAP_SCRATCH 0
#define MAP_SETTINGS 0
#define MAP_STATISTICS 0
#define MAP_ZEROS 0
#include "scratch.h"

int printf(const char *, ...);
size_t fwrite(const void *, size_t, size_t, void *);
extern void *stdout;
void *memset(void *, int, size_t);
"""

# Each octet of each field has another value, so that a mix-up of fields is found.
EVENT = """
static void number(void *field, size_t size, int *next)
{
	for (size_t i = 0; i < size; i++)
		((u8 *)field)[i] = (*next)++ % 251 + 1;
}
#define NUMBER(field) number(&(field), sizeof(field), &next)

int main(void)
{
	static struct event event;
	int next = 0;

	memset(&event, 0xff, sizeof(event));
	NUMBER(event.time_ns); NUMBER(event.name_hash); NUMBER(event.repeats);
	NUMBER(event.rule); NUMBER(event.generation); NUMBER(event.uid); NUMBER(event.gid);
	NUMBER(event.net_ns);
	NUMBER(event.qtype); NUMBER(event.qclass); NUMBER(event.port); NUMBER(event.kind); NUMBER(event.transport);
	NUMBER(event.query_id); NUMBER(event.server); NUMBER(event.reversed);
	event.family = FAMILY;
	event.length = LENGTH;
	event.chain.depth = DEPTH;
	event.chain.cut = CUT;
	event.chain.exec = 4711;
	event.chain.shared = SHARED;
	event.chain.lineage_depth = LINEAGE;
	event.chain.lineage_cut = LINEAGE_CUT;
	event.chain.share = SHARE_OF_USER | 1000;
	for (int i = 0; i < DEPTH + LINEAGE; i++) {
		NUMBER(event.chain.process[i].start_ns);
		NUMBER(event.chain.process[i].tgid);
		event.chain.process[i].exited = i >= DEPTH;
		NUMBER(event.chain.process[i].comm);
		event.chain.process[i].comm[i % COMM_SIZE] = 0;
	}
	size_t size = __builtin_offsetof(struct event, chain.process) + (DEPTH + LINEAGE) * sizeof(struct process);

	fwrite(&event, size, 1, stdout);
	return 0;
}
"""


def run(folder: Path, source: str, *defines: str) -> bytes:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")
    bpf = bpf_folder()
    (folder / "layout.c").write_text(source, encoding="utf-8")
    command = [compiler, "-std=gnu11", "-Wall", "-Werror", "-Wno-unused-function", "-fno-builtin"]
    command += [f"-I{bpf}", f"-I{bpf / 'include'}", *(f"-D{define}" for define in defines)]
    subprocess.run([*command, "-o", str(folder / "layout"), str(folder / "layout.c")], check=True)
    return subprocess.run([folder / "layout"], check=True, capture_output=True).stdout


def facts(folder: Path, expressions: Sequence[str]) -> list[int]:
    """Return the values of C expressions that are constant where scratch.h is included."""
    lines = "".join(f'\tprintf("%llu\\n", (unsigned long long)({expression}));\n' for expression in expressions)
    return [int(line) for line in run(folder, f"{HEAD}\nint main(void)\n{{\n{lines}\treturn 0;\n}}\n").split()]


@dataclass(frozen=True)
class Field:
    name: str
    type: str
    elements: int
    is_array: bool


def header() -> str:
    return re.sub(r"/\*.*?\*/", "", (bpf_folder() / "abi.h").read_text(encoding="utf-8"), flags=re.DOTALL)


def header_structs() -> dict[str, list[Field]]:
    """Return the fields of each struct in abi.h."""
    structs: dict[str, list[Field]] = {}
    for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", header(), re.DOTALL | re.MULTILINE):
        structs[name] = []
        for declaration in filter(None, (line.strip() for line in body.split(";"))):
            found = re.fullmatch(r"((?:struct )?\w+) (\w+)(?:\[(\w+)\])?", declaration)
            assert found, declaration
            size = found[3] or "1"
            structs[name].append(Field(found[2], found[1], SIZES.get(size) or int(size), found[3] is not None))
    return structs


def packed(layout: struct.Struct) -> list[tuple[int, int]]:
    """Return offset and size of each value in a format, padding left out."""
    places = []
    at = 0
    assert layout.format.startswith("=")
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        size = struct.calcsize(f"={code}")
        if code in "sx":
            size, times = int(count or 1), 1
        else:
            times = int(count or 1)
        for _ in range(times):
            if code != "x":
                places.append((at, size))
            at += size
    assert at == layout.size
    return places


def test_every_struct_has_a_mirror() -> None:
    assert list(header_structs()) == STRUCTS


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_has_the_layout_of_the_compiler(name: str, tmp_path: Path) -> None:
    layout = MIRRORS[name]
    if name == "connection":
        pytest.skip("only its size is known outside the kernel")
    if layout is None:
        layout = {"chain": abi.CHAIN_HEAD, "event": abi.EVENT_HEAD}[name]
    expressions = [f"sizeof(struct {name})"]
    for field in header_structs()[name]:
        # A format has one value for the octets of a text, and one for each number of an array.
        one_by_one = field.is_array and field.type != "u8"
        members = [f"{field.name}[{index}]" for index in range(field.elements)] if one_by_one else [field.name]
        if field.type in {"struct process", "struct chain"} or field.name == "pad":
            continue
        for member in members:
            expressions += [
                f"__builtin_offsetof(struct {name}, {member})",
                f"sizeof(((struct {name} *)0)->{member})",
            ]
    size, *numbers = facts(tmp_path, expressions)
    assert packed(layout) == list(zip(numbers[::2], numbers[1::2], strict=True))
    if MIRRORS[name] is not None:
        assert size == layout.size


def test_composed_sizes_are_those_of_the_compiler(tmp_path: Path) -> None:
    expected = {
        "sizeof(struct chain)": abi.CHAIN_BYTES,
        "__builtin_offsetof(struct chain, process)": abi.CHAIN_HEAD.size,
        "__builtin_offsetof(struct event, chain)": abi.CHAIN_AT,
        "sizeof(struct event)": abi.CHAIN_AT + abi.CHAIN_BYTES,
        "sizeof(u64)": abi.COUNTER.size,
        "__builtin_offsetof(struct count, share) + sizeof(u64)": abi.COUNT.size,
        "__builtin_offsetof(struct name, share) + sizeof(u64)": abi.NAME.size,
        "__builtin_offsetof(struct chain, share) + sizeof(u64)": abi.CHAIN_HEAD.size,
        "__builtin_offsetof(struct identity, share)": abi.IDENTITY_SHARE_AT,
        "__builtin_offsetof(struct ancestor, share)": abi.ANCESTOR_SHARE_AT,
        "__builtin_offsetof(struct ended, message)": abi.ENDED_HEAD.size,
        "__builtin_offsetof(struct ended, kind)": abi.KIND_AT,
        "__builtin_offsetof(struct event, kind)": abi.KIND_AT,
        # The trie takes a prefix as long as the longest name; the room behind it is for whole words.
        "__builtin_offsetof(struct lpm_key, reversed) + NAME_SIZE": abi.LPM_KEY_SIZE,
        "sizeof(((struct lpm_key *)0)->reversed) - NAME_SIZE": 8,
    }
    assert dict(zip(expected, facts(tmp_path, list(expected)), strict=True)) == expected


def test_scratch_space_is_large_enough(tmp_path: Path) -> None:
    (size, alignment) = facts(tmp_path, ["sizeof(struct scratch)", "_Alignof(struct scratch)"])
    assert size <= SCRATCH_SIZE
    assert SCRATCH_SIZE % alignment == 0


def test_zeros_are_enough_for_each_new_entry(tmp_path: Path) -> None:
    entries = ("share", "tracked_count", "noted_socket")
    assert max(facts(tmp_path, [f"sizeof(struct {entry})" for entry in entries])) == abi.ZEROS_SIZE


def test_constants_are_equal(tmp_path: Path) -> None:
    defined = re.findall(r"^#define (\w+) +\S", header(), re.MULTILINE)
    assert defined == list(CONSTANTS)
    assert facts(tmp_path, list(CONSTANTS)) == list(CONSTANTS.values())
    assert ruleset.MAX_RULE_ID < abi.RULE_IDS <= min(abi.CANARY, DECIDE)


def test_enumerators_are_equal(tmp_path: Path) -> None:
    expected = {
        **{f"KIND_{kind.name}": kind.value for kind in abi.Kind},
        **{f"STAT_{statistic.name}": statistic.value for statistic in abi.Statistic},
        "STATISTICS": len(abi.Statistic),
        **{f"RESOURCE_{resource.name}": resource.value for resource in abi.Resource},
        "RESOURCES": len(abi.Resource),
        **{f"RESULT_{result.name}": result.value for result in abi.Result},
        "RESULTS": len(abi.Result),
        **{f"UNMATCHED_{reason.name}": reason.value for reason in abi.Unmatched},
        "UNMATCHED": len(abi.Unmatched),
        **{f"NOTED_{noted.name}": noted.value for noted in abi.Noted},
        **{f"TRANSPORT_{name.upper()}": number for number, name in enumerate(abi.TRANSPORTS)},
    }
    bodies = re.findall(r"^enum \w+ \{(.*?)^\};", header(), re.DOTALL | re.MULTILINE)
    assert {name for body in bodies for name in re.findall(r"[A-Z]\w+", body)} == set(expected)
    assert dict(zip(expected, facts(tmp_path, list(expected)), strict=True)) == expected


@pytest.mark.parametrize(
    ("family", "length", "depth", "cut", "shared", "lineage", "lineage_cut"),
    [
        (4, 255, abi.CHAIN_SIZE, 1, 1, abi.LINEAGE_SIZE, 0),
        (6, 1, 1, 0, 1, 0, 1),
        (6, 17, 3, 0, 3, 0, 0),
        (6, 17, 3, 0, 2, 4, 0),
    ],
)
def test_event_is_decoded_field_by_field(
    tmp_path: Path, family: int, length: int, depth: int, cut: int, shared: int, lineage: int, lineage_cut: int
) -> None:
    defines = [f"FAMILY={family}", f"LENGTH={length}", f"DEPTH={depth}", f"CUT={cut}"]
    defines += [f"SHARED={shared}", f"LINEAGE={lineage}", f"LINEAGE_CUT={lineage_cut}"]
    data = run(tmp_path, HEAD + EVENT, *defines)
    at = 0

    def octets(size: int) -> bytes:
        nonlocal at
        at += size
        return bytes(index % 251 + 1 for index in range(at - size, at))

    def number(size: int) -> int:
        return int.from_bytes(octets(size), sys.byteorder)

    event = abi.decode_event(data)
    assert [event.time_ns, event.name_hash, event.repeats] == [number(8) for _ in range(3)]
    assert [event.rule, event.generation, event.uid, event.gid, event.net_ns] == [number(4) for _ in range(5)]
    assert [event.qtype, event.qclass, event.port] == [number(2) for _ in range(3)]
    assert [event.kind, event.transport] == [number(1) for _ in range(2)]
    assert event.query_id == number(8)
    server, name = octets(16), octets(abi.NAME_SIZE)
    assert event.server == server[: 4 if family == 4 else 16]
    assert event.name == name[:length][::-1]
    chain = []
    for index in range(depth + lineage):
        start_ns, tgid, comm = number(8), number(4), octets(abi.COMM_SIZE)
        chain.append(Process(tgid, start_ns, comm[: index % abi.COMM_SIZE], index >= depth))
    parents, starters = tuple(chain[:depth]), tuple(chain[:shared] + chain[depth:])
    assert event.chain == abi.Chain(parents, not cut, 4711, starters, not lineage_cut, abi.SHARE_OF_USER | 1000)
    # The assertions above cover all fields.
    assert len(fields(event)) == 3 + 5 + 3 + 2 + 1 + 2 + 1


def test_a_result_is_decoded_and_told_from_an_event() -> None:
    record = abi.ENDED_HEAD.pack(1, 2, 3, abi.Result.NXDOMAIN, 4, abi.Kind.ENDED) + b"wire rest"
    assert abi.is_ended(record)
    assert abi.decode_ended(record) == abi.Ended(1, 2, 3, abi.Result.NXDOMAIN, b"wire")
    for kind in set(abi.Kind) - {abi.Kind.ENDED}:
        head = abi.EVENT_HEAD.pack(*range(1, 12), kind, 0, 4, 0, 5, b"", b"")
        assert not abi.is_ended(head)


def test_an_ancestor_is_encoded_and_decoded() -> None:
    parent = abi.AncestorKey(start_ticks=1, tgid=2)
    ancestor = abi.Ancestor(3, parent, 4, True, False, True, False, b"fifteen octets.", 7)
    assert abi.decode_ancestor(abi.encode_ancestor(ancestor)) == ancestor


def test_an_event_has_room_for_both_chains() -> None:
    assert abi.CHAIN_SIZE + abi.LINEAGE_SIZE < abi.CHAIN_ROOM


def test_an_identity_is_decoded() -> None:
    def path(names: bytes, whole: int) -> bytes:
        return abi.PATH.pack(len(names), whole, names + b"rubbish")

    cgroup = path(b"nginx.service\0system.slice\0", 1)
    exe = path(b"nginx\0sbin\0", 0)
    facts = abi.decode_identity(abi.IDENTITY.pack(1, 2, 3, 4, 5, 8, 9, cgroup, exe, b"nginx\0-grubbish"))
    assert facts == abi.Facts(
        loginuid=0,
        pid_ns=2,
        mnt_ns=3,
        user_ns=4,
        exe_user_ns=5,
        cgroup=abi.PathNames((b"system.slice", b"nginx.service"), whole=True),
        exe=abi.PathNames((b"sbin", b"nginx"), whole=False),
        cmdline=b"nginx\0-g",
    )
    nothing = abi.decode_identity(bytes(abi.IDENTITY.size))
    assert nothing == abi.Facts(None, 0, 0, 0, 0, abi.PathNames((), whole=False), abi.PathNames((), whole=False), b"")


@pytest.mark.parametrize("wire", [b"\0", b"\4test\0", b"\1a" * 127 + b"\0"])
def test_names_are_stored_backwards(wire: bytes) -> None:
    key = abi.lpm_key(wire)
    assert len(key) == abi.LPM_KEY_SIZE
    assert struct.unpack_from("=I", key) == (len(wire) * 8,)
    assert abi.unreverse(key[4:], len(wire)) == wire
