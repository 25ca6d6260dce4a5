"""TLS of the HTTP side: the context of a configuration, and the stream of a connection."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import cast

from tornado.iostream import SSLIOStream

from dnsprobe.config.web import CIPHER_SUITES, Pem, TlsConfig, problem, read_pem
from dnsprobe.errors import UserError

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
#: TLS before 1.2 has no suites with authenticated encryption, so these are for it alone (RFC 5246, section 6.2.3.3).
_OF_OLD_VERSIONS = tuple(suite for suite in CIPHER_SUITES.values() if suite.endswith("-SHA"))

#: What net/http of Go answers there.
_PLAIN_HTTP = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"

_Reason = bool | BaseException | tuple[type[BaseException] | None, BaseException | None, TracebackType | None] | None


@contextmanager
def _as_file(raw: bytes) -> Iterator[str]:
    """Give a path, in memory, for what OpenSSL reads from files alone."""
    descriptor = os.memfd_create("dnsprobe-pem")
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(raw)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _locked() -> str:
    # Without this, OpenSSL asks for the passphrase at the terminal.
    raise UserError("encrypted")


def _certificates(pem: Pem, raw: bytes) -> str:
    """Return the certificates in a file alone; raise UserError if there are none, or bad ones."""
    found = b"\n".join(_CERTIFICATE.findall(raw)).decode()
    wrong = problem(pem.where, "not a certificate in PEM form", "give a file that begins -----BEGIN CERTIFICATE-----")
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
        with _as_file(chain.encode()) as cert_file, _as_file(key) as key_file:
            context.load_cert_chain(cert_file, key_file, _locked)
    except UserError as error:
        hint = "give it without a passphrase: openssl pkey -in OLD -out NEW"
        raise problem(config.key.where, "an encrypted key", hint) from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            hint = "give the key that the first certificate of cert_file was made for"
            raise problem(config.key.where, "does not fit the certificate", hint) from error
        if error.reason and error.reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
            said = error.reason.lower().replace("_", " ")
            hint = "make one with an RSA key of 2048 bits or an EC key, signed with SHA-256"
            raise problem(config.cert.where, f"a certificate that OpenSSL refuses ({said})", hint) from error
        hint = "give a file that begins -----BEGIN PRIVATE KEY-----"
        raise problem(config.key.where, "not a private key in PEM form", hint) from error


def make_context(config: TlsConfig) -> ssl.SSLContext:
    """Return a context for servers; raise UserError if a file that the configuration names is not what it should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old = config.min_version < ssl.TLSVersion.TLSv1_2
    suites = config.suites
    if suites is None:
        suites = tuple(each for each in CIPHER_SUITES.values() if old or each not in _OF_OLD_VERSIONS)
    if suites:
        # Versions before 1.2 have signatures with SHA-1, which OpenSSL 3 knows at no higher level.
        context.set_ciphers(":".join(suites) + (":@SECLEVEL=0" if old else ""))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # who wants TLS 1.0 has said so
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
    """Return an IP address in its one form, anything else as it is."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


class TlsStream(SSLIOStream):
    """The server's end of a connection; ``allowed_sans`` are names of clients, None for any client.

    It closes without TLS's own end (answers have their length in front): SSL_shutdown to a client that has left leaves
    an error behind in OpenSSL 3.5, which another connection of the same thread then takes for its own.
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
        """Read what the client has sent after its handshake: nothing of one that is not allowed."""
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
        """Close; a client that speaks plain HTTP is told so first."""
        if isinstance(exc_info, ssl.SSLError) and exc_info.reason == "HTTP_REQUEST" and not self.closed():
            with suppress(OSError):
                # Beside TLS. With anything left unread, the close would take the answer back.
                socket.socket.recv(self.socket, 1 << 16)
                socket.socket.send(self.socket, _PLAIN_HTTP)
        super().close(exc_info)
