"""Signals of the commands that run until they are interrupted."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def readable_on_stop() -> Iterator[int]:
    """Yield a descriptor that becomes readable on SIGINT or SIGTERM."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def on_signal(number: int, _frame: object) -> None:
        # If nobody reads the output, write(2) blocks, and Python resumes it after this handler. So a second signal ends
        # the process.
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(writer)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM too, so that the terminal is restored in the same way."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def wait_for_resize() -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits for some seconds: it returns True at once if the terminal is resized, else False."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # SIGWINCH needs a handler: an ignored signal does not write to the wakeup descriptor.
    before = signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait(seconds: float) -> bool:
        if not select.select([reader], [], [], max(seconds, 0.0))[0]:
            return False
        os.read(reader, 4096)
        return True

    try:
        yield wait
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGWINCH, before)
        os.close(reader)
        os.close(writer)
