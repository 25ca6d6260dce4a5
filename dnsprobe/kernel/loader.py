"""The loader child: compiles, loads and attaches BPF programs, and hands the descriptors over.

It is a separate process, whose exit frees the memory of LLVM: the daemon never imports bcc. Its only argument is the
descriptor of a socket, where it receives the requests of :mod:`dnsprobe.kernel.loader_protocol`.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

from dnsprobe.errors import UserError
from dnsprobe.kernel import libbpf, loader_protocol
from dnsprobe.kernel.attach import attach_kprobe, attach_tracepoint
from dnsprobe.kernel.compiler import Compilation, Compiler
from dnsprobe.kernel.hooks import (
    KPROBE,
    LINEAGE_TRACEPOINTS,
    RUNGS,
    TRACEPOINT,
    Hook,
    Rung,
    attempts,
    by_function,
    family_macro,
    kprobes_available,
)
from dnsprobe.kernel.kallsyms import find_functions, read_kallsyms
from dnsprobe.kernel.layout import read_layout
from dnsprobe.kernel.program_cache import ProgramCache

#: The map by which a program for TCP calls itself. The child makes it, one for each compilation, because the programs
#: in a map of this kind must be of one type.
SELF_CALLS = "SELF_CALLS"


class Loader:
    """Attaches hooks on request. ``map_fds`` are the descriptors of the maps that the request names, in that order."""

    def __init__(self, request: dict[str, Any], map_fds: Sequence[int]) -> None:
        # systemd.exec(5): CACHE_DIRECTORY has the folders of CacheDirectory=, separated by colons.
        self.cache = ProgramCache(os.environ.get("CACHE_DIRECTORY", "").partition(":")[0])
        self._map_fds = map_fds
        self._canary_port: int = request["canary_port"]
        self._layout = read_layout(request["btf"], self.cache)
        self._compiler = Compiler(
            self._layout, request["ports"], request["encrypted_ports"], [*request["maps"], SELF_CALLS], self.cache
        )
        self._self_call_maps: dict[tuple[str, ...], libbpf.Map] = {}
        self._kallsyms: bytes | None = None

    def attach(self, rung: Rung, paths: Sequence[str], attempt: int) -> tuple[list[Hook], dict[str, str]]:
        """Attach a rung for some paths. ``attempt`` is the number of the way to attach it, from 0.

        Returns the attached hooks, and for each other path the reason why it has none.
        """
        if rung.reads_streams and self._layout.tcp_problem:
            return [], dict.fromkeys(paths, self._layout.tcp_problem)
        hooks: list[Hook] = []
        refused: dict[str, str] = {}
        attach = self._attach_kprobes if rung.kind == KPROBE else self._attach_tracepoints
        for function, group in by_function(rung, paths):
            hook = Hook(rung.name, tuple(group), function, [], [])
            try:
                attach(hook, rung, function, attempt)
            except UserError as error:
                hook.close()
                refused |= dict.fromkeys(group, error.message)
            else:
                hooks.append(hook)
        return hooks, refused

    def attach_lineage(self) -> tuple[list[Hook], dict[str, str]]:
        """Attach the programs of lineage tracking, which each compilation has. Returns the same as :meth:`attach`."""
        if self._layout.lineage_problem:
            return [], {loader_protocol.LINEAGE: self._layout.lineage_problem}
        hook = Hook(loader_protocol.LINEAGE, (), LINEAGE_TRACEPOINTS[-1], [], [])
        try:
            for tracepoint in LINEAGE_TRACEPOINTS:
                self._add_tracepoint(hook, self._compiler.latest, f"{tracepoint}_entry", tracepoint)
        except UserError as error:
            hook.close()
            return [], {loader_protocol.LINEAGE: error.message}
        return [hook], {}

    def _attach_tracepoints(self, hook: Hook, rung: Rung, name: str, attempt: int) -> None:
        if attempt > 0:
            raise UserError(f"no other way to attach to the tracepoint {name}")
        macro = family_macro([path[-1] for path in hook.paths])
        compilation = self._compiler.compile_rung(rung, (macro,), kprobes=kprobes_available())
        for tracepoint in (name, *rung.helpers):
            self._add_tracepoint(hook, compilation, rung.program(tracepoint), tracepoint)
        if rung.reads_streams:
            if self._layout.preemptible_tracepoints:
                self._add_tracepoint(hook, compilation, f"{name}_again_entry", name)
            self._enable_self_calls(hook, compilation)

    def _add_tracepoint(self, hook: Hook, compilation: Compilation, function: str, tracepoint: str) -> None:
        program = self._load(compilation, function, TRACEPOINT)
        hook.programs.append(program)
        try:
            hook.links.append(attach_tracepoint(program, tracepoint))
        except OSError as error:
            raise UserError(f"cannot attach to the tracepoint {tracepoint}: {error.strerror}") from error

    def _attach_kprobes(self, hook: Hook, rung: Rung, function: str, attempt: int) -> None:
        if not kprobes_available():
            raise UserError("this kernel has no kprobes")
        if self._kallsyms is None:
            self._kallsyms = read_kallsyms()
        possible = attempts(rung, find_functions(self._kallsyms, function), function)
        if attempt >= len(possible):
            raise UserError(f"no other way to attach a kprobe to {function}")
        symbols, macros = possible[attempt].symbols, possible[attempt].macros
        hook.symbol = ",".join(symbol.name for symbol in symbols)
        compilation = self._compiler.compile_rung(rung, macros, kprobes=True)
        program = self._load(compilation, rung.program(function), KPROBE)
        hook.programs.append(program)
        if rung.reads_streams:
            self._enable_self_calls(hook, compilation)
        for symbol in symbols:
            try:
                hook.links.append(attach_kprobe(program, symbol))
            except OSError as error:
                raise UserError(f"cannot attach a kprobe to {symbol.name}: {error.strerror}") from error

    def _load(self, compilation: Compilation, function: str, kind: str) -> int:
        program_type = libbpf.KPROBE if kind == KPROBE else libbpf.RAW_TRACEPOINT
        maps = [*self._map_fds, self._self_call_map(compilation).fd]
        instructions = compilation.programs[function].bound(maps, self._canary_port)
        try:
            return libbpf.load_program(program_type, function, instructions)
        except libbpf.RefusedError as error:
            print(error.log, file=sys.stderr, flush=True)
            raise UserError(f"the kernel refuses the BPF program {function}: {error.strerror}") from error

    def _self_call_map(self, compilation: Compilation) -> libbpf.Map:
        if compilation.macros not in self._self_call_maps:
            try:
                self._self_call_maps[compilation.macros] = libbpf.Map(libbpf.PROG_ARRAY, "self_calls", 4, 4, 2)
            except OSError as error:
                raise UserError(f"cannot create the BPF map self_calls: {error.strerror}") from error
        return self._self_call_maps[compilation.macros]

    def _enable_self_calls(self, hook: Hook, compilation: Compilation) -> None:
        """Put the programs into the map by which they call themselves for the next message.

        The kernel empties such a map when its last descriptor is closed, so the hook keeps one.
        """
        self_calls = self._self_call_map(compilation)
        try:
            for index, program in enumerate(hook.programs):
                self_calls.set(struct.pack("=I", index), struct.pack("=I", program))
            hook.links.append(os.dup(self_calls.fd))
        except OSError as error:
            raise UserError(f"cannot fill the BPF map self_calls: {error.strerror}") from error


def _serve(channel: socket.socket) -> None:
    """Answer requests until the other side closes. The first names the maps and brings their descriptors."""
    loader: Loader | None = None
    while True:
        request, received = loader_protocol.receive(channel)
        if request is None:
            return
        hooks: list[Hook] = []
        try:
            if loader is None:
                loader = Loader(request, received)
                answer: dict[str, Any] = {}
            else:
                hooks, answer = _answer(loader, request)
        except UserError as error:
            answer = {"error": error.message, "hint": error.hint}
        loader_protocol.send(channel, answer, loader_protocol.descriptors(hooks))
        for hook in hooks:
            hook.close()


def _answer(loader: Loader, request: dict[str, Any]) -> tuple[list[Hook], dict[str, Any]]:
    if request["rung"] == loader_protocol.LINEAGE:
        hooks, refused = loader.attach_lineage()
    else:
        hooks, refused = loader.attach(RUNGS[request["rung"]], request["paths"], request["attempt"])
    answer = {
        "hooks": loader_protocol.describe(hooks),
        "refused": refused,
        "cache_problem": loader.cache.problem,
    }
    return hooks, answer


def main() -> None:
    """Serve on the descriptor that the command line names; end when the parent does."""
    pr_set_pdeathsig, sigkill = 1, 9
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, sigkill)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        _serve(channel)
    # The destructors of LLVM take long, and free only what the exit frees anyway.
    os._exit(0)


if __name__ == "__main__":
    main()
