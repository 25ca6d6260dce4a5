"""Kernel functions by the name that this kernel gives them, from ``/proc/kallsyms``.

Compilers rename static functions when they specialise them: ``udp_send_skb`` may be ``udp_send_skb.isra.51`` here and
``udp_send_skb.constprop.0.isra.3`` there. A ``.part.N`` is what remains of a function after its beginning was
inlined into the callers. Not entries: ``.cold`` (the unlikely half, jumped into) and ``__pfx_`` (padding before a
function).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_CLONE = rb"(?:\.(?:isra|constprop|part)\.[0-9]+)*"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function of the kernel; ``address`` is 0 where kallsyms hides addresses (kernel.kptr_restrict)."""

    name: str
    address: int

    @property
    def is_part(self) -> bool:
        """True for what the compiler split off: the function proper may exist beside it and call it."""
        return ".part." in self.name


def find_functions(kallsyms: bytes, name: str) -> list[Symbol]:
    """Return the entries of the function ``name`` under all names that a compiler gave it, in the order of kallsyms."""
    # Beginning with plain text, it is looked for many times faster in megabytes than with the address in front.
    pattern = re.compile(rb" (" + re.escape(name.encode()) + _CLONE + rb")(?:\t\[.*\])?$", re.MULTILINE)
    symbols = []
    for match in pattern.finditer(kallsyms):
        address, kind = kallsyms[kallsyms.rfind(b"\n", 0, match.start()) + 1 : match.start()].split(b" ")
        if kind in b"tTwW":
            symbols.append(Symbol(match[1].decode(), int(address, 16)))
    return symbols


def read_kallsyms(path: str = "/proc/kallsyms") -> bytes:
    """Return the symbol table, empty where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
