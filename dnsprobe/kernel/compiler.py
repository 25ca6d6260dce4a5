"""Compiling the BPF sources with BCC, or taking the programs from the cache.

BCC, and LLVM with it, is imported only when something has to be compiled.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnsprobe.errors import UserError
from dnsprobe.hook_names import Attach
from dnsprobe.kernel.clock import TICK_NS
from dnsprobe.kernel.hooks import (
    ATTACH_FENTRY,
    STREAM_TWICE,
    Rung,
)
from dnsprobe.kernel.layout import Layout
from dnsprobe.kernel.program import CANARY_MARK, Program
from dnsprobe.kernel.program_cache import ProgramCache, digest


def bpf_folder() -> Path:
    """Return the folder of the BPF sources; UserError if they are not installed."""
    # In the source tree and in the Debian package it is beside the Python package; a wheel installs it below the prefix
    # of the environment. Nowhere else, because other places may have the sources of another version.
    folders = (Path(__file__).parents[2] / "bpf", Path(sys.prefix) / "share/dnsprobe/bpf")
    for folder in folders:
        if (folder / "dnsprobe.bpf.c").exists():
            return folder
    raise UserError(
        f"the BPF sources are not installed: neither {folders[0]} nor {folders[1]} has dnsprobe.bpf.c",
        "install dnsprobe again",
    )


@dataclass(frozen=True, slots=True)
class Compilation:
    """The result of one run of the compiler: the programs by the names of their functions."""

    macros: tuple[str, ...]
    programs: dict[str, Program]


class Compiler:
    """Compiles for one kernel and one set of ports. It remembers what it compiled, and caches it for later starts.

    ``ports`` carry DNS, ``encrypted_ports`` carry DNS over TLS. ``maps`` are the names of the maps, in the order of
    their numbers. ``answers`` is whether the programs track answers, ``servers`` whether they tell servers apart.
    Raises UserError if there is no BCC.
    """

    def __init__(
        self,
        layout: Layout,
        ports: Sequence[int],
        encrypted_ports: Sequence[int],
        maps: Sequence[str],
        cache: ProgramCache,
        *,
        answers: bool = False,
        servers: bool = False,
    ) -> None:
        self._options = [*(["ANSWERS"] if answers else []), *(["BY_SERVER"] if servers else [])]
        self._layout = layout
        self._ports, self._encrypted_ports, self._maps = ports, encrypted_ports, maps
        self._cache = cache
        self._bcc_identity = _find_bcc()
        self._compilations: dict[tuple[str, ...], Compilation] = {}

    def compile_rung(self, rung: Rung, defines: Sequence[str] = ()) -> Compilation:
        """Return the programs of a rung, compiled with additional macros.

        Each rung has a compilation of its own. So the programs at egress, which take most of the time, are compiled
        once, whatever functions they are used with.
        """
        fentry = (ATTACH_FENTRY,) if rung.attach == Attach.FENTRY else ()
        return self.compile((*(self._stream_macros(rung) if rung.reads_streams else (rung.macro,)), *fentry, *defines))

    def _stream_macros(self, rung: Rung) -> tuple[str, ...]:
        twice = rung.attach == Attach.TRACEPOINT and self._layout.preemptible_tracepoints
        return (rung.macro, STREAM_TWICE) if twice else (rung.macro,)

    @property
    def latest(self) -> Compilation:
        """The compilation that was made last. Each one has the programs of lineage tracking and of answers."""
        if not self._compilations:
            return self.compile(())
        return next(reversed(self._compilations.values()))

    def compile(self, macros: tuple[str, ...]) -> Compilation:
        """Return the programs that the BPF sources have with these macros; UserError if they do not compile."""
        if macros not in self._compilations:
            self._compilations[macros] = Compilation(macros, self._programs(macros))
        return self._compilations[macros]

    def _programs(self, macros: Sequence[str]) -> dict[str, Program]:
        flags = self._flags(macros)
        sources = [path.read_bytes() for path in sorted(bpf_folder().rglob("*.[ch]"))]
        key = f"programs-{digest(*self._bcc_identity, *(flag.encode() for flag in flags), *sources)}"
        if (cached := self._cache.get(key)) is not None:
            return {function: Program.from_json(program) for function, program in cached.items()}
        try:
            programs = _run_compiler(flags)
        except UserError:
            raise
        except Exception as error:  # BCC raises nothing narrower
            raise UserError(f"the BPF programs do not compile with the macros {' '.join(macros)}: {error}") from error
        self._cache.put(key, {function: program.to_json() for function, program in programs.items()})
        return programs

    def _flags(self, macros: Sequence[str]) -> list[str]:
        return [
            "-Wno-unused-function",
            # BCC asks for debug information, which takes a sixth of the time, and which nothing reads.
            "-g0",
            # BCC optimizes the output of clang. Without optimization in clang, it takes a quarter less time.
            "-Xclang",
            "-disable-llvm-passes",
            f"-DCANARY_MARK={CANARY_MARK}",
            f"-DWATCHED_PORT(port)=({_any_of([*self._ports, 'CANARY_PORT'])})",
            f"-DTICK_NS={TICK_NS}",
            f"-DENCRYPTED_PORT(port)=({_any_of(self._encrypted_ports)})",
            *(f"-DMAP_{name}={number}" for number, name in enumerate(self._maps)),
            *(f"-D{name}={value}" for name, value in self._layout.macros.items()),
            *(f"-D{macro}" for macro in (*self._options, *macros)),
        ]


def _any_of(ports: Sequence[int | str]) -> str:
    return "||".join(f"(port)=={port}" for port in ports) or "0"


def _find_bcc() -> list[bytes]:
    """Return paths, times and sizes that identify the installed BCC, without loading LLVM; UserError without BCC."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        raise _no_bcc(f"{sys.executable} finds none")
    files = [Path(found.origin).with_name(name) for name in ("__init__.py", "libbcc.py", "version.py")]
    try:
        return [f"{path} {path.stat().st_mtime_ns} {path.stat().st_size}".encode() for path in files]
    except FileNotFoundError:
        raise UserError(
            f"the bcc module at {found.origin} is not the BPF Compiler Collection",
            "pip uninstall bcc; the right one is Debian's python3-bpfcc",
        ) from None


def _no_bcc(reason: str) -> UserError:
    return UserError(
        f"the bcc module is missing: {reason}",
        "apt-get install python3-bpfcc, and run dnsprobe with /usr/bin/python3 or a virtual environment of it "
        "made with --system-site-packages (PyPI's bcc is another program)",
    )


def _run_compiler(flags: Sequence[str]) -> dict[str, Program]:
    """Return the program of each function. BCC raises exceptions of all kinds."""
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    try:
        import bcc  # noqa: PLC0415 - loads LLVM, which takes memory and time: only when something has to be compiled
    except ImportError as error:
        raise _no_bcc(str(error)) from error
    module = bcc.BPF(src_file=str(bpf_folder() / "dnsprobe.bpf.c"), cflags=[f"-I{bpf_folder()}", *flags])
    names = [bcc.lib.bpf_function_name(module.module, at) for at in range(bcc.lib.bpf_num_functions(module.module))]
    return {name.decode(): Program.of(module.dump_func(name)) for name in names}
