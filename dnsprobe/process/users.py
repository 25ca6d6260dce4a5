"""The names of users."""

from __future__ import annotations

import math
import pwd
import time
from collections.abc import Callable

from dnsprobe.process.patience import Patience

#: systemd gives the id of a DynamicUser= to another service soon after it is free, so a name is not kept for long.
_SECONDS = 60.0
_USERS = 256
#: In place of a name that has to be looked up. No user has it.
_UNKNOWN = ""


def _look_up(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


class UserNames:
    """The names of users, each kept for a minute of ``clock`` (seconds). ``look_up`` returns None if there is none.

    The host may ask a server on the network for a name (nsswitch.conf(5)), which answers late or not at all.
    """

    def __init__(
        self,
        look_up: Callable[[int], str | None] = _look_up,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up, self._clock = look_up, clock
        self._users: dict[int, tuple[float, str | None]] = {}
        self._patience: Patience[None] = Patience("user name", clock)

    def name(self, uid: int) -> str | None:
        """Return the name of a user id; None if it has none, or if it is not known yet."""
        name = self._kept(uid)
        if name is _UNKNOWN:
            self._patience.call(lambda: self._learn(uid))
            name = self._kept(uid)
        return name or None

    def _kept(self, uid: int) -> str | None:
        until, name = self._users.get(uid, (-math.inf, None))
        return name if self._clock() < until else _UNKNOWN

    def _learn(self, uid: int) -> None:
        # In a thread, and perhaps late: then it is kept for the next query.
        name = self._look_up(uid)
        if len(self._users) >= _USERS:
            self._users.clear()
        self._users[uid] = self._clock() + _SECONDS, name
