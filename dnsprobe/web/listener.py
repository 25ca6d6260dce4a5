"""Opens the listening socket of the HTTP server, and accepts connections one at a time."""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
from collections.abc import Callable

from dnsprobe.errors import UserError

_log = logging.getLogger(__name__)

_BACKLOG = 1024
#: include/uapi/linux/in.h. It works on IPv6 sockets too (net/ipv6/ipv6_sockglue.c sets the same flag).
_IP_FREEBIND = 15
#: How many connections are accepted in one round of the loop.
_BURST = 8
#: The errors of accept(2) that mean a lack of descriptors or memory. All others concern only the client.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: Seconds until the next attempt after such an error.
_RETRY_SECONDS = 0.25


class AddressTakenError(UserError):
    """Another program listens on the address."""


def inherited(descriptor: int) -> socket.socket:
    """Return the listening socket that systemd passed as this descriptor; raise UserError if it is something else."""
    try:
        listener = socket.socket(fileno=descriptor)
        kind = (listener.type, listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        raise UserError(f"descriptor {descriptor} from systemd is not a socket: {error.strerror}") from error
    if listener.family not in {socket.AF_INET, socket.AF_INET6} or kind != (socket.SOCK_STREAM, 1):
        raise UserError(
            f"descriptor {descriptor} from systemd is not a listening TCP socket",
            "dnsprobe.socket needs ListenStream=ADDRESS:PORT and Accept=no",
        )
    listener.setblocking(False)
    return listener


def listen(host: str, port: int, *, early: bool = False) -> socket.socket:
    """Return a socket that listens on an address; port 0 takes any free port. Raises UserError if that fails.

    ``early`` allows an address that no interface has yet: at boot, the network may be configured later.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot listen on {where}: {error}", "set metrics.listen to ADDRESS:PORT") from error
    failure: OSError | None = None
    for family, _, _, _, address in addresses:
        try:
            return _listen(family, address, early=early)
        except OSError as error:
            failure = failure or error
    assert failure is not None  # getaddrinfo returns at least one address
    hint = {
        errno.EADDRINUSE: f"see which program uses the port: ss -ltnp 'sport = :{port}'",
        errno.EADDRNOTAVAIL: "see the addresses of this host: ip address",
        errno.EACCES: "use a port above 1023, or grant CAP_NET_BIND_SERVICE",
        errno.EAFNOSUPPORT: "the kernel has no IPv6: use an IPv4 address",
    }.get(failure.errno or 0, "")
    kind = AddressTakenError if failure.errno == errno.EADDRINUSE else UserError
    raise kind(f"cannot listen on {where}: {failure.strerror}", hint) from failure


def _listen(family: int, address: tuple[object, ...], *, early: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)  # fails with ipv6.disable=1 at boot
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # With net.ipv6.bindv6only=1, [::] would not include the IPv4 addresses.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind(address)
        except OSError as error:
            if not early or error.errno != errno.EADDRNOTAVAIL:
                raise
            _log.warning("no interface has %s yet: /metrics is available as soon as one has it", address[0])
            listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            listener.bind(address)
        # At once: SO_REUSEADDR lets a second socket bind to the same address, and only its listen(2) fails.
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


class Acceptor:
    """Accepts connections from a listening socket in the running loop, and pauses while there is no room.

    ``seconds_to_room`` returns 0 if there is room for one more client. ``accepted`` gets each connection with its
    address. ``exhausted`` is called when no descriptor or memory is left.
    """

    def __init__(
        self,
        listener: socket.socket,
        seconds_to_room: Callable[[], float],
        accepted: Callable[[socket.socket, str], None],
        exhausted: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._seconds_to_room = seconds_to_room
        self._accepted = accepted
        self._exhausted = exhausted
        self._loop = asyncio.get_running_loop()
        #: Shows whether a connection waits. Without one, nobody must be closed to make room.
        self._waiting = select.poll()
        self._waiting.register(listener, select.POLLIN)
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept)

    def end_pause(self) -> None:
        """Try again before the end of a pause: a client has left or has become idle."""
        if self._pause is not None:
            self._resume()

    def close(self) -> None:
        """Accept no more connections."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.remove_reader(self._listener)

    def _resume(self) -> None:
        self.close()
        self._loop.add_reader(self._listener, self._accept)

    def _pause_for(self, seconds: float) -> None:
        self.close()
        self._pause = self._loop.call_later(seconds, self._resume)

    def _accept(self) -> None:
        # Only a few connections in each round of the loop: requests of earlier clients are read in between, so a flood
        # of connections does not displace clients before they are served.
        for number in range(_BURST):
            if number and not self._waiting.poll(0):
                return
            seconds = self._seconds_to_room()
            if seconds:
                self._pause_for(seconds)
                return
            try:
                connection, address = self._listener.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    # The connection stays in the backlog. Without a pause, the loop would try again all the time.
                    self._exhausted()
                    self._pause_for(_RETRY_SECONDS)
                return
            self._accepted(connection, address[0])
