"""Which requests may come from a web site that a user of this host visits: none that could read an answer.

A browser sends requests to the loopback address for any web site. The site cannot read the answers, unless its own name
leads to the loopback address, too (DNS rebinding): then its browser believes that site and dnsprobe are the same. The
name is in the header Host, so only names that nobody else can choose are answered.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

from dnsprobe.files import read_file

#: Maps names to addresses before any DNS server is asked, so no web site can have one of these names.
_HOSTS_FILE = Path("/etc/hosts")
_MAX_HOSTS_FILE = 1 << 26
#: Lists of advertisers make some of these files long. The names of a host are at the beginning.
_READ_OF_HOSTS_FILE = 1 << 20

#: RFC 3986, section 3.2: a name or an address, and a port.
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s,]+)(:[0-9]*)?")


@lru_cache(maxsize=1)
def _names_of_file(path: Path, _modified_ns: int) -> frozenset[str]:
    content = read_file(path, _MAX_HOSTS_FILE)
    if len(content) > _READ_OF_HOSTS_FILE:  # the last line may be cut
        content = content[:_READ_OF_HOSTS_FILE].rpartition(b"\n")[0]
    lines = [line.partition("#")[0].split() for line in content.decode("utf-8", "replace").splitlines()]
    return frozenset(name.lower().rstrip(".") for line in lines for name in line[1:])


def _own_names(path: Path) -> frozenset[str]:
    """Return the name of this host, and the names in a hosts file (hosts(5)), none if it is no file that ends."""
    own = frozenset({socket.gethostname().lower()})
    try:
        return own | _names_of_file(path, path.stat().st_mtime_ns)
    except OSError:
        return own


class Origin:
    """Decides whether a request may be answered. ``hosts`` are further names of this server.

    Without ``hosts``, only connections to a loopback address are examined: a server that listens on another address may
    have any name, and answers everyone anyway. With ``hosts``, all connections are.
    """

    def __init__(self, hosts: Collection[str] = (), hosts_file: Path = _HOSTS_FILE) -> None:
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._hosts_file = hosts_file

    def good_host(self, host: str | None, local_address: str) -> bool:
        """Return whether a server at ``local_address`` may have the name in a header Host, None if it is missing.

        Every browser sends the header. An address is always good: a web site that has one is at that address.
        """
        if host is None or not (self._hosts or _is_loopback(local_address)):
            return True
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].lower().rstrip(".")
        if _is_address(name) or name == "localhost" or name.endswith(".localhost"):
            return True
        return name in self._hosts or name in _own_names(self._hosts_file)


def of_other_site(headers: Mapping[str, str]) -> bool:
    """Return whether a browser says that another web site makes this request, other than by a link.

    It says so in its Fetch Metadata, or in the header Origin, which a GET of the same site does not have.
    """
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != headers.get("Host"):
        return True
    return headers.get("Sec-Fetch-Site", "") == "cross-site" and headers.get("Sec-Fetch-Mode", "") != "navigate"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
