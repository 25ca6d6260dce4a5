"""The regular check that the hooks still see queries, and the exchange of those that do not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from dnsprobe.commands.hooks import describe_hooks
from dnsprobe.errors import UserError
from dnsprobe.kernel.probe import Probe
from dnsprobe.kernel.prover import PathState
from dnsprobe.sinks.journal import PATH_LOST_ID, PATH_PROVED_ID

_log = logging.getLogger(__name__)


class Verification:
    """Sends canary queries down all paths at each interval, in a thread.

    If a path is not proved, all hooks are tried for it. ``changed`` is called when other paths than before are proved.
    """

    def __init__(self, probe: Probe, interval_seconds: float, changed: Callable[[], None]) -> None:
        self._probe, self._seconds, self._changed = probe, interval_seconds, changed
        self._task: asyncio.Task[None] | None = None
        self._work: asyncio.Future[str] | None = None

    def start(self) -> asyncio.Task[None]:
        """Verify at each interval from now on, and log each path that is lost or proved again."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self._verify()

    async def _verify(self) -> None:
        before = self._unproved
        await self._in_thread(self._send)
        lost = {path: problem for path, problem in self._unproved.items() if path not in before}
        for path, problem in lost.items():
            _log.error("%s is not proved any more: %s", path, problem, extra={"message_id": PATH_LOST_ID})
        if lost:
            self._changed()
        if self._unproved and (problem := await self._in_thread(self._recover)):
            _log.log(logging.WARNING if lost else logging.DEBUG, "no other hook was tried: %s", problem)
        again = [path for path in {**before, **lost} if path not in self._unproved]
        for path in again:
            place = self._state(path).place
            _log.info("%s is proved again, at %s", path, place, extra={"message_id": PATH_PROVED_ID})
        for path in lost:
            if path in self._unproved:
                state = self._state(path)
                reason = "; ".join(state.tried) or state.reason
                _log.warning("no other hook could be verified for %s: %s", path, reason)
        if again:
            _log.info("%s", describe_hooks(self._probe.prover, self._probe.answers))
            self._changed()

    @property
    def _unproved(self) -> dict[str, str]:
        return self._probe.prover.unproved | self._probe.answers.unproved

    def _state(self, path: str) -> PathState:
        return self._probe.answers.paths.get(path) or self._probe.prover.paths[path]

    def _send(self) -> str:
        self._probe.prover.verify()
        self._probe.answers.verify()
        return ""

    def _recover(self) -> str:
        """Return why no other hook could be tried, empty if they were."""
        try:
            self._probe.recover(lambda text: _log.debug("%s", text))
        except UserError as error:
            return error.message
        return ""

    async def _in_thread(self, work: Callable[[], str]) -> str:
        self._work = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            # A thread cannot be cancelled: stop() waits for it.
            return await asyncio.shield(self._work)
        finally:
            if self._work.done():
                self._work = None

    async def stop(self) -> None:
        """Wait until no thread uses the probe any more. There is no further proof."""
        if self._task is not None:
            self._task.cancel()
        self._probe.interrupt()
        if self._work is not None:
            with contextlib.suppress(Exception):  # the task has raised it
                await self._work
