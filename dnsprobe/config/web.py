"""The web configuration file that Prometheus exporters share: TLS, headers and users of the HTTP side.

The format is that of ``--web.config.file`` of github.com/prometheus/exporter-toolkit (docs/web-configuration.md there).
What this side cannot do is refused, with the key named; secrets are in no message.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from dnsprobe.config.nodes import ConfigError, Place, Problem, document
from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.text import printable, shorten

OPTION = "--web.config.file"

VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}

#: Go's names (crypto/tls.CipherSuites) with OpenSSL's, in the order of preference of both.
CIPHER_SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
}
#: As in Go, these are not for choosing: TLS 1.3 has all of them.
TLS13_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")

CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}

#: Whether a certificate is asked for, and whether one has to be there; it is verified in any case.
CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
#: What takes a certificate without verifying it, which Python's ssl cannot.
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")

#: Headers that may be set, with their values where not any will do (web/handler.go of exporter-toolkit).
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": (),
    "Strict-Transport-Security": (),
}

#: Above this, one password takes longer to verify than a scrape may take.
_MAX_COST = 16
_HASH = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_HASH_HINT = "make one with htpasswd -nBC 10 NAME, which prints NAME:HASH, and put it in single quotes"

_MAX_PEM = 1 << 20


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates or a key: in the file ``path`` or, where that is empty, in ``text`` of the web configuration.

    ``where`` says which key of it has them, for what is wrong with them.
    """

    path: str
    text: str = field(repr=False)
    where: Place = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """``tls_server_config``: ``suites`` and ``curve`` by OpenSSL's names, None or empty for its own choice.

    With ``suites`` empty but not None, only TLS 1.3 is left. ``allowed_sans`` is None for any.
    """

    cert: Pem
    key: Pem
    client_ca: Pem | None = None
    client_auth: ssl.VerifyMode = ssl.CERT_NONE
    allowed_sans: tuple[str, ...] | None = None
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    max_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    suites: tuple[str, ...] | None = None
    prefer_server_suites: bool = True
    curve: str = ""


@dataclass(frozen=True, slots=True)
class WebConfig:
    """A whole file: no ``tls`` means plain HTTP, no ``users`` no passwords. ``users`` has bcrypt's hashes by name."""

    tls: TlsConfig | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names."""
        if self.tls is None:
            return ()
        return tuple(pem.path for pem in (self.tls.cert, self.tls.key, self.tls.client_ca) if pem and pem.path)


def load(path: str) -> WebConfig:
    """Return what is in a file; raise ConfigError with all that is wrong with it. Files that it names are not read."""
    with suppress(OSError):  # document() says what is wrong
        mode = os.stat(path).st_mode
        # To open a pipe waits, and this is read in the daemon's loop.
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ConfigError([Problem(printable(path), 0, "", "not a file", f"give the path of a file with {OPTION}")])
    problems: list[Problem] = []
    root = document(path, problems, OPTION)
    config = WebConfig() if root is None or root.empty else _web_config(root, os.path.dirname(os.path.abspath(path)))
    if problems:
        raise ConfigError(problems)
    return config


def read_pem(pem: Pem) -> bytes:
    """Return what is in a file, or in the configuration itself; raise UserError if it cannot be read."""
    if not pem.path:
        return pem.text.encode()
    shown = shorten(pem.path)
    try:
        # Never waits, whatever the file is: it is read again in the daemon's loop.
        descriptor = os.open(pem.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise problem(pem.where, f"not a file ({shown})", "give the path of a file in PEM form")
            raw = stream.read(_MAX_PEM + 1)
    except OSError as error:
        hint = "give a path from / on, or from the folder of this file on"
        if isinstance(error, PermissionError):
            hint = "make it readable for the user that runs dnsprobe, by its group for example"
        raise problem(pem.where, f"cannot be read ({shown}): {error.strerror}", hint) from error
    if len(raw) > _MAX_PEM:
        raise problem(pem.where, f"too large ({shown})", "give a file in PEM form of less than 1 MiB")
    return raw


def problem(place: Place, message: str, hint: str) -> ConfigError:
    """Return the error that something is wrong with the value of a key."""
    return ConfigError([Problem(place.file, place.line, place.key, message, hint)])


def need_bcrypt() -> None:
    """Raise UserError where passwords cannot be verified."""
    try:
        import bcrypt  # noqa: F401, PLC0415 - only who has users needs it
    except ImportError as error:
        raise UserError(
            "basic_auth_users: Python's bcrypt is not there", "apt install python3-bcrypt", EXIT_USAGE
        ) from error


def _boolean(place: Place) -> bool:
    text = (place.scalar("bool") or "").lower()
    if not text:
        place.wrong("neither true nor false", "give true or false")
    return text in {"true", "yes", "on"}


def _text(place: Place) -> str:
    """Return a scalar as it is written; whatever it is, it is not shown."""
    text = place.scalar()
    if text is None or place.empty:
        place.report("not a text", "give a text")
        return ""
    return text


def _choice(choices: Mapping[str, Any]) -> Callable[[Place], Any]:
    def read(place: Place) -> Any:
        text = place.scalar("str") or ""
        if text not in choices:
            place.wrong("not a choice", f"one of {', '.join(choices)}")
        return choices.get(text)

    return read


def _list(place: Place, read: Callable[[Place], Any]) -> tuple[Any, ...]:
    if not isinstance(place.node, yaml.SequenceNode):
        place.wrong("not a list", "give a list, such as [a, b]")
        return ()
    return tuple(map(read, place.items()))


def _client_auth(place: Place) -> ssl.VerifyMode:
    text = place.scalar("str")
    if text in _UNVERIFIED:
        place.wrong(
            "certificates that nobody verifies are not supported",
            "RequireAndVerifyClientCert lets in who has a certificate of client_ca, NoClientCert all",
        )
        return ssl.CERT_NONE
    found: ssl.VerifyMode = ssl.CERT_NONE if text == "" else _choice(CLIENT_AUTH)(place) or ssl.CERT_NONE
    return found


def _suites(place: Place) -> tuple[str, ...] | None:
    """Return OpenSSL's names of those below TLS 1.3; None for the defaults."""
    known = {**CIPHER_SUITES, **dict.fromkeys(TLS13_SUITES, "")}
    found = _list(place, _choice(known))
    return tuple(filter(None, found)) if found else None


def _curve(place: Place) -> str:
    """Return OpenSSL's name of the one curve; what Python's ssl cannot do is reported."""
    curves = [curve for curve in _list(place, _choice(CURVES)) if curve]
    hint = (
        "give one of CurveP256, CurveP384 and CurveP521, or leave the key out: then all are offered, and X25519 first"
    )
    if len(curves) > 1:
        place.report(f"{len(curves)} curves, where Python's ssl takes one", hint)
    elif curves:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ecdh_curve(curves[0])
        except (ssl.SSLError, ValueError):  # X25519 is no curve to versions that choose by EC_KEY
            place.report("a curve that Python's ssl does not take alone", hint)
    return curves[0] if curves else ""


def _sans(place: Place) -> tuple[str, ...]:
    return _list(place, _text)


_TLS_KEYS = (
    "cert_file",
    "key_file",
    "cert",
    "key",
    "client_auth_type",
    "client_ca_file",
    "client_ca",
    "client_allowed_sans",
    "min_version",
    "max_version",
    "cipher_suites",
    "prefer_server_cipher_suites",
    "curve_preferences",
)


def _pem(entries: Mapping[str, Place], inline: str, folder: str) -> Pem | None:
    """Return the one of ``inline`` and ``inline_file`` that is there; blank is as good as absent."""
    by_file, by_text = entries.get(f"{inline}_file"), entries.get(inline)
    path = _text(by_file) if by_file and not by_file.empty else ""
    text = _text(by_text) if by_text and not by_text.empty else ""
    if by_file and path:
        if text:
            by_file.report(f"there is {inline}, too", "remove one of them")
        if "-----BEGIN" in path:
            # Not shown: it may be a key.
            by_file.report("text in PEM form, where a path should be", f"put it under {inline}, without _file")
        elif not path.isprintable():
            by_file.wrong("not a path", "give the path of a file")
        return Pem(os.path.join(folder, path), "", by_file)
    return Pem("", text, by_text) if by_text and text else None


def _tls(place: Place, folder: str) -> TlsConfig | None:
    entries = place.entries(_TLS_KEYS)
    cert, key, client_ca = (_pem(entries, name, folder) for name in ("cert", "key", "client_ca"))
    readers: Mapping[str, tuple[str, Callable[[Place], Any]]] = {
        "client_auth_type": ("client_auth", _client_auth),
        "client_allowed_sans": ("allowed_sans", _sans),
        "min_version": ("min_version", _choice(VERSIONS)),
        "max_version": ("max_version", _choice(VERSIONS)),
        "cipher_suites": ("suites", _suites),
        "prefer_server_cipher_suites": ("prefer_server_suites", _boolean),
        "curve_preferences": ("curve", _curve),
    }
    before = len(place.problems)
    values = {
        name: read(entries[key]) for key, (name, read) in readers.items() if key in entries and not entries[key].empty
    }
    for name, pem in (("cert", cert), ("key", key)):
        if pem is None:
            place.report(f"neither {name}_file nor {name}", f"add {name}_file: PATH")
    if cert is None or key is None or len(place.problems) > before:
        return None
    config = TlsConfig(cert, key, client_ca, **values)
    _check_tls(config, place, entries)
    return config


def _check_tls(config: TlsConfig, place: Place, entries: Mapping[str, Place]) -> None:
    """Report what does not go together."""
    if config.client_ca is not None and config.client_auth == ssl.CERT_NONE:
        config.client_ca.where.report(
            "there is no client_auth_type that has a use for it", "add client_auth_type: RequireAndVerifyClientCert"
        )
    if config.client_ca is None and config.client_auth != ssl.CERT_NONE:
        # exporter-toolkit takes the system's authorities then: whoever has a public certificate would be let in.
        entries["client_auth_type"].report("no client_ca to verify certificates with", "add client_ca_file: PATH")
    if config.allowed_sans is not None and config.client_auth != ssl.CERT_REQUIRED:
        entries["client_allowed_sans"].report(
            "not every client has to show a certificate", "add client_auth_type: RequireAndVerifyClientCert"
        )
    if config.min_version > config.max_version:
        where = entries.get("min_version", entries.get("max_version", place))
        where.report("min_version is above max_version", "raise max_version, or leave it out")
    for version, there in ((ssl.TLSVersion.TLSv1, ssl.HAS_TLSv1), (ssl.TLSVersion.TLSv1_1, ssl.HAS_TLSv1_1)):
        if config.min_version == version and not there:
            entries["min_version"].report("the OpenSSL of this host is built without it", "give TLS12")
    if config.suites == () and config.max_version < ssl.TLSVersion.TLSv1_3:
        entries["cipher_suites"].report("all of them are of TLS 1.3, which max_version excludes", "add one below it")


def _headers(place: Place) -> dict[str, str]:
    headers = {}
    for name, value in place.entries(tuple(_HEADERS)).items():
        text = "" if value.empty else _text(value)
        if not text.isascii() or not text.isprintable():
            value.wrong("not printable ASCII", "give a text in one line")
        elif text and _HEADERS[name] and text not in _HEADERS[name]:
            value.wrong("not a value of this header", f"one of {', '.join(_HEADERS[name])}")
        elif text:
            headers[name] = text
    return headers


def _users(place: Place) -> dict[bytes, bytes]:
    users: dict[bytes, bytes] = {}
    if not isinstance(place.node, yaml.MappingNode):
        place.report("not a mapping of names to hashes", _HASH_HINT)
        return users
    for name, key, value in place.pairs(_HASH_HINT):
        text = value.scalar() or ""
        match = _HASH.fullmatch(text)
        if not name or ":" in name:
            key.report(f"a name that no client can send ({shorten(name)})", "give a name without a colon")
        elif not match:
            value.report("not a hash of bcrypt (which is not shown here)", _HASH_HINT)
        elif not 4 <= int(match[1]) <= _MAX_COST:
            value.report(
                f"a cost of {int(match[1])}", f"give a hash with a cost of 4 to {_MAX_COST}: one more is twice the time"
            )
        else:
            users[name.encode()] = text.encode()
    return users


def _web_config(root: Place, folder: str) -> WebConfig:
    entries = root.entries(("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"))
    sections = {key: place for key, place in entries.items() if not place.empty}
    if "rate_limit" in sections:
        sections["rate_limit"].report("not supported here", "remove it: connections are bounded by metrics.connections")
    headers: dict[str, str] = {}
    if "http_server_config" in sections:
        http = sections["http_server_config"].entries(("http2", "headers"))
        if "http2" in http and not http["http2"].empty:
            _boolean(http["http2"])  # either way: dnsprobe speaks HTTP/1.1, which every client of HTTP/2 speaks, too
        if "headers" in http and not http["headers"].empty:
            headers = _headers(http["headers"])
    tls = _tls(sections["tls_server_config"], folder) if "tls_server_config" in sections else None
    users = _users(sections["basic_auth_users"]) if "basic_auth_users" in sections else {}
    return WebConfig(tls, headers, users)
