"""The symbols of kernel functions, from ``/proc/kallsyms``.

Compilers rename static functions when they specialize them: ``udp_send_skb`` may become ``udp_send_skb.isra.51`` or
``udp_send_skb.constprop.0.isra.3``. If the beginning of a function is inlined into its callers, the rest becomes a
``.part.N``. Two kinds of symbols are not the entry of a function: ``.cold`` is its unlikely half, which it jumps into,
and ``__pfx_`` is the padding before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_CLONE = rb"(?:\.(?:isra|constprop|part)\.[0-9]+)*"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A kernel function. ``address`` is 0 if kallsyms hides addresses (kernel.kptr_restrict)."""

    name: str
    address: int

    @property
    def is_part(self) -> bool:
        """True for a part that the compiler split off. The whole function may exist as well, and call it."""
        return ".part." in self.name


def find_functions(kallsyms: bytes, name: str) -> list[Symbol]:
    """Return the entries of the function ``name``, under all names that a compiler gives it, in the table's order."""
    # A pattern that begins with plain text is many times faster in these megabytes than one with the address in front.
    pattern = re.compile(rb" (" + re.escape(name.encode()) + _CLONE + rb")(?:\t\[.*\])?$", re.MULTILINE)
    symbols = []
    for match in pattern.finditer(kallsyms):
        address, kind = kallsyms[kallsyms.rfind(b"\n", 0, match.start()) + 1 : match.start()].split(b" ")
        if kind in b"tTwW":
            symbols.append(Symbol(match[1].decode(), int(address, 16)))
    return symbols


def read_kallsyms(path: str = "/proc/kallsyms") -> bytes:
    """Return the symbol table, empty if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
