"""To which functions of the running kernel programs can be attached by fentry (trampolines at their entries)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dnsprobe.kernel import libbpf
from dnsprobe.kernel.attach import attach_fentry
from dnsprobe.kernel.hooks import FUNCTIONS
from dnsprobe.kernel.layout import read_functions
from dnsprobe.kernel.program import EMPTY_PROGRAM
from dnsprobe.kernel.program_cache import ProgramCache


def function_problems() -> dict[str, str]:
    """Return the problem of each function that hooks attach to, an empty text if there is none."""
    fentry = Fentry(read_functions(ProgramCache("")))
    return {function: fentry.problem(function) for function in sorted(FUNCTIONS)}


class Fentry:
    """Finds out whether a function can be attached to. ``functions`` are the BTF ids of functions by their names."""

    def __init__(self, functions: Mapping[str, int]) -> None:
        self._functions = functions
        self._problems: dict[str, str] = {}

    def kind(self, function: str) -> libbpf.ProgramKind:
        """Return what programs for a function are loaded as; KeyError if BTF does not have the function."""
        return libbpf.ProgramKind(libbpf.TRACING, libbpf.TRACE_FENTRY, self._functions[function])

    def problem(self, function: str) -> str:
        """Return why the kernel cannot attach to a function by fentry, an empty text if it can.

        This attaches an empty program for a moment. It costs little, whereas the compiler takes a second.
        """
        if function not in self._problems:
            self._problems[function] = self._try(function)
        return self._problems[function]

    def _try(self, function: str) -> str:
        if function not in self._functions:
            return f"BTF has no function {function}"
        try:
            program = libbpf.load_program(self.kind(function), "empty", EMPTY_PROGRAM)
        except OSError as error:
            return f"the kernel refuses even an empty program: {libbpf.reason(error)}"
        try:
            # Such kernels before 5.12 let a run interrupt another one, which has the same scratch space. Without
            # preemption, they disable it during a run (migrate_disable() in __bpf_prog_enter()).
            if "PREEMPT" in os.uname().version and not libbpf.guards_fentry(program):
                return "this kernel is preemptible, and does not keep a program from interrupting itself"
            os.close(attach_fentry(program))
        except OSError as error:
            return f"cannot attach even an empty program: {libbpf.reason(error)}"
        finally:
            os.close(program)
        return ""
