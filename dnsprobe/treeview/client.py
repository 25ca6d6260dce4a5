"""The counters of a running dnsprobe, as it serves them at ``/metrics``."""

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

#: Seconds that a daemon may be silent.
_PATIENCE = 10.0
#: More octets than the largest scrape: 1,000,000 series, which is the limit of ``metrics.max_series``, take less.
_MOST = 1 << 30

#: Without type information in some versions of prometheus_client.
_families: Any = parser.text_string_to_metric_families


class Counted(NamedTuple):
    """One series: its labels, and its number."""

    labels: Mapping[str, str]
    number: int


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a dnsprobe has counted up to now: queries, and connections whose queries cannot be read.

    ``started`` is when it started, in seconds since the epoch, 0 where it does not say.
    """

    version: str
    started: float
    queries: tuple[Counted, ...]
    encrypted: tuple[Counted, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask, and as whom: paths of PEM files, a user with password, None for none.

    ``cacert`` has the certificates to trust instead of the system's; ``cert`` is the client's own, with its key in
    ``key`` or in the same file.
    """

    url: str
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = None


class NotAnswering(UserError):
    """Nobody answers at the address, or not in time: it may get better by itself."""


def complete_url(text: str) -> str:
    """Return the URL of the metrics for what was given: ``HOST:PORT``, or a URL with or without a path.

    Raises UserError for what is neither.
    """

    def bad(message: str, hint: str = "write it as http://127.0.0.1:10059 or https://host.example:10059") -> UserError:
        return UserError(f"{message} ({printable(text)})", hint, EXIT_USAGE)

    if "@" in text:
        # Without the text: it may have a password.
        raise UserError("a user in --url", "give --user, and the password in DNSPROBE_PASSWORD", EXIT_USAGE)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise bad("not a URL") from None
    if parts.scheme not in {"http", "https"} or not host or not text.isascii() or not text.isprintable() or " " in text:
        raise bad("not a URL of http or https")
    return urlunsplit((parts.scheme, parts.netloc, parts.path if parts.path not in {"", "/"} else "/metrics", "", ""))


def url_of(listen: tuple[str, int]) -> str:
    """Return the URL of a daemon on this host that listens there, as ``metrics.listen`` has it."""
    address, port = listen
    if port == 0:
        raise UserError("metrics.listen has port 0: any free one", "give --url; the daemon's log says which it is")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"


def fetch(target: Target) -> Scrape:
    """Return what the daemon says now. Raises UserError where there is none, or where it does not let us in."""
    return parse(_get(target), target.url)


def parse(text: str, url: str) -> Scrape:
    """Return a scrape in the text form of Prometheus; raise UserError where it is not that of a dnsprobe."""
    version, started = None, 0.0
    queries: list[Counted] = []
    encrypted: list[Counted] = []
    try:
        for sample in (sample for family in _families(text) for sample in family.samples):
            if sample.name == "dnsprobe_queries_total":
                queries.append(Counted(sample.labels, int(sample.value)))
            elif sample.name == "dnsprobe_encrypted_connections_total":
                encrypted.append(Counted(sample.labels, int(sample.value)))
            elif sample.name == "dnsprobe_build_info":
                version = sample.labels.get("version", "")
            elif sample.name == "process_start_time_seconds":
                started = float(sample.value)
    except (ValueError, OverflowError, IndexError, KeyError):  # what the parser has for text of another kind
        version = None
    if version is None:
        raise _not_dnsprobe(url, "what it says are not the metrics of one")
    return Scrape(version, started, tuple(queries), tuple(encrypted))


def _not_dnsprobe(url: str, why: str) -> UserError:
    return UserError(f"{url} is not a dnsprobe: {why}", "give the address of one with --url")


def _get(target: Target) -> str:
    request = urllib.request.Request(
        target.url, headers={"User-Agent": f"dnsprobe/{__version__}", "Accept": "text/plain"}
    )
    if target.user is not None:
        credentials = base64.b64encode(f"{target.user}:{target.password or ''}".encode("utf-8", "surrogateescape"))
        request.add_header("Authorization", f"Basic {credentials.decode('ascii')}")
    try:
        with _opener(target).open(request, timeout=_PATIENCE) as answer:
            octets: bytes = answer.read(_MOST)
            # Read up to a size, a body that was cut off is no error to http.client.
            if answer.length:
                raise http.client.IncompleteRead(octets, answer.length)
    except urllib.error.HTTPError as error:
        raise _refused(target, error) from error
    except urllib.error.URLError as error:
        raise _unreachable(target, error.reason) from error
    except UnicodeError as error:
        raise UserError(f"{printable(target.url)}: not the name of a host", "give an address with --url") from error
    except (OSError, http.client.HTTPException) as error:  # while the answer was read
        raise _unreachable(target, error) from error
    return octets.decode("utf-8", "backslashreplace")


def _opener(target: Target) -> urllib.request.OpenerDirector:
    """Return what opens http and https, and nothing else.

    No proxy, no redirect: a password goes to the address that was given, or nowhere.
    """
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
        # What the SSL library says of a file that is not PEM is its own line number.
        why = "not what it should be" if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None) or error
        return UserError(f"{option} {printable(path)}: {why}", "give a file in PEM form", EXIT_USAGE)

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
            return UserError(f"{target.url} asks who you are", "give --user, and the password in DNSPROBE_PASSWORD")
        return UserError(f"{target.url} does not take this password of {printable(target.user)}", "try another")
    if error.code == http.HTTPStatus.BAD_REQUEST and target.url.startswith("http:"):
        return UserError(f"{target.url} does not take the request", f"perhaps it speaks TLS: {_other_scheme(target)}")
    said = printable(f"{error.code} {error.reason}")
    if error.code in {http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE}:
        return NotAnswering(f"{target.url} cannot answer now: {said}", "try again")
    return _not_dnsprobe(target.url, f"it says {said}")


def _other_scheme(target: Target) -> str:
    scheme, colon, rest = target.url.partition(":")
    return f"--url {'http' if scheme == 'https' else 'https'}{colon}{rest}"


def _unreachable(target: Target, reason: object) -> UserError:
    # A server that ends a connection without a word: what that is called depends on how far TLS was.
    broke_off = isinstance(
        reason, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError, http.client.HTTPException)
    )
    if isinstance(reason, ssl.SSLError) and not broke_off:
        return _tls_failed(target, reason)
    where = urlsplit(target.url).netloc
    if isinstance(reason, ConnectionRefusedError):
        return NotAnswering(
            f"no dnsprobe at {where}: nobody listens there",
            "is it running? systemctl status dnsprobe; if it listens elsewhere, give --url",
        )
    if isinstance(reason, TimeoutError):
        return NotAnswering(f"{where} did not answer within {_PATIENCE:.0f} seconds", "is it the right address?")
    if isinstance(reason, socket.gaierror):
        kind = NotAnswering if reason.errno == socket.EAI_AGAIN else UserError
        return kind(f"{where}: {reason.strerror}", "give an address with --url")
    if broke_off:
        hint = f"perhaps it speaks {'http' if target.url.startswith('https') else 'TLS'}: {_other_scheme(target)}"
        if target.url.startswith("https") and target.cert is None:
            hint = f"perhaps it wants a certificate of ours: give --cert and --key; {hint}"
        return NotAnswering(f"{where} broke off", hint)
    what = getattr(reason, "strerror", None) or printable(str(reason))
    return NotAnswering(f"{where}: {what}", "is it the right address?")


def _tls_failed(target: Target, error: ssl.SSLError) -> UserError:
    where = urlsplit(target.url).netloc
    if isinstance(error, ssl.SSLCertVerificationError):
        return UserError(
            f"the certificate of {where} is not trusted: {printable(error.verify_message)}",
            "give what signed it with --cacert, and the name that it was made for in --url",
        )
    reason = (error.reason or "").lower().replace("_", " ") or printable(str(error))
    if error.reason == "WRONG_VERSION_NUMBER":
        return UserError(f"{where} does not speak TLS", _other_scheme(target))
    if "certificate" in reason:
        return UserError(f"{where} wants another certificate of ours: {reason}", "give --cert and --key")
    return UserError(f"no TLS with {where}: {reason}", "is it the right address?")
