"""Reading the configuration again while the daemon runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from dnsprobe.config.main import Config
from dnsprobe.config.source import Source
from dnsprobe.errors import UserError
from dnsprobe.pipeline.session import Session
from dnsprobe.sinks.journal import RELOAD_FAILED_ID
from dnsprobe.text import number

_log = logging.getLogger(__name__)

#: Seconds between the end of a reload and the start of the next one.
_PAUSE_SECONDS = 1.0


class RuleReloader:
    """Puts the rules of a changed configuration in force. ``source`` is where the configuration comes from.

    ``successful`` is False if the last attempt failed; ``time`` is the last success in seconds since the epoch.
    """

    def __init__(self, config: Config, source: Source, session: Session) -> None:
        self._needs_restart, self._source, self._session = config.needs_restart(), source, session
        self.successful, self.time = True, time.time()

    async def reload(self) -> None:
        """Read the configuration and replace the rules. If that fails, the old rules stay in force."""
        try:
            loaded = await self._session.reload(self._source)
        except (UserError, OSError) as error:
            self.successful = False
            _log.error("reload failed, the old rules stay in force: %s", error, extra={"message_id": RELOAD_FAILED_ID})
            return
        self.successful, self.time = True, time.time()
        self._source = loaded.source or self._source
        _log.info("reloaded: %s", number(len(self._session.rules.rules), "rule"))
        if loaded.needs_restart != self._needs_restart:
            _log.warning("only the rules were reloaded: other changes need a restart")


async def reload_on_demand(demand: asyncio.Event, reload: Callable[[], Awaitable[None]]) -> None:
    """Reload whenever ``demand`` is set, for ever.

    All demands during a reload and in a pause after it cause one more reload: without that, whoever may send signals
    could keep the daemon busy.
    """
    while True:
        await demand.wait()
        demand.clear()
        await reload()
        await asyncio.sleep(_PAUSE_SECONDS)
