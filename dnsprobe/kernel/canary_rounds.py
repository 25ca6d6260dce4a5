"""Rounds of canaries: send them, and compare what hooks report with what was sent."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import NamedTuple

from dnsprobe.errors import UserError
from dnsprobe.kernel.canary import Canaries, CanaryPort
from dnsprobe.kernel.hooks import PATHS
from dnsprobe.kernel.maps import CanaryRing

#: How often canaries are sent again in one proof if they could not be sent: that says nothing about the hook.
_MORE_ROUNDS = 2


class Verdicts(NamedTuple):
    """The problem of each path, empty if it is proved, and the paths whose canaries could not be sent."""

    problems: dict[str, str]
    unsent: frozenset[str]


class CanaryRounds:
    """Sends canaries to ``port``, with names that end with ``suffix`` in wire format. ``ring`` has what hooks report.

    One thread sends; others may call :meth:`interrupt`.
    """

    def __init__(self, port: CanaryPort, suffix: bytes, ring: CanaryRing) -> None:
        self._port, self._suffix, self._ring = port, suffix, ring
        self._lock = threading.Lock()
        self._sending: Canaries | None = None
        self.interrupted = False

    @property
    def host_paths(self) -> Sequence[str]:
        """The paths of whole datagrams and streams that this host has."""
        return self._port.paths

    def start(self, paths: Sequence[str], streams: Collection[str] = PATHS) -> Canaries:
        """Start a sender; UserError if that is not possible.

        ``streams`` are the paths of TCP whose queries are seen: the answers of others cannot be proved.
        """
        # Not with the lock: to start a process may take long.
        try:
            canaries = Canaries(paths, self._port, self._suffix, streams)
        except OSError as error:
            raise UserError(f"the canary could not be sent: {error.strerror}") from error
        with self._lock:
            self._sending = canaries
            if not self.interrupted:
                return canaries
        canaries.dismiss()
        raise UserError("the proof was interrupted")

    def send(
        self, paths: Sequence[str], canaries: Canaries | None = None, streams: Collection[str] = PATHS
    ) -> Verdicts:
        """Send canaries, again if they cannot be sent. ``canaries`` are of a sender that was started before.

        :meth:`start` explains ``streams``.
        """
        problems: dict[str, str] = {}
        left = list(paths)
        for number in range(1 + _MORE_ROUNDS):
            sending = canaries if canaries and not number else self.start(left, streams)
            try:
                sending.release(left)
                sending.wait()
                judged = sending.judge(self._ring.read())
            finally:
                sending.dismiss()
            problems |= {path: judged[path] for path in left}
            left = [path for path in left if path in sending.unsent]
            if not left:
                break
        return Verdicts(problems, frozenset(left))

    def interrupt(self) -> None:
        """Let a proof that another thread makes fail soon. There is none after this."""
        with self._lock:
            self.interrupted = True
            if self._sending is not None:
                self._sending.kill()
