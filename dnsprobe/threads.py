"""What threads beside the main thread have in common."""

from __future__ import annotations

import signal


def leave_abort_to_main() -> None:
    """Block SIGABRT in this thread.

    systemd sends it if the event loop hangs, and the thread that takes it prints where it is. That has to be the main
    thread. It may not be the one that the kernel chooses if the whole process was stopped.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGABRT})
