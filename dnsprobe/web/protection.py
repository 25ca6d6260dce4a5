"""Protects the HTTP server with TLS, user names and passwords, and reloads their files when they change."""

from __future__ import annotations

import base64
import binascii
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tornado.iostream import IOStream

from dnsprobe.errors import UserError
from dnsprobe.web.passwords import Verdict, Verifier

if TYPE_CHECKING:
    from dnsprobe.config.web import WebConfig

# The web configuration and TLS are imported late, for start-up time and memory: most daemons have none of them.

_log = logging.getLogger(__name__)

#: Errors of the system that pass without a change of a file.
_TEMPORARY_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO})

#: Device, inode, size, and times of modification and change of a file; None if it does not exist.
_Fingerprint = tuple[int, ...] | None
#: A fingerprint that no file has.
_NO_FILE: _Fingerprint = ()


def _fingerprint(path: str) -> _Fingerprint:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A web configuration and its TLS context, None for plain HTTP."""

    config: WebConfig
    context: ssl.SSLContext | None


def read(path: str) -> Loaded:
    """Read a web configuration and the files that it names; raise UserError if one is invalid."""
    from dnsprobe.config.web import load  # noqa: PLC0415 - see the top of this file

    return _complete(load(path))


def _complete(config: WebConfig) -> Loaded:
    from dnsprobe.config.web import need_bcrypt  # noqa: PLC0415 - see the top of this file

    if config.users:
        need_bcrypt()
    if config.tls is None:
        return Loaded(config, None)
    from dnsprobe.web.tls import make_context  # noqa: PLC0415 - see the top of this file

    try:
        return Loaded(config, make_context(config.tls))
    except OSError as error:  # no descriptor or memory left
        raise UserError(f"cannot load the certificates: {error.strerror}") from error


class Protection:
    """The web configuration in ``path``, or none at all. Raises UserError if it is invalid at the start.

    It is reloaded when one of its files has changed. If the new files are invalid, the previous configuration stays in
    force.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._fingerprints: dict[str, _Fingerprint] = {}
        self._verifier = Verifier()
        #: Whether the files were valid when they were last read.
        self.good = True
        self._last_error = ""
        self._loaded: Loaded | None = None if path is None else self._read(path)

    @property
    def scheme(self) -> str:
        """``https`` or ``http``. A reload cannot change it."""
        return "https" if self._loaded is not None and self._loaded.context is not None else "http"

    @property
    def asks_for_password(self) -> bool:
        """Whether every client needs a password."""
        return self._loaded is not None and bool(self._loaded.config.users)

    @property
    def knows_clients(self) -> bool:
        """Whether every client needs a password or a certificate."""
        tls = None if self._loaded is None else self._loaded.config.tls
        return self.asks_for_password or (tls is not None and tls.client_auth == ssl.CERT_REQUIRED)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the configuration adds to each response."""
        return {} if self._loaded is None else self._loaded.config.headers

    def refresh(self, *, force: bool = False) -> None:
        """Reload the files if one of them has changed, or with ``force``. The same error is logged once."""
        if self._path is None or not (force or self._changed()):
            return
        try:
            loaded = self._read(self._path)
            if self._loaded is not None:
                _refuse_weaker(self._loaded, loaded)
        except UserError as error:
            self.good = False
            text = f"{error}; {error.hint}" if error.hint else str(error)
            if force or text != self._last_error:
                _log.error("the web configuration is invalid, the previous one stays in force: %s", text)
            self._last_error = text
            if getattr(error.__cause__, "errno", None) in _TEMPORARY_ERRORS:
                self._fingerprints[self._path] = _NO_FILE  # so the next call tries again
        else:
            self._loaded, self.good, self._last_error = loaded, True, ""
            _log.info("the web configuration was reloaded")

    def stream(self, connection: socket.socket, max_buffer_size: int, read_chunk_size: int) -> IOStream:
        """Return the stream of a new connection. Raises OSError if the client has left already."""
        self.refresh()
        loaded = self._loaded
        if loaded is None or loaded.context is None or loaded.config.tls is None:
            return IOStream(connection, max_buffer_size=max_buffer_size, read_chunk_size=read_chunk_size)
        from dnsprobe.web.tls import TlsStream  # noqa: PLC0415 - see the top of this file

        allowed_sans = loaded.config.tls.allowed_sans
        return TlsStream(connection, loaded.context, allowed_sans, max_buffer_size, read_chunk_size)

    def authenticate(
        self, authorization: str, address: str, done: Callable[[Verdict], object], wanted: Callable[[], bool]
    ) -> None:
        """Call ``done``, at once or later, with the verdict on a request with this Authorization header ("": none).

        ``address`` is that of the client, or its name. ``wanted`` returns whether the client still waits.
        """
        self.refresh()
        users = None if self._loaded is None else self._loaded.config.users
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

    def _changed(self) -> bool:
        return any(_fingerprint(path) != fingerprint for path, fingerprint in self._fingerprints.items())

    def _read(self, path: str) -> Loaded:
        from dnsprobe.config.web import load  # noqa: PLC0415 - see the top of this file

        # The fingerprints are taken first, so a change during the reading leads to another reload.
        fingerprints = {path: _fingerprint(path)}
        try:
            config = load(path)
            fingerprints |= {file: _fingerprint(file) for file in config.files}
            return _complete(config)
        finally:
            self._fingerprints = fingerprints


def _refuse_weaker(current: Loaded, loaded: Loaded) -> None:
    """Raise UserError for a change that would admit more clients, or that breaks all of them.

    A file that is only half written can look like such a change.
    """
    hint = "if this is intended, restart dnsprobe"
    if (loaded.context is None) != (current.context is None):
        raise UserError(f"TLS cannot be turned {'off' if loaded.context is None else 'on'} while running", hint)
    if current.config.users and not loaded.config.users:
        raise UserError("basic_auth_users no longer has a user", hint)
    before, after = current.config.tls, loaded.config.tls
    if before is None or after is None:
        return
    if before.client_auth == ssl.CERT_REQUIRED != after.client_auth:
        raise UserError("client_auth_type no longer requires a certificate", hint)
    if before.allowed_sans is not None and after.allowed_sans is None:
        raise UserError("client_allowed_sans is missing now", hint)


def parse_basic(authorization: str) -> tuple[bytes, bytes] | None:
    """Return name and password of an Authorization header (RFC 7617), None if it contains none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(" "), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (name, password) if colon else None
