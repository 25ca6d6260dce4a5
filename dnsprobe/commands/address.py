"""The address of the HTTP server: whose socket it is, how systemd keeps it, and what happens if somebody else has it.

Any user of the host can listen on a free port above 1023, and would serve forged metrics there. So systemd keeps the
socket while the service restarts (sd_pid_notify_with_fds(3)), and no other program can take the port meanwhile.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Sequence

from dnsprobe.commands.systemd import PassedSockets, forget_sockets, keep_socket
from dnsprobe.errors import UserError
from dnsprobe.process.procfs import ProcFS
from dnsprobe.process.users import UserNames
from dnsprobe.sinks.journal import ADDRESS_TAKEN_ID
from dnsprobe.text import printable
from dnsprobe.web.listener import AddressTakenError
from dnsprobe.web.peers import uid_of_listener
from dnsprobe.web.server import Server

_log = logging.getLogger(__name__)


class ServerAddress:
    """The address of ``server``, which is ``listen`` unless a socket unit passes a socket."""

    def __init__(self, server: Server, listen: tuple[str, int]) -> None:
        self._server = server
        self._listen = listen
        self._serving = False
        #: Why nobody can reach the server; empty if it has its address.
        self.problem = ""

    def take(self, passed: PassedSockets) -> None:
        """Use a socket that systemd passed, or open one. Raises UserError, but not if another program has it."""
        if len(passed.of_units) > 1:
            raise UserError(
                f"systemd passed {len(passed.of_units)} sockets",
                "dnsprobe serves only one: leave one ListenStream= in dnsprobe.socket",
            )
        if passed.of_units:
            self._server.adopt(passed.of_units[0])
            if not self._is_configured():
                _log.warning(
                    "dnsprobe.socket listens on %s, so metrics.listen (%s) has no effect: change the address with"
                    " systemctl edit dnsprobe.socket, and give metrics.listen the same one, for dnsprobe tree",
                    written(*self._server.address),
                    written(*self._listen),
                )
        self._use_kept(passed.kept)
        if not self._server.listening:
            self._open()

    def serve(self) -> None:
        """Accept connections, now or as soon as the address is free."""
        self._serving = True
        if self._server.listening:
            self._server.start()

    def retry(self) -> bool:
        """Take the address if another program had it; return whether it has it no longer."""
        if not self.problem:
            return False
        try:
            self._open()
        except UserError as error:  # the address has left all interfaces
            _log.debug("%s", error)
        if not self._server.listening:
            return False
        _log.info("%s is free: the metrics are served there now", written(*self._listen))
        self.serve()
        return True

    def _use_kept(self, kept: Sequence[int]) -> None:
        """Use the socket of an earlier process, unless the configuration has another address now."""
        for descriptor in kept:
            if self._server.listening:
                os.close(descriptor)
            elif self._can_use(descriptor):
                continue
            forget_sockets()

    def _can_use(self, descriptor: int) -> bool:
        try:
            self._server.adopt(descriptor)
        except UserError as error:
            _log.warning("%s", error)
            return False
        if not self._is_configured():
            self._server.abandon()
        return self._server.listening

    def _is_configured(self) -> bool:
        """Return whether the server has the address of the configuration."""
        (host, port), (wanted, wanted_port) = self._server.address, self._listen
        return wanted_port in {0, port} and _parsed(host) == _parsed(wanted)

    def _open(self) -> None:
        try:
            self._server.bind(*self._listen, early="NOTIFY_SOCKET" in os.environ)
        except AddressTakenError as error:
            if not self.problem:
                _log.error(
                    "%s, by %s. Queries are counted all the same, but whoever requests the metrics reaches another"
                    " program. dnsprobe tries again each second; %s",
                    error.message,
                    holder(*self._listen),
                    error.hint,
                    extra={"message_id": ADDRESS_TAKEN_ID},
                )
            self.problem = f"no metrics, because another program has {written(*self._listen)}"
        else:
            self.problem = ""
            keep_socket(self._server.fileno())


def written(host: str, port: int) -> str:
    """Return an address and a port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def holder(host: str, port: int) -> str:
    """Return who listens on an address: the user, and the processes that may be seen."""
    uid = uid_of_listener(host, port)
    if uid is None:
        return "an unknown user"
    name = UserNames().name(uid)
    user = f"user {uid}" if name is None else f"user {name} ({uid})"
    return ", ".join([user, *_listeners(host, port)])


def _listeners(host: str, port: int) -> list[str]:
    """Return the name and pid of each process that listens on an address."""
    import psutil  # noqa: PLC0415 - half a megabyte, for a case that most hosts never meet

    proc, found = ProcFS(), set()
    try:
        for connection in psutil.net_connections("tcp"):
            # One that listens on all addresses may have IPv6, and serve IPv4 as well.
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.laddr.ip in {host, "0.0.0.0", "::"}
                and connection.pid
            ):
                # Not psutil.Process.name(): it reads the command line if the name is long, which may take for ever.
                found.add(f"{printable(proc.comm(connection.pid) or b'')}[{connection.pid}]")
    except (psutil.Error, OSError):  # /proc is not readable
        pass
    return sorted(found)


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host.partition("%")[0])
