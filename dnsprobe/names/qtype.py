"""The names of query types: IANA's registry "Domain Name System (DNS) Parameters", Resource Record (RR) TYPEs.

These names are values of a metric label, so they must not depend on the version of dnspython: types that an old version
lacks are listed here.
"""

from __future__ import annotations

from collections.abc import Mapping

from dns.rdatatype import RdataType, to_text

#: Types of the registry that dnspython 2.3 (Debian 12) lacks. Version 2.7 (Debian 13) has RESINFO and WALLET.
_MISSING = {
    31: "EID",
    32: "NIMLOC",
    34: "ATMA",
    40: "SINK",
    57: "RKEY",
    58: "TALINK",
    66: "DSYNC",
    67: "HHIT",
    68: "BRID",
    100: "UINFO",
    101: "UID",
    102: "GID",
    128: "NXNAME",
    259: "DOA",
    261: "RESINFO",
    262: "WALLET",
    263: "CLA",
    264: "IPN",
}

#: The names by number. Type 0 is reserved and has no name, but dnspython lists it.
QTYPES: Mapping[int, str] = {**{int(kind): to_text(kind) for kind in RdataType if kind}, **_MISSING}


def qtype_name(number: int) -> str:
    """Return the name of a query type, or ``TYPE65280`` for a type without a name (RFC 3597, section 5)."""
    return QTYPES.get(number) or f"TYPE{number}"
