"""What stands between strangers and the HTTP side: TLS, names and passwords, looked up anew when their files change."""

from __future__ import annotations

import base64
import binascii
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tornado.iostream import IOStream

from dnsprobe.config.web import WebConfig, load, need_bcrypt
from dnsprobe.errors import UserError
from dnsprobe.web.passwords import Verdict, Verifier
from dnsprobe.web.tls import TlsStream, make_context

_log = logging.getLogger(__name__)

#: What is wrong for a while, with no file.
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO})

#: What a file is known by: where it is, how long, and when it was changed. None if it is not there.
_Mark = tuple[int, ...] | None


def _mark(path: str) -> _Mark:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class InForce:
    """A configuration and the TLS context that is made of it; None is plain HTTP."""

    config: WebConfig = field(default_factory=WebConfig)
    context: ssl.SSLContext | None = None


def read(path: str) -> InForce:
    """Read a web configuration with all that it names; raise UserError for what is wrong."""
    return _complete(load(path))


def _complete(config: WebConfig) -> InForce:
    if config.users:
        need_bcrypt()
    try:
        return InForce(config, None if config.tls is None else make_context(config.tls))
    except OSError as error:  # no descriptor or memory left
        raise UserError(f"the certificates cannot be taken up: {error.strerror}") from error


class Protection:
    """The web configuration in ``path``, None for none; raise UserError if it is wrong.

    It is read again when one of its files has changed. A bad one changes nothing: what was good stays in force.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._marks: dict[str, _Mark] = {}
        self._verifier = Verifier()
        #: Whether the files were good when they were last read.
        self.good = True
        self._said = ""
        self._now = InForce() if path is None else self._read(path)

    @property
    def scheme(self) -> str:
        """``https`` or ``http``; that one stays."""
        return "http" if self._now.context is None else "https"

    @property
    def headers(self) -> Mapping[str, str]:
        """What to add to responses."""
        return self._now.config.headers

    def refresh(self, *, force: bool = False) -> None:
        """Read the files again if one has changed since they were read, or with ``force``; say what is wrong once."""
        if self._path is None or (not force and all(_mark(path) == mark for path, mark in self._marks.items())):
            return
        try:
            now = self._read(self._path)
            self._check_change(now)
        except UserError as error:
            self.good = False
            said = f"{error}; {error.hint}" if error.hint else str(error)
            if force or said != self._said:
                _log.error("the web configuration is bad, what was good stays in force: %s", said)
            self._said = said
            if getattr(error.__cause__, "errno", None) in _PASSING:
                self._marks[self._path] = ()  # what no file is known by: it is read again
        else:
            self._now, self.good, self._said = now, True, ""
            _log.info("the web configuration was read again")

    def stream(self, connection: socket.socket, max_buffer_size: int, read_chunk_size: int) -> IOStream:
        """Return the stream of a new connection; OSError if its client has left already."""
        self.refresh()
        now = self._now
        if now.context is None or now.config.tls is None:
            return IOStream(connection, max_buffer_size=max_buffer_size, read_chunk_size=read_chunk_size)
        return TlsStream(connection, now.context, now.config.tls.allowed_sans, max_buffer_size, read_chunk_size)

    def admit(
        self, authorization: str, address: str, done: Callable[[Verdict], object], wanted: Callable[[], bool]
    ) -> None:
        """Call ``done``, at once or later, with what is to become of a request with this header, empty for none.

        ``wanted`` tells whether its client still waits.
        """
        self.refresh()
        users = self._now.config.users
        if not users:
            done(Verdict.GOOD)
            return
        credentials = parse_basic(authorization)
        if credentials is None:
            done(Verdict.BAD)
            return
        self._verifier.verify(users, *credentials, address, done, wanted)

    def close(self) -> None:
        """End the thread that verifies passwords."""
        self._verifier.close()

    def _read(self, path: str) -> InForce:
        # Before reading: what changes meanwhile is read again.
        marks = {path: _mark(path)}
        try:
            config = load(path)
            marks |= {file: _mark(file) for file in config.files}
            return _complete(config)
        finally:
            self._marks = marks

    def _check_change(self, now: InForce) -> None:
        """Refuse what would let in more than before, as half a file does that is being written, or no client at all."""
        hint = "restart dnsprobe if it is meant"
        if (now.context is None) != (self._now.context is None):
            raise UserError(f"TLS cannot be turned {'off' if now.context is None else 'on'} while running", hint)
        if self._now.config.users and not now.config.users:
            raise UserError("basic_auth_users has no user any more", hint)
        before, after = self._now.config.tls, now.config.tls
        if before is None or after is None:
            return
        if before.client_auth == ssl.CERT_REQUIRED != after.client_auth:
            raise UserError("client_auth_type does not require a certificate any more", hint)
        if before.allowed_sans is not None and after.allowed_sans is None:
            raise UserError("client_allowed_sans is not there any more", hint)


def parse_basic(authorization: str) -> tuple[bytes, bytes] | None:
    """Return name and password of an Authorization header (RFC 7617), None if there are none in it."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(" "), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (name, password) if colon else None
