"""Made-up queries and processes for tests of all sinks."""

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from dnsprobe.model import Alert, Ancestry, Identity, Outcome, Process, Query, Rate, Record, Rule, TreeAlert

RULE = Rule(id=1, name="example.test", pattern="example.test")

ANCESTRY = Ancestry(
    (
        Process(4242, 9_000_000_000, b"dig"),
        Process(4210, 8_000_000_000, b"make"),
        Process(4200, 7_000_000_000, b"bash"),
        Process(1, 10_000_000, b"systemd"),
    )
)

#: The parent and grandparent of dig have ended, and systemd has adopted it. sshd, which started them, still runs.
ORPHANED = Ancestry(
    (ANCESTRY.asker, Process(1, 10_000_000, b"systemd")),
    lineage=(
        ANCESTRY.asker,
        Process(4210, 8_000_000_000, b"make", exited=True),
        Process(4200, 7_000_000_000, b"bash", exited=True),
        Process(4100, 6_000_000_000, b"sshd"),
        Process(1, 10_000_000, b"systemd"),
    ),
)

QUERY = Query(
    time_ns=12_345_678_901,
    rule=RULE,
    qname=b"\3www\7example\4test\0",
    qtype=1,
    qclass=1,
    transport="udp",
    server=IPv4Address("127.0.0.53"),
    port=53,
    uid=1000,
    gid=1001,
    net_ns=4026531840,
    ancestry=ANCESTRY,
    repeats=0,
)

#: What became of queries.
ADDRESS = Record("www.example.test.", 300, "IN", "A", "192.0.2.7")
ALIAS = Record("www.example.test.", 60, "IN", "CNAME", "b.example.test.")
BEHIND_ALIAS = replace(ADDRESS, name="B.example.test.")
ANSWERED = Outcome("NOERROR", latency_ns=12_345_678, records=(ALIAS, BEHIND_ALIAS))
NXDOMAIN = Outcome("NXDOMAIN", latency_ns=250_000)
SILENT = Outcome(reason="timeout")

#: A process tree above the rate of an alert.
RATE = Rate(100, 60 * 10**9)
TOO_MANY = TreeAlert(
    12_345_678_901, Rule(1, "example.test", "example.test", 6, Alert(rate=RATE)), "bash;dig", 131, RATE
)

#: A message that is not read as a query.
UNREAD = replace(QUERY, rule=Rule(65538, "", "", 5), qname=b"", qtype=5, qclass=0, unread="malformed")

IDENTITY = Identity(
    exe="/usr/bin/dig",
    cmdline=b"dig\0+short\0www.example.test\0",
    user="ada",
    unit="session-3.scope",
    cgroup="/user.slice/user-1000.slice/session-3.scope",
    slice="user-1000.slice",
    loginuid=1000,
    pid_ns=4026531836,
    mnt_ns=4026531841,
)

#: Hostile bytes, as a process may put them into its comm or its arguments.
HOSTILE = [
    b"a\nMESSAGE=b",
    b"\x1b[2J\x1b[31m",
    b"\xff\xfe\x80",
    b"'\"`$(x)\\",
    b"\x00",
    b"\r\x08\x7f",
    "\u202egnp.exe\u2066\u200b".encode(),
    "\u2028\u2029\x85".encode(),
    "\ud800".encode("utf-8", "surrogatepass"),
    b"a;b a\tb",
    "\U000e0001\U0001f600é".encode(),
    b"",
]


def query(**changes: Any) -> Query:
    """Return QUERY with some values changed."""
    return replace(QUERY, **changes)


def hostile(raw: bytes) -> tuple[Query, Identity]:
    """Return a query and an identity with ``raw`` in every place that a process can choose."""
    label = raw[:63]
    name = bytes([len(label)]) + label + b"\0" if label else b"\0"
    chain = (Process(4242, 9, raw[:15]), Process(4210, 8, raw[:15]), Process(1, 1, b"systemd"))
    lineage = (chain[0], Process(4205, 8, raw[:15], exited=True))
    text = raw.decode("utf-8", "surrogateescape")
    return (
        query(qname=name, ancestry=Ancestry(chain, complete=False, lineage=lineage), repeats=3),
        Identity(exe=text, cmdline=b"a\0" + raw + b"\0b", user=text, unit=text, cgroup=text),
    )
