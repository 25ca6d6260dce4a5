"""The limit on file descriptors (RLIMIT_NOFILE, getrlimit(2)): raised if necessary, an error if it is too low."""

from __future__ import annotations

import logging
import resource

from dnsprobe.errors import UserError

_log = logging.getLogger(__name__)

#: Maps, hooks, rings, the event loop, children and the standard streams take 60 at the start. The rest is for reloads,
#: verifications, and for files that are read meanwhile.
NEEDED = 128


def ensure(connections: int = 0) -> None:
    """Raise the soft limit as far as dnsprobe needs, with that many HTTP connections.

    Raises UserError if the hard limit does not allow what is needed without connections. If it does not allow all
    connections, that is logged.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NEEDED + connections
    if _is_enough(soft, wanted):
        return
    allowed = wanted if _is_enough(hard, wanted) else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # forbidden, for example by seccomp
        allowed = soft
    if allowed < NEEDED:
        raise UserError(
            f"dnsprobe needs {NEEDED} file descriptors, and may open only {allowed}",
            f"raise the limit: ulimit -n {wanted} in a shell, LimitNOFILE={wanted} in a unit",
        )
    if allowed < wanted:
        _log.warning(
            "file descriptors for %d of %d connections (metrics.connections): dnsprobe may open only %d",
            allowed - NEEDED,
            connections,
            allowed,
        )


def _is_enough(limit: int, wanted: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= wanted
