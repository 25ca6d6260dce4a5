"""The web configuration file that Prometheus exporters share: TLS, headers and users of the HTTP server.

The format is that of ``--web.config.file`` of github.com/prometheus/exporter-toolkit (docs/web-configuration.md there).
A key that dnsprobe does not support is an error that names the key. No message contains a secret.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from dnsprobe.config.nodes import ConfigError, Place, Problem, document
from dnsprobe.config.readers import Reader, choice
from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.files import UnsuitableFileError, read_file
from dnsprobe.text import shorten

OPTION = "--web.config.file"

VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}

#: Go's names (crypto/tls.CipherSuites) and OpenSSL's names, in the order in which both prefer them.
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
#: As in Go, these cannot be chosen: TLS 1.3 always offers all of them.
TLS13_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")

CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}

#: Whether the server requests a client certificate, and whether it requires one. It always verifies it.
CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
#: These accept a client certificate without verifying it. Python's ssl cannot do that.
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")

#: Headers that may be set, with the allowed values if there is a choice (web/handler.go of exporter-toolkit).
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": (),
    "Strict-Transport-Security": (),
}

#: With a higher cost, verifying one password takes longer than a scrape may take.
_MAX_COST = 16
_HASH = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_HASH_HINT = "make a hash with htpasswd -nBC 10 NAME, which prints NAME:HASH, and put it in single quotes"

_MAX_PEM = 1 << 20


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates or a key in PEM form: in the file ``path`` or, if ``path`` is empty, in ``text``.

    ``where`` is the place in the web configuration that gives one of the two, for error messages.
    """

    path: str
    text: str = field(repr=False)
    where: Place = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """The section ``tls_server_config``.

    ``suites`` and ``curve`` have OpenSSL's names. ``suites`` is None for OpenSSL's default; an empty tuple leaves only
    TLS 1.3. ``curve`` is empty for OpenSSL's default. ``allowed_sans`` is None if any name is allowed.
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
    """A whole file: None for ``tls`` means plain HTTP; ``users`` has bcrypt hashes by user name, empty for none."""

    tls: TlsConfig | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the certificates and the key."""
        if self.tls is None:
            return ()
        return tuple(pem.path for pem in (self.tls.cert, self.tls.key, self.tls.client_ca) if pem and pem.path)


def load(path: str) -> WebConfig:
    """Return the configuration in a file, without reading the files it names; raise ConfigError with all errors."""
    problems: list[Problem] = []
    root = document(path, problems, OPTION)
    config = WebConfig() if root is None or root.empty else _web_config(root, os.path.dirname(os.path.abspath(path)))
    if problems:
        raise ConfigError(problems)
    return config


def read_pem(pem: Pem) -> bytes:
    """Return the contents in PEM form, from the file or from the configuration; raise ConfigError if that fails."""
    if not pem.path:
        return pem.text.encode()
    shown = shorten(pem.path)
    try:
        return read_file(pem.path, _MAX_PEM)
    except UnsuitableFileError as error:
        hint = f"use a file in PEM form of at most {_MAX_PEM >> 20} MiB"
        raise problem(pem.where, f"{error.strerror} ({shown})", hint) from error
    except OSError as error:
        hint = "use an absolute path, or a path relative to the folder of this file"
        if isinstance(error, PermissionError):
            hint = "make it readable for the user that runs dnsprobe, for example by its group"
        raise problem(pem.where, f"cannot be read ({shown}): {error.strerror}", hint) from error


def problem(place: Place, message: str, hint: str) -> ConfigError:
    """Return an error about the value of a key."""
    return ConfigError([Problem(place.file, place.line, place.key, message, hint)])


def need_bcrypt() -> None:
    """Raise UserError if passwords cannot be verified because bcrypt is not installed."""
    try:
        import bcrypt  # noqa: F401, PLC0415 - only a configuration with users needs it
    except ImportError as error:
        raise UserError(
            "basic_auth_users: the Python module bcrypt is missing", "apt install python3-bcrypt", EXIT_USAGE
        ) from error


def _boolean(place: Place) -> bool:
    text = (place.scalar("bool") or "").lower()
    if not text:
        place.wrong("neither true nor false", "use true or false")
    return text in {"true", "yes", "on"}


def _text(place: Place) -> str:
    """Return a scalar as it is written. It may be a secret, so no message shows it."""
    text = place.scalar()
    if text is None or place.empty:
        place.report("not a text", "write a text")
        return ""
    return text


def _mapped(values: Mapping[str, Any]) -> Reader:
    """Return a reader that accepts the keys of ``values``, and returns the value of the key."""
    read_key = choice(values)
    return lambda place: values.get(read_key(place))


def _list(place: Place, read: Reader) -> tuple[Any, ...]:
    if not isinstance(place.node, yaml.SequenceNode):
        place.wrong("not a list", "use a list, such as [a, b]")
        return ()
    return tuple(map(read, place.items()))


def _client_auth(place: Place) -> ssl.VerifyMode:
    text = place.scalar("str")
    if text in _UNVERIFIED:
        place.wrong(
            "client certificates cannot be accepted without verifying them",
            "use RequireAndVerifyClientCert for clients with a certificate of client_ca, or NoClientCert for all",
        )
        return ssl.CERT_NONE
    found: ssl.VerifyMode = ssl.CERT_NONE if text == "" else _mapped(CLIENT_AUTH)(place) or ssl.CERT_NONE
    return found


def _suites(place: Place) -> tuple[str, ...] | None:
    """Return OpenSSL's names of the suites below TLS 1.3; None for the defaults."""
    known = {**CIPHER_SUITES, **dict.fromkeys(TLS13_SUITES, "")}
    found = _list(place, _mapped(known))
    return tuple(filter(None, found)) if found else None


def _curve(place: Place) -> str:
    """Return OpenSSL's name of the one curve; report what Python's ssl does not support."""
    curves = [curve for curve in _list(place, _mapped(CURVES)) if curve]
    hint = "use one of CurveP256, CurveP384 and CurveP521, or remove the key to offer all curves, X25519 first"
    if len(curves) > 1:
        place.report(f"{len(curves)} curves, but Python's ssl accepts only one", hint)
    elif curves:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ecdh_curve(curves[0])
        except (ssl.SSLError, ValueError):  # Versions of ssl that choose by EC_KEY do not know X25519.
            place.report("a curve that Python's ssl does not accept alone", hint)
    return curves[0] if curves else ""


def _sans(place: Place) -> tuple[str, ...]:
    return _list(place, _text)


_PEM_KEYS = ("cert_file", "key_file", "cert", "key", "client_ca_file", "client_ca")
#: The other keys of ``tls_server_config``: field of TlsConfig, reader.
_TLS_READERS: Mapping[str, tuple[str, Reader]] = {
    "client_auth_type": ("client_auth", _client_auth),
    "client_allowed_sans": ("allowed_sans", _sans),
    "min_version": ("min_version", _mapped(VERSIONS)),
    "max_version": ("max_version", _mapped(VERSIONS)),
    "cipher_suites": ("suites", _suites),
    "prefer_server_cipher_suites": ("prefer_server_suites", _boolean),
    "curve_preferences": ("curve", _curve),
}
TLS_KEYS = (*_PEM_KEYS, *_TLS_READERS)


def _pem(entries: Mapping[str, Place], inline: str, folder: str) -> Pem | None:
    """Return the value of ``cert`` or ``cert_file`` for ``inline`` = ``cert``; a blank value counts as absent."""
    by_file, by_text = entries.get(f"{inline}_file"), entries.get(inline)
    path = _text(by_file) if by_file and not by_file.empty else ""
    text = _text(by_text) if by_text and not by_text.empty else ""
    if by_file and path:
        if text:
            by_file.report(f"{inline} is set too", "remove one of them")
        if "-----BEGIN" in path:
            # The message does not show it: it may be a private key.
            by_file.report("PEM text instead of a path", f"put it under {inline}, without _file")
        elif not path.isprintable():
            by_file.wrong("not a path", "use the path of a file")
        return Pem(os.path.join(folder, path), "", by_file)
    return Pem("", text, by_text) if by_text and text else None


def _tls(place: Place, folder: str) -> TlsConfig | None:
    entries = place.entries(TLS_KEYS)
    cert, key, client_ca = (_pem(entries, name, folder) for name in ("cert", "key", "client_ca"))
    before = len(place.problems)
    values = {
        name: read(entries[key])
        for key, (name, read) in _TLS_READERS.items()
        if key in entries and not entries[key].empty
    }
    for name, pem in (("cert", cert), ("key", key)):
        if pem is None:
            place.report(f"neither {name}_file nor {name} is set", f"add {name}_file: PATH")
    if cert is None or key is None or len(place.problems) > before:
        return None
    config = TlsConfig(cert, key, client_ca, **values)
    _check_tls(config, place, entries)
    return config


def _check_tls(config: TlsConfig, place: Place, entries: Mapping[str, Place]) -> None:
    """Report values that contradict each other."""
    if config.client_ca is not None and config.client_auth == ssl.CERT_NONE:
        config.client_ca.where.report(
            "client_auth_type does not request certificates", "add client_auth_type: RequireAndVerifyClientCert"
        )
    if config.client_ca is None and config.client_auth != ssl.CERT_NONE:
        # exporter-toolkit would use the system's authorities: any client with a public certificate would be accepted.
        entries["client_auth_type"].report("no client_ca, which verifies the certificates", "add client_ca_file: PATH")
    if config.allowed_sans is not None and config.client_auth != ssl.CERT_REQUIRED:
        entries["client_allowed_sans"].report(
            "client_auth_type does not require certificates", "add client_auth_type: RequireAndVerifyClientCert"
        )
    if config.min_version > config.max_version:
        where = entries.get("min_version", entries.get("max_version", place))
        where.report("min_version is above max_version", "raise max_version, or remove it")
    for version, supported in ((ssl.TLSVersion.TLSv1, ssl.HAS_TLSv1), (ssl.TLSVersion.TLSv1_1, ssl.HAS_TLSv1_1)):
        if config.min_version == version and not supported:
            entries["min_version"].report("OpenSSL on this host does not support it", "use TLS12")
    if config.suites == () and config.max_version < ssl.TLSVersion.TLSv1_3:
        entries["cipher_suites"].report(
            "all are suites of TLS 1.3, which max_version excludes", "add a suite of TLS 1.2"
        )


def _headers(place: Place) -> dict[str, str]:
    headers = {}
    for name, value in place.entries(tuple(_HEADERS)).items():
        text = "" if value.empty else _text(value)
        if not text.isascii() or not text.isprintable():
            value.wrong("not printable ASCII", "write a text in one line")
        elif text and _HEADERS[name] and text not in _HEADERS[name]:
            value.wrong("not a value of this header", f"use one of {', '.join(_HEADERS[name])}")
        elif text:
            headers[name] = text
    return headers


def _users(place: Place) -> dict[bytes, bytes]:
    users: dict[bytes, bytes] = {}
    if not isinstance(place.node, yaml.MappingNode):
        place.report("not a mapping of user names to hashes", _HASH_HINT)
        return users
    for name, key, value in place.pairs(_HASH_HINT):
        text = value.scalar() or ""
        match = _HASH.fullmatch(text)
        if not name or ":" in name:
            key.report(f"a name that no client can send ({shorten(name)})", "use a name without a colon")
        elif not match:
            value.report("not a bcrypt hash (the value is not shown)", _HASH_HINT)
        elif not 4 <= int(match[1]) <= _MAX_COST:
            value.report(
                f"a cost of {int(match[1])}",
                f"use a hash with a cost from 4 to {_MAX_COST}: each step doubles the time",
            )
        else:
            users[name.encode()] = text.encode()
    return users


def _web_config(root: Place, folder: str) -> WebConfig:
    entries = root.entries(("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"))
    sections = {key: place for key, place in entries.items() if not place.empty}
    if "rate_limit" in sections:
        sections["rate_limit"].report("not supported", "remove it: metrics.connections limits connections")
    headers: dict[str, str] = {}
    if "http_server_config" in sections:
        http = sections["http_server_config"].entries(("http2", "headers"))
        if "http2" in http and not http["http2"].empty:
            # dnsprobe speaks HTTP/1.1, which clients of HTTP/2 speak too: both values are accepted.
            _boolean(http["http2"])
        if "headers" in http and not http["headers"].empty:
            headers = _headers(http["headers"])
    tls = _tls(sections["tls_server_config"], folder) if "tls_server_config" in sections else None
    users = _users(sections["basic_auth_users"]) if "basic_auth_users" in sections else {}
    return WebConfig(tls, headers, users)
