"""The names of users."""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable

#: systemd gives the id of a DynamicUser= to another service soon after it is free, so a name is not kept for long.
_SECONDS = 60.0
_USERS = 256


def _look_up(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


class UserNames:
    """The names of users, each kept for a minute of ``clock`` (seconds). ``look_up`` returns None if there is none."""

    def __init__(
        self,
        look_up: Callable[[int], str | None] = _look_up,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up, self._clock = look_up, clock
        self._users: dict[int, tuple[float, str | None]] = {}

    def name(self, uid: int) -> str | None:
        """Return the name of a user id, None if it has none."""
        now = self._clock()
        until, name = self._users.get(uid, (now, None))
        if until <= now:
            if len(self._users) >= _USERS:
                self._users.clear()
            name = self._look_up(uid)
            self._users[uid] = now + _SECONDS, name
        return name
