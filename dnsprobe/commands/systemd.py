"""The protocol between a service and systemd: states, and sockets that systemd has opened."""

from __future__ import annotations

import logging
import os

from dnsprobe.errors import UserError

_log = logging.getLogger(__name__)

#: The time limit of one attempt to attach a hook. An attempt takes a second on an idle host, and three minutes on an
#: emulated processor that shares a busy one.
_ATTEMPT_SECONDS = 300


def notify(state: str) -> None:
    """Send a state to systemd if it started this process (sd_notify(3))."""
    if "NOTIFY_SOCKET" in os.environ:
        from systemd import daemon  # noqa: PLC0415 - memory: only a service needs it

        try:
            daemon.notify(state)
        except OSError as error:  # the variable was inherited from another service
            _log.debug("NOTIFY_SOCKET=%s: %s", os.environ["NOTIFY_SOCKET"], error.strerror)


def notify_attempt(hook: str) -> None:
    """Send the name of the hook that is tried next, and ask for more time.

    A slow machine needs long to compile a program, and some kernels need several attempts.
    """
    notify(f"STATUS=trying {hook}\nEXTEND_TIMEOUT_USEC={_ATTEMPT_SECONDS * 1_000_000}")


def passed_sockets() -> list[int]:
    """Return the descriptors of sockets that systemd has opened for this process (sd_listen_fds(3))."""
    if "LISTEN_FDS" not in os.environ:
        return []
    from systemd import daemon  # noqa: PLC0415 - memory: only a service with a socket unit needs it

    try:
        return list(daemon.listen_fds(unset_environment=True))
    except OSError as error:
        raise UserError(f"LISTEN_FDS={os.environ.get('LISTEN_FDS', '')}: {error.strerror}") from error
