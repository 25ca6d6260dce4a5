"""Real-time priority for map calls, so that no BPF program is skipped while one is interrupted.

While user space reads or changes a map, the kernel skips the kprobe programs on that CPU (bpf_prog_active,
kernel/bpf/syscall.c). A call takes less than a microsecond, unless the thread is preempted in the middle, as full and
lazy preemption allow. Then the queries of the process that runs instead are missed, as long as its time slice lasts.
Ordinary processes do not preempt a real-time process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Map calls in a row at real-time priority: tens of microseconds. Changing the priority costs more than most calls.
_SLICE = 32


class _RealTime(threading.local):
    """Runs the body of a ``with`` statement at real-time priority, if the process may: CAP_SYS_NICE, RLIMIT_RTPRIO.

    Only map calls belong inside: a thread at real-time priority keeps its CPU from all ordinary processes.
    """

    def __init__(self) -> None:
        self._allowed = True
        self._before = (os.SCHED_OTHER, os.sched_param(0))

    def __enter__(self) -> None:
        if not self._allowed:
            return
        self._before = (os.sched_getscheduler(0), os.sched_getparam(0))
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError:  # newer kernels count the runs that are missed then: ProgramRuns.missed
            self._allowed = False

    def __exit__(self, *_: object) -> None:
        if self._allowed:
            os.sched_setscheduler(0, *self._before)


#: For all threads: each has its own priority.
real_time = _RealTime()


def call_in_slices(call: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield the results of ``call``, which runs at real-time priority for :data:`_SLICE` items at a time.

    Both the source of the items and the consumer of the results run at ordinary priority.
    """
    left = iter(items)
    while batch := list(islice(left, _SLICE)):
        with real_time:
            results = [call(item) for item in batch]
        yield from results
