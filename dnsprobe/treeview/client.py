"""Asks a running dnsprobe for its counters, which it serves at ``/metrics``."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from prometheus_client import parser

from dnsprobe import __version__
from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.text import printable

#: Seconds that the daemon may send nothing.
_TIMEOUT = 10.0
#: The largest answer is smaller: it has 1,000,000 series, the upper limit of ``metrics.max_series``.
_MAX_BYTES = 1 << 30

#: Some versions of prometheus_client have no type hints.
_parse_families: Any = parser.text_string_to_metric_families

_CREDENTIALS_HINT = "use --user, and put the password into DNSPROBE_PASSWORD"


class SeriesCount(NamedTuple):
    """The labels of one series, and its value."""

    labels: Mapping[str, str]
    value: int


@dataclass(frozen=True, slots=True)
class Scrape:
    """The counters of a dnsprobe: queries, and encrypted connections, whose queries cannot be read.

    ``started`` is the start time of the daemon in seconds since the epoch, 0 if the answer does not contain it.
    """

    version: str
    started: float
    queries: tuple[SeriesCount, ...]
    encrypted: tuple[SeriesCount, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """The address of a daemon, and the credentials to send.

    ``cacert`` is a PEM file of certificates to trust instead of the system's. ``cert`` is a PEM file with the
    certificate of this client; its private key is in the file ``key``, or in the same file if ``key`` is None.
    """

    url: str
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = None


class NotAnswering(UserError):
    """The daemon does not answer now. A later attempt may succeed."""


def complete_url(text: str) -> str:
    """Return the URL of the metrics for ``HOST:PORT``, or for a URL with or without a path.

    Raises UserError if the text is neither.
    """

    def bad(message: str, hint: str = "write it as http://127.0.0.1:10059 or https://host.example:10059") -> UserError:
        return UserError(f"{message} ({printable(text)})", hint, EXIT_USAGE)

    if "@" in text:
        # The message does not repeat the text, which may contain a password.
        raise UserError("--url contains a user name", _CREDENTIALS_HINT, EXIT_USAGE)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise bad("not a URL") from None
    if parts.scheme not in {"http", "https"} or not host or not text.isascii() or not text.isprintable() or " " in text:
        raise bad("not a URL of http or https")
    return urlunsplit((parts.scheme, parts.netloc, parts.path if parts.path not in {"", "/"} else "/metrics", "", ""))


def url_of(listen: tuple[str, int]) -> str:
    """Return the URL of a daemon on this host whose ``metrics.listen`` has this address and port."""
    address, port = listen
    if port == 0:
        raise UserError(
            "metrics.listen has port 0, so each start takes another port", "use --url; the daemon's log has the port"
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"


def fetch(target: Target) -> Scrape:
    """Return the current counters. Raises UserError if no dnsprobe answers, or if it refuses the credentials."""
    return parse(_get(target), target.url)


def parse(text: str, url: str) -> Scrape:
    """Parse the text format of Prometheus; raise UserError if it is not the answer of a dnsprobe."""
    version, started = None, 0.0
    queries: list[SeriesCount] = []
    encrypted: list[SeriesCount] = []
    try:
        for sample in (sample for family in _parse_families(text) for sample in family.samples):
            if sample.name == "dnsprobe_queries_total":
                queries.append(SeriesCount(sample.labels, int(sample.value)))
            elif sample.name == "dnsprobe_encrypted_connections_total":
                encrypted.append(SeriesCount(sample.labels, int(sample.value)))
            elif sample.name == "dnsprobe_build_info":
                version = sample.labels.get("version", "")
            elif sample.name == "process_start_time_seconds":
                started = float(sample.value)
    except (ValueError, OverflowError, IndexError, KeyError):  # the parser raises these for any other text
        version = None
    if version is None:
        raise _not_dnsprobe(url, "the answer does not contain its metrics")
    return Scrape(version, started, tuple(queries), tuple(encrypted))


def _not_dnsprobe(url: str, why: str) -> UserError:
    return UserError(f"{url} is not a dnsprobe: {why}", "use --url with the address of a dnsprobe")


def _get(target: Target) -> str:
    request = urllib.request.Request(
        target.url, headers={"User-Agent": f"dnsprobe/{__version__}", "Accept": "text/plain"}
    )
    if target.user is not None:
        credentials = base64.b64encode(f"{target.user}:{target.password or ''}".encode("utf-8", "surrogateescape"))
        request.add_header("Authorization", f"Basic {credentials.decode('ascii')}")
    try:
        with _opener(target).open(request, timeout=_TIMEOUT) as answer:
            body: bytes = answer.read(_MAX_BYTES)
            # http.client reports a truncated body only if read() has no size.
            if answer.length:
                raise http.client.IncompleteRead(body, answer.length)
    except urllib.error.HTTPError as error:
        raise _refused(target, error) from error
    except urllib.error.URLError as error:
        raise _unreachable(target, error.reason) from error
    except UnicodeError as error:
        raise UserError(
            f"{printable(target.url)}: not a valid host name", "use --url with a name or an address"
        ) from error
    except (OSError, http.client.HTTPException) as error:  # while the body was read
        raise _unreachable(target, error) from error
    return body.decode("utf-8", "backslashreplace")


def _opener(target: Target) -> urllib.request.OpenerDirector:
    """Return an opener without proxies and redirects, so that the password goes only to the given address."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ]
    if target.url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=_tls(target)))
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def _tls(target: Target) -> ssl.SSLContext:
    def bad(option: str, path: str, error: Exception) -> UserError:
        # For a file in another format, the message of OpenSSL has only a line number of its source code.
        why = "not in PEM format" if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None) or error
        return UserError(f"{option} {printable(path)}: {why}", "use a readable file in PEM format", EXIT_USAGE)

    try:
        context = ssl.create_default_context(cafile=target.cacert)
    except OSError as error:
        raise bad("--cacert", target.cacert or "", error) from error
    if target.cert is not None:
        try:
            context.load_cert_chain(target.cert, target.key)
        except OSError as error:
            raise bad("--cert", target.cert, error) from error
    return context


def _refused(target: Target, error: urllib.error.HTTPError) -> UserError:
    error.close()
    if error.code == http.HTTPStatus.UNAUTHORIZED:
        if target.user is None:
            return UserError(f"{target.url} requires a user name and a password", _CREDENTIALS_HINT)
        return UserError(
            f"{target.url} refused the user {printable(target.user)} with this password", "check both, and try again"
        )
    if error.code == http.HTTPStatus.BAD_REQUEST and target.url.startswith("http:"):
        return UserError(f"{target.url} refused the request", f"if the server uses TLS: {_other_scheme(target)}")
    status = printable(f"{error.code} {error.reason}")
    if error.code in {http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE}:
        return NotAnswering(f"{target.url} cannot answer now: {status}", "try again")
    return _not_dnsprobe(target.url, f"the answer is {status}")


def _other_scheme(target: Target) -> str:
    scheme, colon, rest = target.url.partition(":")
    return f"--url {'http' if scheme == 'https' else 'https'}{colon}{rest}"


def _unreachable(target: Target, reason: object) -> UserError:
    # The server closed the connection. The kind of error depends on the state of TLS at that moment.
    closed = isinstance(reason, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError, http.client.HTTPException))
    if isinstance(reason, ssl.SSLError) and not closed:
        return _tls_failed(target, reason)
    where = urlsplit(target.url).netloc
    if isinstance(reason, ConnectionRefusedError):
        return NotAnswering(
            f"no dnsprobe at {where}: connection refused",
            "check that it runs: systemctl status dnsprobe; if it listens elsewhere, use --url",
        )
    if isinstance(reason, TimeoutError):
        return NotAnswering(f"{where} did not answer within {_TIMEOUT:.0f} seconds", "check the address")
    if isinstance(reason, socket.gaierror):
        kind = NotAnswering if reason.errno == socket.EAI_AGAIN else UserError
        return kind(f"{where}: {reason.strerror}", "check the host name, or use --url with an address")
    if closed:
        hint = (
            f"if the server uses {'plain HTTP' if target.url.startswith('https') else 'TLS'}: {_other_scheme(target)}"
        )
        if target.url.startswith("https") and target.cert is None:
            hint = f"if the server requires a client certificate: use --cert and --key; {hint}"
        return NotAnswering(f"{where} closed the connection", hint)
    what = getattr(reason, "strerror", None) or printable(str(reason))
    return NotAnswering(f"{where}: {what}", "check the address")


def _tls_failed(target: Target, error: ssl.SSLError) -> UserError:
    where = urlsplit(target.url).netloc
    if isinstance(error, ssl.SSLCertVerificationError):
        return UserError(
            f"the certificate of {where} is not trusted: {printable(error.verify_message)}",
            "use --cacert with the authority that signed it, and --url with a name that is in the certificate",
        )
    reason = (error.reason or "").lower().replace("_", " ") or printable(str(error))
    if error.reason == "WRONG_VERSION_NUMBER":
        return UserError(f"{where} does not use TLS", f"use {_other_scheme(target)}")
    if "certificate" in reason:
        return UserError(f"{where} refused the client certificate: {reason}", "use --cert and --key")
    return UserError(f"the TLS handshake with {where} failed: {reason}", "check the address")
