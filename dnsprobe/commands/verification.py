"""The regular check that the hooks still see queries."""

from __future__ import annotations

import asyncio
import logging

from dnsprobe.kernel.prover import Prover
from dnsprobe.sinks.journal import PATH_LOST_ID, PATH_PROVED_ID

_log = logging.getLogger(__name__)


async def verify_regularly(prover: Prover, interval_seconds: float) -> None:
    """Send canary queries down all paths at each interval, and log each path that is lost or proved again."""
    while True:
        await asyncio.sleep(interval_seconds)
        before = {path: prover.paths[path].verified for path in prover.served_paths}
        problems = await _verify(prover)
        for path, problem in problems.items():
            if before.get(path):
                _log.error("%s is not proved any more: %s", path, problem, extra={"message_id": PATH_LOST_ID})
        for path, verified in before.items():
            if not verified and path not in problems:
                _log.info("%s is proved again", path, extra={"message_id": PATH_PROVED_ID})


async def _verify(prover: Prover) -> dict[str, str]:
    """Return the problem of each path that is not proved."""
    try:
        canaries = prover.start_round()
    except OSError as error:  # no process or descriptor left at the moment
        return prover.fail_round(f"the canary could not be sent: {error.strerror}")
    await asyncio.to_thread(canaries.wait)
    return prover.finish_round(canaries)
