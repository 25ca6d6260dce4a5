"""The address on which the HTTP server listens, as ``metrics.listen`` and ``--listen`` give it."""

from __future__ import annotations

import ipaddress
import re

from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.text import shorten


def parse_listen(text: str) -> tuple[str, int]:
    """Return address and port of ``ADDR:PORT``. An IPv6 address has brackets in ``text``, but not in the result.

    Port 0 means any free port. Raises UserError, with a hint, for anything else. An empty address is an error too, so
    that dnsprobe never listens on all addresses by accident.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _ip_version(text) or (text.endswith("]") and _ip_version(text[1:-1])):
        raise _error(text, "no port, or an IPv6 address without brackets")
    if not colon:
        raise _error(text, "not an address and a port")
    if bare in ("", "*"):
        shown_port = shorten(port) or "10059"
        raise _error(text, "no address", f"for all addresses write 0.0.0.0:{shown_port} or [::]:{shown_port}")
    version = _ip_version(bare)
    if not version:
        raise _error(text, "not an IP address and a port")
    if (version == 6) != (bare != host):
        raise _error(text, "an IPv6 address without brackets" if version == 6 else "an IPv4 address in brackets")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise _error(text, "not a port", "use a number from 0 to 65535; 0 means any free port")
    return bare, int(port)


def _error(text: str, message: str, hint: str = "write ADDR:PORT, such as 127.0.0.1:10059 or [::1]:10059") -> UserError:
    return UserError(f"{message} ({shorten(text)})", hint, EXIT_USAGE)


def _ip_version(text: str) -> int | None:
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return None
