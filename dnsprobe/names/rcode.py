"""Names of the results that answers have: the label ``rcode`` of the metrics, and rules with an alert."""

from __future__ import annotations

from dnsprobe.model import OTHER

#: RCODES (RFC 1035, section 4.1.1; RFC 6895, section 2.3). ``NODATA`` is ``NOERROR`` without a record of the type that
#: was asked for (RFC 2308, section 2.2). All others are ``(other)``.
RCODES = (
    "NOERROR",
    "NODATA",
    "NXDOMAIN",
    "SERVFAIL",
    "REFUSED",
    "FORMERR",
    "NOTIMP",
    "BADVERS",
    "BADCOOKIE",
    OTHER,
)
