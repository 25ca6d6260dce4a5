"""The names of query classes: IANA's registry "Domain Name System (DNS) Parameters", DNS CLASSes."""

from __future__ import annotations

#: The class of the Internet, which nearly all queries have.
IN = 1

_NAMES = {IN: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}


def qclass_name(number: int) -> str:
    """Return the name of a query class, or ``CLASS2`` for a class without a name (RFC 3597, section 5)."""
    return _NAMES.get(number) or f"CLASS{number}"
