"""Offsets of members and values of enumerators, from BTF made by hand and from that of the running kernel."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel.btf import Btf, read_btf

KINDS = {"int": 1, "ptr": 2, "array": 3, "struct": 4, "union": 5, "enum": 6, "typedef": 8, "const": 10, "func": 12}
KINDS |= {"proto": 13, "var": 14, "datasec": 15, "float": 16, "decl_tag": 17, "type_tag": 18, "enum64": 19}


class Maker:
    """Makes BTF in the form of Documentation/bpf/btf.rst."""

    def __init__(self) -> None:
        self.text = b"\0"
        self.types = b""
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.text += text.encode() + b"\0"
        return len(self.text) - len(text) - 1

    def add(self, kind: str, name: str = "", size: int = 0, vlen: int = 0, extra: bytes = b"", flag: int = 0) -> int:
        info = flag << 31 | KINDS[kind] << 24 | vlen
        self.types += struct.pack("=III", self.name(name), info, size) + extra
        self.count += 1
        return self.count

    def compound(self, kind: str, name: str, *members: tuple[str, int, int], flag: int = 0) -> int:
        extra = b"".join(struct.pack("=III", self.name(label), type_id, at) for label, type_id, at in members)
        return self.add(kind, name, 64, len(members), extra, flag)

    def data(self) -> bytes:
        head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.text))
        return head + self.types + self.text


@pytest.fixture
def btf() -> Btf:
    make = Maker()
    u32 = make.add("int", "unsigned int", 4, extra=struct.pack("=I", 32))
    # One type of each kind: if the length of one is wrong, all types behind it are read wrongly.
    make.add("ptr", size=u32)
    make.add("array", extra=struct.pack("=III", u32, u32, 3))
    make.add("enum", "kinds", 4, 2, struct.pack("=IiIi", 1, 0, 1, 1))
    make.add("proto", size=u32, vlen=2, extra=struct.pack("=IIII", 0, u32, 0, u32))
    make.add("func", "call", 5)
    make.add("var", "variable", u32, extra=struct.pack("=I", 1))
    make.add("datasec", ".data", 4, 1, struct.pack("=III", 7, 0, 4))
    make.add("float", "double", 8)
    make.add("decl_tag", "tag", u32, extra=struct.pack("=i", -1))
    make.add("type_tag", "user", u32)
    make.add("enum64", "big", 8, 1, struct.pack("=III", 1, 0, 1))
    deepest = make.compound("struct", "", ("deep", u32, 32), ("deeper", u32, 96))
    anonymous = make.compound("union", "", ("one", u32, 0), ("", deepest, 64))
    inner = make.compound("struct", "inner", ("first", u32, 0), ("second", u32, 32))
    alias = make.add("typedef", "inner_t", inner)
    constant = make.add("const", size=alias)
    make.compound("struct", "outer", ("head", u32, 0), ("", anonymous, 64), ("body", constant, 320))
    # With the flag, the upper eight bits of an offset are the size of a bit field.
    make.compound("struct", "bits", ("flag", u32, 3 << 24 | 5), ("plain", u32, 64), flag=1)
    values = [("MINUS", -1), ("SEVEN", 7)]
    make.add("enum", "named", 4, 2, b"".join(struct.pack("=Ii", make.name(name), value) for name, value in values))
    return Btf(make.data(), frozenset({"outer", "inner", "bits", "missing", "named", "call", "inner_t"}))


def test_functions_have_their_ids(btf: Btf) -> None:
    # The sixth type. Type 0 is void, so they are numbered from 1.
    assert btf.functions == {"call": 6}


def test_a_struct_has_its_size(btf: Btf) -> None:
    assert btf.size("outer") == 64
    with pytest.raises(KeyError):
        btf.size("missing")


def test_names_are_found_as_a_whole(btf: Btf) -> None:
    assert btf.has_name("inner_t")
    assert btf.has_name("call")
    assert not btf.has_name("inner_")


def test_an_enumerator_has_its_value(btf: Btf) -> None:
    assert (btf.enumerator("named", "MINUS"), btf.enumerator("named", "SEVEN")) == (-1, 7)
    for enum, name in (("named", "EIGHT"), ("kinds", "SEVEN"), ("missing", "SEVEN")):
        with pytest.raises(KeyError):
            btf.enumerator(enum, name)


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        (("outer", "head"), 0),
        (("outer", "one"), 8),
        (("outer", "deep"), 20),
        (("outer", "deeper"), 28),
        (("outer", "body"), 40),
        (("outer", "body", "second"), 44),
        (("inner", "second"), 4),
        (("bits", "plain"), 8),
        (("bits", "flag"), 0),
    ],
)
def test_offsets_are_followed_through_embedded_structs(btf: Btf, path: tuple[str, ...], offset: int) -> None:
    assert btf.offset(*path) == offset


@pytest.mark.parametrize(
    "path", [("outer", "second"), ("outer", "head", "x"), ("missing", "a"), ("outer", "body", "third")]
)
def test_a_missing_member_is_a_key_error(btf: Btf, path: tuple[str, ...]) -> None:
    with pytest.raises(KeyError):
        btf.offset(*path)


@pytest.mark.parametrize("content", [b"", b"\x9f", b"not BTF at all, but long enough", Maker().data()[:-1]])
def test_damaged_btf_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "btf"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_btf(str(path), frozenset({"outer"}))
    assert str(path) in error.value.message


def test_the_btf_of_the_running_kernel_is_read() -> None:
    path = "/sys/kernel/btf/vmlinux"
    if not Path(path).exists():
        pytest.skip("this kernel has no BTF: run it on one with CONFIG_DEBUG_INFO_BTF")
    btf = read_btf(path, frozenset({"task_struct", "sk_buff", "list_head"}))
    assert (btf.offset("list_head", "next"), btf.offset("list_head", "prev")) == (0, 8)
    assert btf.offset("sk_buff", "data") == btf.offset("sk_buff", "head") + 8
    assert btf.offset("task_struct", "group_leader") > btf.offset("task_struct", "tgid")
