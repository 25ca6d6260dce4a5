"""BPF programs as the compiler leaves them, and a folder that keeps them from one start to the next.

A compiled program is the same at each start but for the descriptors of the maps and the port of the canaries. Marks
stand for those in its instructions (``MAP`` and ``CANARY_PORT`` in the BPF sources), and are replaced as it is loaded.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import stat
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# struct bpf_insn, include/uapi/linux/bpf.h: code, both registers in an octet, offset, immediate value.
_INSTRUCTION = struct.Struct("=BBhi")
#: A load of 64 bits, which takes two instructions. Its source register says what the value is.
_LOAD_64 = 0x18
#: The value is a map. In the instructions of the compiler it is a number, in those for the kernel a descriptor.
_MAP = 1
#: The value is the port of the canaries; unknown to the kernel, so that none is left over.
CANARY_MARK = 9

#: Files that are kept. Each kernel has one of its layout and one or two of its programs, as has each set of ports.
_KEPT = 16


def _source(registers: int) -> int:
    return registers >> 4 if sys.byteorder == "little" else registers & 15


def _with_source(registers: int, source: int) -> int:
    return registers & 15 | source << 4 if sys.byteorder == "little" else registers & 0xF0 | source


@dataclass(frozen=True, slots=True)
class Program:
    """The instructions of a program, and at which of them marks stand (counted from 0)."""

    instructions: bytes
    maps: tuple[int, ...]
    ports: tuple[int, ...]

    @classmethod
    def of(cls, instructions: bytes) -> Program:
        """Return what the compiler made, its marks found."""
        marked: dict[int, list[int]] = {_MAP: [], CANARY_MARK: []}
        for at, (code, registers, _offset, _value) in enumerate(_INSTRUCTION.iter_unpack(instructions)):
            if code == _LOAD_64 and _source(registers) in marked:
                marked[_source(registers)].append(at)
        return cls(instructions, tuple(marked[_MAP]), tuple(marked[CANARY_MARK]))

    def bound(self, maps: Sequence[int], canary_port: int) -> bytes:
        """Return the instructions for the kernel. ``maps`` has the descriptor of each map at its number."""
        bound = bytearray(self.instructions)
        for at in self.maps:
            code, registers, offset, number = _INSTRUCTION.unpack_from(bound, at * _INSTRUCTION.size)
            _INSTRUCTION.pack_into(bound, at * _INSTRUCTION.size, code, registers, offset, maps[number])
        for at in self.ports:
            code, registers, offset, _number = _INSTRUCTION.unpack_from(bound, at * _INSTRUCTION.size)
            plain = _with_source(registers, 0)
            _INSTRUCTION.pack_into(bound, at * _INSTRUCTION.size, code, plain, offset, canary_port)
        return bytes(bound)

    def to_json(self) -> list[Any]:
        """Return it as JSON can hold it."""
        return [base64.b64encode(self.instructions).decode(), list(self.maps), list(self.ports)]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Program:
        """Return what :meth:`to_json` was made of."""
        instructions, maps, ports = value
        return cls(base64.b64decode(instructions), tuple(maps), tuple(ports))


def digest(*parts: bytes) -> str:
    """Return 32 hexadecimal digits that change whenever one of the parts does."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(b"%d:" % len(part))
        made.update(part)
    return made.hexdigest()


class Store:
    """A folder of values, found by what they were made of. Without a folder, or where it fails, nothing is kept.

    What is in it goes into the kernel: a file that others than root and this user could have written is not taken.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None

    def get(self, key: str) -> Any:
        """Return the value that was put there, None where there is none that is whole."""
        if self._folder is None:
            return None
        try:
            with open(self._folder / key, "rb", opener=_open_no_link) as file:
                found = os.fstat(file.fileno())
                if found.st_uid not in {0, os.geteuid()} or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    return None
                check, _, text = file.read().partition(b"\n")
            return json.loads(text) if check == digest(text).encode() else None
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keep a value, in place of the oldest where there are many. OSError where it cannot be."""
        if self._folder is None:
            return
        text = json.dumps(value).encode()
        new = self._folder / f".new-{os.getpid()}"
        try:
            with open(new, "wb", opener=_open_no_link) as file:
                file.write(digest(text).encode() + b"\n" + text)
            new.rename(self._folder / key)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in files[_KEPT:]:
            path.unlink()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
