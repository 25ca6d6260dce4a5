"""TLS of the HTTP server: the context for a configuration, and the stream of a connection."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import warnings
from collections.abc import Collection, Iterable
from contextlib import suppress
from types import TracebackType
from typing import cast

from tornado.iostream import SSLIOStream

from dnsprobe.config.web import CIPHER_SUITES, Pem, TlsConfig, problem, read_pem
from dnsprobe.errors import UserError
from dnsprobe.files import in_memory

#: The name of files in memory.
_PEM = "dnsprobe-pem"

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
#: TLS before 1.2 has no suites with authenticated encryption (RFC 5246, section 6.2.3.3), so it needs these.
_OLD_SUITES = tuple(suite for suite in CIPHER_SUITES.values() if suite.endswith("-SHA"))

#: The same answer as that of net/http in Go.
_PLAIN_HTTP = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"

_Reason = bool | BaseException | tuple[type[BaseException] | None, BaseException | None, TracebackType | None] | None


def _refuse_passphrase() -> str:
    # Otherwise OpenSSL asks for the passphrase at the terminal.
    raise UserError("encrypted")


def _certificates(pem: Pem, raw: bytes) -> str:
    """Return only the certificates in a file; raise UserError if there are none, or invalid ones."""
    found = b"\n".join(_CERTIFICATE.findall(raw)).decode()
    wrong = problem(
        pem.where, "not a certificate in PEM form", "use a file that begins with -----BEGIN CERTIFICATE-----"
    )
    if not found:
        raise wrong
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=found)
    except ssl.SSLError as error:
        raise wrong from error
    return found


def _load_chain(context: ssl.SSLContext, config: TlsConfig) -> None:
    cert, key = read_pem(config.cert), read_pem(config.key)
    chain = _certificates(config.cert, cert)
    try:
        # OpenSSL reads certificate chains and keys only from files.
        with in_memory(chain.encode(), _PEM) as cert_file, in_memory(key, _PEM) as key_file:
            context.load_cert_chain(cert_file, key_file, _refuse_passphrase)
    except UserError as error:
        hint = "remove its passphrase: openssl pkey -in OLD -out NEW"
        raise problem(config.key.where, "an encrypted key", hint) from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            hint = "use the key of the first certificate in cert_file"
            raise problem(config.key.where, "does not belong to the certificate", hint) from error
        if error.reason and error.reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
            reason = error.reason.lower().replace("_", " ")
            hint = "use a certificate with an EC key or an RSA key of at least 2048 bits, signed with SHA-256"
            raise problem(config.cert.where, f"a certificate that OpenSSL refuses ({reason})", hint) from error
        hint = "use a file that begins with -----BEGIN PRIVATE KEY-----"
        raise problem(config.key.where, "not a private key in PEM form", hint) from error


def make_context(config: TlsConfig) -> ssl.SSLContext:
    """Return the TLS context of a server; raise UserError if a file that the configuration names is invalid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old = config.min_version < ssl.TLSVersion.TLSv1_2
    suites = config.suites
    if suites is None:
        suites = tuple(each for each in CIPHER_SUITES.values() if old or each not in _OLD_SUITES)
    if suites:
        # Versions before 1.2 sign with SHA-1, which OpenSSL 3 allows only at this level.
        context.set_ciphers(":".join(suites) + (":@SECLEVEL=0" if old else ""))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the user has chosen TLS 1.0
        context.minimum_version = config.min_version if suites else ssl.TLSVersion.TLSv1_3
        context.maximum_version = config.max_version
    context.options |= ssl.OP_NO_RENEGOTIATION
    if config.prefer_server_suites:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if config.curve:
        context.set_ecdh_curve(config.curve)
    context.set_alpn_protocols(["http/1.1"])
    _load_chain(context, config)
    context.verify_mode = config.client_auth
    if config.client_ca is not None:
        context.load_verify_locations(cadata=_certificates(config.client_ca, read_pem(config.client_ca)))
        # As in Go, a certificate need not be self-signed to be trusted.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _same_form(name: str) -> str:
    """Return an IP address in its canonical form, and any other name unchanged."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


class TlsStream(SSLIOStream):
    """The server's end of a TLS connection. ``allowed_sans`` has the names of clients that may connect, None: any.

    It closes without a TLS close_notify, which clients do not need because each response has its length. In OpenSSL
    3.5, SSL_shutdown to a client that has left leaves an error in the error queue of the thread, where the next
    connection finds it.
    """

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        allowed_sans: Collection[str] | None,
        max_buffer_size: int,
        read_chunk_size: int,
    ) -> None:
        self._allowed = None if allowed_sans is None else set(map(_same_form, allowed_sans))
        connection.setblocking(False)
        wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        super().__init__(wrapped, max_buffer_size=max_buffer_size, read_chunk_size=read_chunk_size)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read data of the client; raise ConnectionAbortedError for a client that is not allowed."""
        size = super().read_from_fd(buf)
        if size is not None and self._allowed is not None:
            certificate = self.socket.getpeercert() or {}
            pairs = cast(Iterable[tuple[str, str]], certificate.get("subjectAltName", ()))
            names = {_same_form(name) for _, name in pairs}
            if not names & self._allowed:
                raise ConnectionAbortedError("no allowed name in the certificate")
            self._allowed = None
        return size

    def close(self, exc_info: _Reason = False) -> None:
        """Close the connection. A client that sends plain HTTP gets an answer first."""
        if isinstance(exc_info, ssl.SSLError) and exc_info.reason == "HTTP_REQUEST" and not self.closed():
            with suppress(OSError):
                # Not through TLS. The request is read first: closing a socket with unread data discards the answer.
                socket.socket.recv(self.socket, 1 << 16)
                socket.socket.send(self.socket, _PLAIN_HTTP)
        super().close(exc_info)
