"""Reading the configuration again while the daemon runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dnsprobe.config.main import Config
from dnsprobe.errors import UserError
from dnsprobe.pipeline.session import Session
from dnsprobe.sinks.journal import RELOAD_FAILED_ID
from dnsprobe.text import number

_log = logging.getLogger(__name__)


class RuleReloader:
    """Puts the rules of a changed configuration in force. ``read`` returns the configuration as it is now.

    ``successful`` is False if the last attempt failed; ``time`` is the last success in seconds since the epoch.
    """

    def __init__(self, config: Config, read: Callable[[], Config], session: Session) -> None:
        self._config, self._read, self._session = config, read, session
        self.successful, self.time = True, time.time()

    def reload(self) -> None:
        """Read the configuration and replace the rules. If that fails, the old rules stay in force."""
        try:
            config = self._read()
            self._session.replace_rules(config.domains)
        except (UserError, OSError) as error:
            self.successful = False
            _log.error("reload failed, the old rules stay in force: %s", error, extra={"message_id": RELOAD_FAILED_ID})
            return
        self.successful, self.time = True, time.time()
        _log.info("reloaded: %s", number(len(self._session.rules.rules), "rule"))
        if (config.probe, config.journal, config.metrics) != (
            self._config.probe,
            self._config.journal,
            self._config.metrics,
        ):
            _log.warning("only the rules were reloaded: other changes need a restart")
