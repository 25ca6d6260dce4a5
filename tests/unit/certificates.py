"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(folder: Path, name: str) -> Path:
    """Make NAME.pem and NAME.key of a certificate authority, and return the path of NAME.pem."""
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    place = folder / name
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # strict clients, such as Python 3.13, require it
    _openssl("req", "-x509", *new, *usage, "-subj", f"/CN={name}", "-keyout", f"{place}.key", "-out", f"{place}.pem")
    return Path(f"{place}.pem")


def certificate(folder: Path, name: str, by: Path, sans: str, usage: str = "serverAuth,clientAuth") -> Path:
    """Make NAME.pem and NAME.key, signed ``by`` an authority, and return the path of NAME.pem.

    ``sans`` has the subject alternative names in the form of openssl.
    """
    place = folder / name
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    more = ("-addext", f"subjectAltName={sans}", "-addext", f"extendedKeyUsage={usage}")
    signer = ("-CA", by, "-CAkey", by.with_suffix(".key"))
    subject = ("-addext", "basicConstraints=critical,CA:FALSE", "-subj", f"/CN={name}")
    _openssl("req", "-x509", *new, *subject, *more, *signer, "-keyout", f"{place}.key", "-out", f"{place}.pem")
    return Path(f"{place}.pem")
