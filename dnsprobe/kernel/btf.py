"""The kernel's own type information, BTF (Documentation/bpf/btf.rst), read without a library.

Only three things are decoded: the offset of a member in a struct, the value of an enumerator, and the number of a
function. Whether a kernel has a member is looked up here, never derived from the version of the kernel.
"""

from __future__ import annotations

import struct
from array import array

from dnsprobe.errors import UserError
from dnsprobe.files import read_file

#: Octets. The BTF of a kernel with everything built in has 30 MB.
MAX_BTF = 256 << 20

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_MEMBER = struct.Struct("=III")
_ENUMERATOR = struct.Struct("=Ii")

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST = range(1, 11)
_RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(11, 20)

# Each type has three words of 32 bits. These follow, by kind: a fixed number, and a number for each of vlen elements.
_FIXED = {_INT: 1, _ARRAY: 3, _VAR: 1, _DECL_TAG: 1}
_EACH = {_STRUCT: 3, _UNION: 3, _ENUM: 2, _FUNC_PROTO: 2, _DATASEC: 3, _ENUM64: 3}


class _Sizes(dict[int, int]):
    """The number of words of a type, by its second word (``info``). Computed once for each value."""

    def __missing__(self, info: int) -> int:
        kind = _kind(info)
        self[info] = 3 + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
        return self[info]


def _kind(info: int) -> int:
    return (info >> 24) & 0x1F


class Btf:
    """The structs, enumerations and functions in ``names``, and the types of their members.

    :meth:`offset`, :meth:`size` and :meth:`enumerator` raise KeyError if the kernel has no such member, struct or
    enumerator. Raises ValueError, struct.error or IndexError if ``data`` is not BTF.
    """

    def __init__(self, data: bytes, names: frozenset[str]) -> None:
        magic, _version, _flags, header_size, type_at, type_size, text_at, text_size = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError(f"not BTF: it begins with {magic:#06x} instead of {_MAGIC:#06x}")
        self._data = data
        self._text = header_size + text_at
        if self._text + text_size > len(data):
            raise ValueError(f"BTF is cut off: it has {len(data)} of {self._text + text_size} octets")
        self._types: int = header_size + type_at
        self._starts: list[int] = [0]
        self._structs: dict[str, int] = {}
        self._enums: dict[str, int] = {}
        #: The BTF ids of the functions in ``names``, by their names.
        self.functions: dict[str, int] = {}
        self._found = {_STRUCT: self._structs, _ENUM: self._enums, _FUNC: self.functions}
        words = array("I", data[self._types : self._types + type_size])
        self._index(words, self._name_offsets(names, text_size))

    def _name_offsets(self, names: frozenset[str], text_size: int) -> dict[int, str]:
        # The kernel has 100,000 types. Comparing the offsets of names is faster than decoding each name.
        wanted = {}
        for name in names:
            at = self._data.find(b"\0" + name.encode() + b"\0", self._text, self._text + text_size)
            if at >= 0:
                wanted[at + 1 - self._text] = name
        return wanted

    def _index(self, words: array[int], wanted: dict[int, str]) -> None:
        # This loop runs over all types of the kernel and delays the start, so it does as little as possible.
        add, sizes = self._starts.append, _Sizes()
        at, end = 0, len(words)
        while at < end:
            add(at)
            name, info = words[at], words[at + 1]
            if name in wanted and _kind(info) in self._found:
                self._found[_kind(info)][wanted[name]] = len(self._starts) - 1
            at += sizes[info]

    def _start(self, type_id: int) -> int:
        return self._types + 4 * self._starts[type_id]

    def _name(self, offset: int) -> str:
        start = self._text + offset
        return self._data[start : self._data.index(0, start)].decode()

    def offset(self, struct_name: str, *path: str) -> int:
        """Return the offset of a member in octets. ``offset("sock", "a", "b")`` is that of ``sock.a.b``."""
        type_id, at = self._structs[struct_name], 0
        for member in path:
            found = self._find(type_id, member)
            if found is None:
                raise KeyError(f"{struct_name}: {'.'.join(path)}")
            type_id, offset = found
            at += offset
        return at

    def size(self, struct_name: str) -> int:
        """Return the size of a struct in octets."""
        size: int = _TYPE.unpack_from(self._data, self._start(self._structs[struct_name]))[2]
        return size

    def enumerator(self, enum_name: str, name: str) -> int:
        """Return the value of an enumerator."""
        start = self._start(self._enums[enum_name])
        _name, info, _size = _TYPE.unpack_from(self._data, start)
        for index in range(info & 0xFFFF):
            at, value = _ENUMERATOR.unpack_from(self._data, start + 12 + 8 * index)
            if self._name(at) == name:
                return int(value)
        raise KeyError(f"{enum_name}: {name}")

    def has_name(self, name: str) -> bool:
        """Return whether anything has that name: a type, a member, a function."""
        return self._data.find(b"\0" + name.encode() + b"\0", self._text) >= 0

    def _find(self, type_id: int, member: str) -> tuple[int, int] | None:
        """Return type and offset of a member, None if there is none. Anonymous structs and unions are searched too."""
        start = self._start(self._resolve(type_id))
        _name, info, _size = _TYPE.unpack_from(self._data, start)
        if _kind(info) not in (_STRUCT, _UNION):
            return None
        bitfields = info >> 31
        for index in range(info & 0xFFFF):
            name, member_type, bits = _MEMBER.unpack_from(self._data, start + 12 + 12 * index)
            offset = (bits & 0xFFFFFF if bitfields else bits) // 8
            if name:
                if self._name(name) == member:
                    return member_type, offset
            elif (inner := self._find(member_type, member)) is not None:
                return inner[0], offset + inner[1]
        return None

    def _resolve(self, type_id: int) -> int:
        """Follow typedefs and qualifiers."""
        while True:
            _name, info, target = _TYPE.unpack_from(self._data, self._start(type_id))
            if _kind(info) not in (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG):
                return type_id
            type_id = target


def read_btf(path: str, names: frozenset[str]) -> Btf:
    """Read the BTF at ``path``; UserError if it cannot be read or is not BTF."""
    try:
        return Btf(read_file(path, MAX_BTF), names)
    except OSError as error:
        raise UserError(
            f"cannot read the kernel's type information: {path}: {error.strerror}",
            "dnsprobe needs a kernel built with CONFIG_DEBUG_INFO_BTF, as Debian's are since 5.10; "
            "probe.btf can name a file with the BTF of this kernel",
        ) from error
    except (ValueError, struct.error, IndexError) as error:
        raise UserError(
            f"{path}: {error}", "probe.btf must name a file in BTF format, such as /sys/kernel/btf/vmlinux"
        ) from error
