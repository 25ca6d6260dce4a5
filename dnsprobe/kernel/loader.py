"""The loader child: compiles, loads and attaches BPF programs, and hands the descriptors over.

It is a separate process, whose exit frees the memory of LLVM: the daemon never imports bcc. It is started by
:mod:`dnsprobe.kernel.loader_keeper`, at the start and whenever a hook has to be exchanged. Its only argument is the
descriptor of a socket, where it receives the requests of :mod:`dnsprobe.kernel.loader_protocol`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dnsprobe import privileges
from dnsprobe.errors import UserError
from dnsprobe.hook_names import Attach
from dnsprobe.kernel import libbpf, loader_protocol
from dnsprobe.kernel.attach import attach_cgroup, attach_fentry, attach_kprobe, attach_tracepoint
from dnsprobe.kernel.cgroup_root import open_root
from dnsprobe.kernel.compiler import Compilation, Compiler
from dnsprobe.kernel.fentry import Fentry
from dnsprobe.kernel.hooks import (
    CAST_TO_KERNEL,
    CAST_TO_KERNEL_MACRO,
    ERROR_FUNCTION,
    ERROR_TRACEPOINT,
    LINEAGE_TRACEPOINTS,
    RUNGS,
    Hook,
    Rung,
    attempts,
    by_function,
    family_macro,
    kprobes_available,
)
from dnsprobe.kernel.kallsyms import Symbol, find_functions, read_kallsyms
from dnsprobe.kernel.layout import KERNEL_BTF, read_functions, read_layout
from dnsprobe.kernel.program_cache import ProgramCache

#: The map by which the programs of a hook call others, or themselves. The child makes one for each hook, because all
#: programs in a map of this kind must be of one type, and attached to the same function (kernel commit 28ead3eaabc1,
#: "bpf: Prevent tail call between progs attached to different hooks", in Linux 6.12).
SELF_CALLS = "SELF_CALLS"
#: Where ``x_odd`` is in that map: ODD_CALL of bpf/udp/egress.h.
_ODD_CALL = 2
#: The program that notes who opens a socket, for each program at egress that needs to know it.
_NOTES_OPENERS = {"egress": "sock_create_entry", "egress_stream": "sock_create_stream_entry"}


class _HookLoader:
    """Loads the programs of one hook.

    ``repeats``: the programs call themselves, for the next message in a write.
    """

    def __init__(
        self,
        compilation: Compilation,
        kind: libbpf.ProgramKind,
        map_fds: Sequence[int],
        canary_port: int,
        *,
        repeats: bool,
    ) -> None:
        self._compilation, self._kind, self._canary_port, self._repeats = compilation, kind, canary_port, repeats
        self._called: list[int] = []
        try:
            self._calls = libbpf.Map(libbpf.PROG_ARRAY, "self_calls", 4, 4, 4)
        except OSError as error:
            raise UserError(f"cannot create the BPF map self_calls: {libbpf.reason(error)}") from error
        self._maps = [*map_fds, self._calls.fd]

    def load(self, hook: Hook, function: str) -> int:
        """Load the next program of a hook, and those that it calls, if there are any. Return its descriptor.

        The program that ``x_entry`` calls is ``x_slow``, which may call ``x_odd``.
        """
        program = self._load(function)
        hook.programs.append(program)
        slow = f"{function.removesuffix('_entry')}_slow"
        called = program
        if slow in self._compilation.programs:
            called = self._load(slow)
        elif not self._repeats:
            return program
        try:
            number = len(hook.programs) - 1
            self._calls.set(struct.pack("=I", number), struct.pack("=I", called))
            self._set_odd(function)
            # The kernel empties such a map when its last descriptor is closed.
            if number == 0:
                hook.links.append(os.dup(self._calls.fd))
        except OSError as error:
            raise UserError(f"cannot fill the BPF map self_calls: {libbpf.reason(error)}") from error
        finally:
            if called != program:
                os.close(called)
        return program

    def _set_odd(self, function: str) -> None:
        odd = f"{function.removesuffix('_entry')}_odd"
        if odd in self._compilation.programs:
            program = self._load(odd)
            try:
                self._calls.set(struct.pack("=I", _ODD_CALL), struct.pack("=I", program))
            finally:
                os.close(program)

    def _load(self, function: str) -> int:
        if function not in self._compilation.programs:
            raise UserError(f"the BPF sources have no program {function}")
        instructions = self._compilation.programs[function].bound(self._maps, self._canary_port)
        try:
            return libbpf.load_program(self._kind, function, instructions)
        except libbpf.RefusedError as error:
            print(error.log, file=sys.stderr, flush=True)
            raise UserError(f"the kernel refuses the BPF program {function}: {libbpf.reason(error)}") from error

    def close(self) -> None:
        """Close the descriptor of the map. A hook that needs it has its own."""
        self._calls.close()


def _add_link(hook: Hook, place: str, attach: Callable[..., int], *arguments: Any) -> None:
    """Attach a program of a hook; UserError with the name of the place if the kernel refuses."""
    try:
        hook.links.append(attach(*arguments))
    except OSError as error:
        raise UserError(f"cannot attach to {place}: {libbpf.reason(error)}") from error


def _root_of_groups() -> str:
    """Return how messages call the root of the control groups, and what may be missing to attach there."""
    place = "the root of the control groups"
    if privileges.Capability.CAP_NET_ADMIN not in privileges.held():
        return f"{place}, which needs CAP_NET_ADMIN"
    # kernel/bpf/cgroup.c, hierarchy_allows_attach() and __cgroup_bpf_attach()
    return f"{place}, where another program may allow no others (BPF_F_ALLOW_MULTI)"


class Loader:
    """Attaches hooks on request. ``map_fds`` are the descriptors of the maps that the request names, in that order."""

    def __init__(self, request: dict[str, Any], map_fds: Sequence[int]) -> None:
        # systemd.exec(5): CACHE_DIRECTORY has the folders of CacheDirectory=, separated by colons.
        self.cache = ProgramCache(os.environ.get("CACHE_DIRECTORY", "").partition(":")[0])
        self._map_fds = map_fds
        self._canary_port: int = request["canary_port"]
        self._layout = read_layout(request["btf"], self.cache)
        self._compiler = Compiler(
            self._layout,
            request["ports"],
            request["encrypted_ports"],
            [*request["maps"], SELF_CALLS],
            self.cache,
            answers=request["answers"],
            servers=request["servers"],
        )
        # A BTF file from elsewhere may give the functions other ids.
        functions = self._layout.functions if request["btf"] == KERNEL_BTF else read_functions(self.cache)
        self._fentry = Fentry(functions)
        # Direct loads cost less than reads by a helper. If a kernel refuses them, the second way does without.
        cast = functions.get(CAST_TO_KERNEL)
        self._egress_ways = [(f"{CAST_TO_KERNEL_MACRO}={cast}",), ()] if cast else [()]
        self._kallsyms: bytes | None = None

    def use_maps(self, map_fds: Sequence[int]) -> None:
        """Load programs with other maps from now on, in the order of the first ones."""
        for fd in self._map_fds:
            os.close(fd)
        self._map_fds = map_fds

    def attach(self, rung: Rung, paths: Sequence[str], attempt: int) -> tuple[list[Hook], dict[str, str]]:
        """Attach a rung for some paths. ``attempt`` is the number of the way to attach it, from 0.

        Returns the attached hooks, and for each other path the reason why it has none.
        """
        if rung.reads_streams and self._layout.tcp_problem:
            return [], dict.fromkeys(paths, self._layout.tcp_problem)
        hooks: list[Hook] = []
        refused: dict[str, str] = {}
        attach = {
            Attach.FENTRY: self._attach_fentry,
            Attach.KPROBE: self._attach_kprobes,
            Attach.CGROUP: self._attach_egress,
            Attach.TRACEPOINT: self._attach_tracepoints,
        }[rung.attach]
        for function, group in by_function(rung, paths):
            hook = Hook(rung.name, rung.attach, tuple(group), function, [], [])
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
        hook = Hook(loader_protocol.LINEAGE, Attach.TRACEPOINT, (), LINEAGE_TRACEPOINTS[-1], [], [])
        kind = libbpf.ProgramKind(libbpf.RAW_TRACEPOINT)
        try:
            with self._loading(None, self._compiler.latest, kind) as loader:
                for tracepoint in LINEAGE_TRACEPOINTS:
                    program = loader.load(hook, f"{tracepoint}_entry")
                    _add_link(hook, f"the tracepoint {tracepoint}", attach_tracepoint, program, tracepoint)
        except UserError as error:
            hook.close()
            return [], {loader_protocol.LINEAGE: error.message}
        return [hook], {}

    def attach_answers(self, names: Sequence[str]) -> tuple[list[Hook], dict[str, str]]:
        """Attach the programs that take back notes, which each compilation has. Returns the same as :meth:`attach`.

        ``names`` are those of the hooks. Without the one of answers, the others are of no use. Without the others, a
        query that nobody answers waits until the timeout.
        """
        hooks: list[Hook] = []
        refused: dict[str, str] = {}
        attach = {
            loader_protocol.ANSWERS: self._attach_ingress,
            loader_protocol.SOCKET_ENDS: self._attach_socket_ends,
            loader_protocol.SOCKET_ERRORS: self._attach_socket_errors,
        }
        for name in names:
            hook = Hook(name, Attach.CGROUP, (), name, [], [])
            if loader_protocol.ANSWERS in refused:
                refused[name] = "it is of no use without the hook of answers"
                continue
            try:
                attach[name](hook)
            except UserError as error:
                hook.close()
                refused[name] = error.message
            else:
                hooks.append(hook)
        return hooks, refused

    def _attach_ingress(self, hook: Hook) -> None:
        kind = libbpf.ProgramKind(libbpf.CGROUP_SKB, libbpf.CGROUP_INET_INGRESS)
        self._attach_at_root(hook, "ingress_entry", kind)

    def _attach_socket_ends(self, hook: Hook) -> None:
        kind = libbpf.ProgramKind(libbpf.CGROUP_SOCK, libbpf.CGROUP_INET_SOCK_RELEASE)
        self._attach_at_root(hook, "sock_release_entry", kind)

    def _attach_at_root(self, hook: Hook, function: str, kind: libbpf.ProgramKind) -> None:
        with _open(open_root()) as root, self._loading(None, self._compiler.latest, kind) as loader:
            program = loader.load(hook, function)
            _add_link(hook, _root_of_groups(), attach_cgroup, program, root, kind.attach_type)
        hook.symbol = function.removesuffix("_entry")

    def _attach_socket_errors(self, hook: Hook) -> None:
        ways = (self._attach_errors_tracepoint, self._attach_errors_fentry, self._attach_errors_kprobe)
        for attach in ways:
            try:
                attach(hook)
            except UserError as error:
                hook.close()
                problem = error
            else:
                return
        raise problem

    def _attach_errors_tracepoint(self, hook: Hook) -> None:
        kind = libbpf.ProgramKind(libbpf.RAW_TRACEPOINT)
        with self._loading(None, self._compiler.latest, kind) as loader:
            program = loader.load(hook, f"{ERROR_TRACEPOINT}_entry")
        _add_link(hook, f"the tracepoint {ERROR_TRACEPOINT}", attach_tracepoint, program, ERROR_TRACEPOINT)
        hook.attach, hook.symbol = Attach.TRACEPOINT, ERROR_TRACEPOINT

    def _attach_errors_fentry(self, hook: Hook) -> None:
        if problem := self._fentry.problem(ERROR_FUNCTION):
            raise UserError(problem)
        # Both kinds of programs get the arguments as an array.
        with self._loading(None, self._compiler.latest, self._fentry.kind(ERROR_FUNCTION)) as loader:
            program = loader.load(hook, f"{ERROR_TRACEPOINT}_entry")
        _add_link(hook, f"{ERROR_FUNCTION} by fentry", attach_fentry, program)
        hook.attach, hook.symbol = Attach.FENTRY, ERROR_FUNCTION

    def _attach_errors_kprobe(self, hook: Hook) -> None:
        if not kprobes_available():
            raise UserError(f"this kernel has neither the tracepoint {ERROR_TRACEPOINT} nor kprobes")
        with self._loading(None, self._compiler.latest, libbpf.ProgramKind(libbpf.KPROBE)) as loader:
            program = loader.load(hook, f"{ERROR_FUNCTION}_entry")
        for symbol in self._find(ERROR_FUNCTION):
            _add_link(hook, f"{symbol.name} by a kprobe", attach_kprobe, program, symbol)
        if not hook.links:
            raise UserError(f"/proc/kallsyms has no {ERROR_FUNCTION}")
        hook.attach, hook.symbol = Attach.KPROBE, ERROR_FUNCTION

    # One method for each way to attach. Each fills in a hook, and raises UserError if the kernel refuses.

    def _attach_fentry(self, hook: Hook, rung: Rung, function: str, attempt: int) -> None:
        if attempt > 0:
            raise UserError(f"no other way to attach to {function} by fentry")
        if problem := self._fentry.problem(function):
            raise UserError(problem)
        with self._loading(rung, self._compiler.compile_rung(rung), self._fentry.kind(function)) as loader:
            program = loader.load(hook, rung.program(function))
        _add_link(hook, f"{function} by fentry", attach_fentry, program)

    def _attach_kprobes(self, hook: Hook, rung: Rung, function: str, attempt: int) -> None:
        if not kprobes_available():
            raise UserError("this kernel has no kprobes")
        possible = attempts(rung, self._find(function), function)
        if attempt >= len(possible):
            raise UserError(f"no other way to attach a kprobe to {function}")
        symbols, macros = possible[attempt].symbols, possible[attempt].macros
        hook.symbol = ",".join(symbol.name for symbol in symbols)
        with self._loading(
            rung, self._compiler.compile_rung(rung, macros), libbpf.ProgramKind(libbpf.KPROBE)
        ) as loader:
            program = loader.load(hook, rung.program(function))
        for symbol in symbols:
            _add_link(hook, f"{symbol.name} by a kprobe", attach_kprobe, program, symbol)

    def _find(self, function: str) -> list[Symbol]:
        """Return the symbols that a function has in this kernel."""
        if self._kallsyms is None:
            self._kallsyms = read_kallsyms()
        return find_functions(self._kallsyms, function)

    def _attach_egress(self, hook: Hook, rung: Rung, direction: str, attempt: int) -> None:
        if attempt >= len(self._egress_ways):
            raise UserError("no other way to attach to the root of the control groups")
        with _open(open_root()) as root:
            compilation, program = self._load_egress(hook, rung, direction, attempt)
            _add_link(hook, _root_of_groups(), attach_cgroup, program, root, libbpf.CGROUP_INET_EGRESS)
            self._note_openers(hook, rung, compilation, root, _NOTES_OPENERS[direction])

    def _load_egress(self, hook: Hook, rung: Rung, direction: str, attempt: int) -> tuple[Compilation, int]:
        """Load the program at egress in the first of the remaining ways that the kernel accepts."""
        kind = libbpf.ProgramKind(libbpf.CGROUP_SKB, libbpf.CGROUP_INET_EGRESS)
        for number, macros in enumerate(self._egress_ways[attempt:], attempt + 1):
            compilation = self._compiler.compile_rung(rung, (*_families(hook), *macros))
            try:
                with self._loading(rung, compilation, kind) as loader:
                    return compilation, loader.load(hook, rung.program(direction))
            except UserError:
                hook.close()
                if number == len(self._egress_ways):
                    raise
        raise AssertionError("there is no way")

    def _note_openers(self, hook: Hook, rung: Rung, compilation: Compilation, root: int, function: str) -> None:
        """Attach the program that notes who opens a socket for the protocol of a hook.

        Without it, a query that a firewall in user space sends on is counted without its process.
        """
        kind = libbpf.ProgramKind(libbpf.CGROUP_SOCK, libbpf.CGROUP_INET_SOCK_CREATE)
        place = "the opening of sockets in the root of the control groups"
        try:
            with self._loading(rung, compilation, kind) as loader:
                program = loader.load(hook, function)
            _add_link(hook, place, attach_cgroup, program, root, kind.attach_type)
        except UserError as error:
            print(error.message, file=sys.stderr, flush=True)

    def _attach_tracepoints(self, hook: Hook, rung: Rung, name: str, attempt: int) -> None:
        if attempt > 0:
            raise UserError(f"no other way to attach to the tracepoint {name}")
        functions, places = [rung.program(name)], [name]
        if rung.reads_streams and self._layout.preemptible_tracepoints:
            functions.append(f"{name}_again_entry")
            places.append(name)
        compilation = self._compiler.compile_rung(rung, _families(hook))
        with self._loading(rung, compilation, libbpf.ProgramKind(libbpf.RAW_TRACEPOINT)) as loader:
            for function, place in zip(functions, places, strict=True):
                program = loader.load(hook, function)
                _add_link(hook, f"the tracepoint {place}", attach_tracepoint, program, place)

    def _loading(
        self, rung: Rung | None, compilation: Compilation, kind: libbpf.ProgramKind
    ) -> contextlib.closing[_HookLoader]:
        repeats = rung is not None and rung.reads_streams
        return contextlib.closing(_HookLoader(compilation, kind, self._map_fds, self._canary_port, repeats=repeats))


def _families(hook: Hook) -> tuple[str, ...]:
    """Return the macros for the IP versions that a hook serves, none if it serves both."""
    versions = sorted({path[-1] for path in hook.paths})
    return (family_macro(versions),) if versions != ["4", "6"] else ()


@contextlib.contextmanager
def _open(fd: int) -> Iterator[int]:
    """Close a descriptor at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


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
            elif received:
                loader.use_maps(received)
                answer = {}
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
    elif request["rung"] == loader_protocol.ANSWERS:
        hooks, refused = loader.attach_answers(request["hooks"])
    else:
        rung = RUNGS[request["rung"], request["attach"]]
        hooks, refused = loader.attach(rung, request["paths"], request["attempt"])
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
