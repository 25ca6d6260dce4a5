"""Asks a running dnsprobe for its counters, which it serves at ``/metrics``."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from prometheus_client import parser

from dnsprobe import __version__
from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.files import in_memory, read_file
from dnsprobe.text import printable

#: Seconds that the daemon may send nothing.
_TIMEOUT = 10.0
#: Seconds for the whole answer, with its parsing.
_WHOLE_TIMEOUT = 60.0
#: An answer with 1,000,000 series, the upper limit of ``metrics.max_series``, is smaller unless all trees are deep.
_MAX_BYTES = 256 << 20
#: 1,000,000 series, and three results of each: most have one or two.
_MAX_LINES = 4_000_000
#: Characters of what a server says about an error.
_MAX_REASON = 80
#: Octets. The tree is the longest label: 41 names of 15 octets, each escaped twice.
_MAX_LINE = 64 << 10

_NEEDED = re.compile(
    rb"^(?:dnsprobe_(?:queries_total|encrypted_connections_total|build_info|responses_total|unanswered_total"
    rb"|queries_waiting|responses_unmatched_total)|process_start_time_seconds)\b[^\n]*",
    re.MULTILINE,
)

#: Some versions of prometheus_client have no type hints.
_parse_families: Any = parser.text_fd_to_metric_families

#: Octets of a certificate or key, and its name in memory.
_MAX_PEM, _PEM = 1 << 20, "dnsprobe-pem"

_CREDENTIALS_HINT = "use --user, and put the password into DNSPROBE_PASSWORD"


class SeriesCount(NamedTuple):
    """The labels of one series, and its value. ``result`` is its response code, or the reason why no answer came."""

    labels: Mapping[str, str]
    value: int
    result: str = ""


@dataclass(frozen=True, slots=True)
class Scrape:
    """The counters of a dnsprobe: queries, and encrypted connections, whose queries cannot be read.

    ``started`` is the start time of the daemon in seconds since the epoch, 0 if the answer does not contain it.
    ``results`` is what became of the queries, and ``waiting`` how many wait; None if the daemon does not track answers.
    """

    version: str
    started: float
    queries: tuple[SeriesCount, ...]
    encrypted: tuple[SeriesCount, ...]
    results: tuple[SeriesCount, ...] | None = None
    waiting: tuple[SeriesCount, ...] = ()


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
    until = time.monotonic() + _WHOLE_TIMEOUT
    body = _get(target, until)

    def in_time(lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            if time.monotonic() > until:
                raise _too_slow(target)
            yield line

    return _parse(in_time(_needed_lines(body, target.url)), target.url)


def parse(text: str, url: str) -> Scrape:
    """Parse the text format of Prometheus; raise UserError if it is not the answer of a dnsprobe."""
    return _parse(_needed_lines(text.encode("utf-8", "surrogateescape"), url), url)


def _needed_lines(body: bytes, url: str) -> Iterator[str]:
    """Yield the lines of the metrics that are shown. The parser takes a time that is quadratic in a line's length."""
    for number, found in enumerate(_NEEDED.finditer(body)):
        line = found[0]
        if len(line) > _MAX_LINE or number > _MAX_LINES:
            raise not_dnsprobe(url, "the answer has a longer line, or more series, than that of any dnsprobe")
        yield line.decode("utf-8", "backslashreplace") + "\n"


#: The metrics with a series for each process tree or rule; None: their series have no result.
_COUNTED = {
    "dnsprobe_queries_total": None,
    "dnsprobe_encrypted_connections_total": None,
    "dnsprobe_responses_total": "rcode",
    "dnsprobe_unanswered_total": "reason",
    "dnsprobe_queries_waiting": None,
    # Its series are there from the start if the daemon tracks answers, and only then.
    "dnsprobe_responses_unmatched_total": "reason",
}


def _parse(lines: Iterator[str], url: str) -> Scrape:
    version, started = None, 0.0
    counted: dict[str, list[SeriesCount]] = {name: [] for name in _COUNTED}
    try:
        for sample in (sample for family in _parse_families(lines) for sample in family.samples):
            if sample.name in counted:
                label = _COUNTED[sample.name]
                result = sample.labels.get(label, "") if label else ""
                counted[sample.name].append(SeriesCount(sample.labels, _count(sample.value), result))
            elif sample.name == "dnsprobe_build_info":
                version = sample.labels.get("version", "")
            elif sample.name == "process_start_time_seconds":
                started = float(sample.value)
    except (ValueError, OverflowError, IndexError, KeyError):  # the parser raises these for any other text
        version = None
    if version is None:
        raise not_dnsprobe(url, "the answer does not contain its metrics")
    queries, encrypted, responses, unanswered, waiting, unmatched = map(tuple, counted.values())
    return Scrape(version, started, queries, encrypted, responses + unanswered if unmatched else None, waiting)


def _count(value: float) -> int:
    """Return a counter of the kernel, which has 64 bits; ValueError if it is none."""
    if not 0 <= value < 2.0**64:
        raise ValueError(value)
    return int(value)


def not_dnsprobe(url: str, why: str) -> UserError:
    """Return the error for an answer that no dnsprobe gives."""
    return UserError(f"{url} is not a dnsprobe: {why}", "use --url with the address of a dnsprobe")


def _get(target: Target, until: float) -> bytes:
    """Return the body of the answer. No proxy and no redirect: the password goes only to the given address."""
    parts = urlsplit(target.url)
    headers = {"User-Agent": f"dnsprobe/{__version__}", "Accept": "text/plain", "Connection": "close"}
    if target.user is not None:
        credentials = base64.b64encode(f"{target.user}:{target.password or ''}".encode("utf-8", "surrogateescape"))
        headers["Authorization"] = f"Basic {credentials.decode('ascii')}"
    host = parts.hostname or ""
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port, timeout=_TIMEOUT, context=_tls(target)
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT)
    late = threading.Event()
    try:
        with contextlib.closing(connection):
            connection.connect()
            with _shut_down_at(until, connection.sock, late):
                connection.request("GET", parts.path, headers=headers)
                # The answer keeps the socket open if it has no length or announces the end of the connection.
                with connection.getresponse() as answer:
                    if answer.status != http.HTTPStatus.OK:
                        raise _refused(target, answer.status, answer.reason)
                    if answer.headers.get("Content-Encoding", "identity") != "identity":
                        raise not_dnsprobe(target.url, "the answer is compressed, which was not asked for")
                    return _body(answer, target.url)
    except UnicodeError as error:
        raise UserError(
            f"{printable(target.url)}: not a valid host name", "use --url with a name or an address"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        if late.is_set():
            raise _too_slow(target) from error
        raise _unreachable(target, error) from error


@contextlib.contextmanager
def _shut_down_at(until: float, connected: socket.socket, late: threading.Event) -> Iterator[None]:
    """End a connection at a moment of ``time.monotonic``, whatever the server sends until then; then set ``late``."""

    def shut_down() -> None:
        late.set()
        with contextlib.suppress(OSError):
            # Not the method of an SSLSocket, which would make another thread read what is not decrypted.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = threading.Timer(max(until - time.monotonic(), 0), shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
        # Without a length, the end of the connection is that of the body.
        if late.is_set():
            raise TimeoutError
    finally:
        timer.cancel()


def _body(answer: http.client.HTTPResponse, url: str) -> bytes:
    body = bytearray()
    while more := answer.read(1 << 16):
        body += more
        if len(body) > _MAX_BYTES:
            raise not_dnsprobe(url, f"the answer has more than {_MAX_BYTES >> 20} MiB")
    # http.client reports a truncated body only if read() has no size.
    if answer.length:
        raise http.client.IncompleteRead(bytes(body), answer.length)
    return bytes(body)


def _too_slow(target: Target) -> UserError:
    where = urlsplit(target.url).netloc
    return NotAnswering(f"{where} did not send a whole answer within {_WHOLE_TIMEOUT:.0f} seconds", "check the address")


def _tls(target: Target) -> ssl.SSLContext:
    def bad(option: str, path: str, error: Exception) -> UserError:
        # For a file in another format, the message of OpenSSL has only a line number of its source code.
        why = "not in PEM format" if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None) or error
        return UserError(f"{option} {printable(path)}: {why}", "use a readable file in PEM format", EXIT_USAGE)

    try:
        trusted = None if target.cacert is None else read_file(target.cacert, _MAX_PEM).decode("ascii", "replace")
        context = ssl.create_default_context(cadata=trusted)
    except (OSError, ValueError) as error:
        raise bad("--cacert", target.cacert or "", error) from error
    if target.cert is not None:
        try:
            cert = read_file(target.cert, _MAX_PEM)
            key = cert if target.key is None else read_file(target.key, _MAX_PEM)
            with in_memory(cert, _PEM) as cert_file, in_memory(key, _PEM) as key_file:
                context.load_cert_chain(cert_file, key_file)
        except OSError as error:
            raise bad("--cert", target.cert, error) from error
    return context


def _refused(target: Target, code: int, reason: str) -> UserError:
    if code == http.HTTPStatus.UNAUTHORIZED:
        if target.user is None:
            return UserError(f"{target.url} requires a user name and a password", _CREDENTIALS_HINT)
        return UserError(
            f"{target.url} refused the user {printable(target.user)} with this password", "check both, and try again"
        )
    if code == http.HTTPStatus.BAD_REQUEST and target.url.startswith("http:"):
        return UserError(f"{target.url} refused the request", f"if the server uses TLS: {_other_scheme(target)}")
    status = printable(f"{code} {reason[:_MAX_REASON]}")
    if code in {http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE}:
        return NotAnswering(f"{target.url} cannot answer now: {status}", "try again")
    return not_dnsprobe(target.url, f"the answer is {status}")


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
