"""The protocol between a service and systemd: states, and sockets that systemd has opened."""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Sequence
from typing import NamedTuple

from dnsprobe.errors import UserError

_log = logging.getLogger(__name__)

#: The time limit of one attempt to attach a hook. An attempt takes a second on an idle host, and three minutes on an
#: emulated processor that shares a busy one.
_ATTEMPT_SECONDS = 300


#: Systemd answers at once, unless it hangs.
_BARRIER_SECONDS = 5
#: The name under which systemd keeps the listening socket for the next process.
_KEPT = "dnsprobe-address"


def notify(state: str, *descriptors: int) -> None:
    """Send a state, and copies of descriptors, to systemd if it started this process (sd_notify(3))."""
    if "NOTIFY_SOCKET" in os.environ:
        from systemd import daemon  # noqa: PLC0415 - memory: only a service needs it

        try:
            daemon.notify(state, fds=list(descriptors))
        except OSError as error:  # the variable was inherited from another service
            _log.debug("NOTIFY_SOCKET=%s: %s", os.environ["NOTIFY_SOCKET"], error.strerror)


def notify_attempt(hook: str) -> None:
    """Send the name of the hook that is tried next, and ask for more time.

    A slow machine needs long to compile a program, and some kernels need several attempts.
    """
    notify(f"STATUS=trying {hook}\nEXTEND_TIMEOUT_USEC={_ATTEMPT_SECONDS * 1_000_000}")


class PassedSockets(NamedTuple):
    """Descriptors of sockets from systemd: those of socket units, and those that an earlier process left there."""

    of_units: Sequence[int] = ()
    kept: Sequence[int] = ()


def passed_sockets() -> PassedSockets:
    """Return the sockets that systemd passes to this process (sd_listen_fds_with_names(3))."""
    if "LISTEN_FDS" not in os.environ:
        return PassedSockets()
    from systemd import daemon  # noqa: PLC0415 - memory: only a service needs it

    try:
        names = daemon.listen_fds_with_names()
    except OSError as error:
        raise UserError(f"LISTEN_FDS={os.environ.get('LISTEN_FDS', '')}: {error.strerror}") from error
    for variable in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):  # no child gets the sockets
        os.environ.pop(variable, None)
    kept = [descriptor for descriptor, name in names.items() if name == _KEPT]
    return PassedSockets([descriptor for descriptor in names if descriptor not in kept], kept)


def keep_socket(descriptor: int) -> None:
    """Ask systemd to keep a socket, and to pass it to the next process of this service (FileDescriptorStoreMax=)."""
    notify(f"FDSTORE=1\nFDNAME={_KEPT}\nFDPOLL=0", descriptor)


def forget_sockets() -> None:
    """Make systemd close the sockets that it keeps, and wait until it has done that."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={_KEPT}")
    reader, writer = os.pipe()
    try:
        notify("BARRIER=1", writer)  # systemd closes it when it has handled all earlier messages (sd_notify_barrier(3))
    finally:
        os.close(writer)
    done = select.poll()
    done.register(reader, 0)  # POLLHUP is always reported
    done.poll(_BARRIER_SECONDS * 1000)
    os.close(reader)
