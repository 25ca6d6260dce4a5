"""Real resolvers of Debian with a made-up zone: unbound, dnsmasq and BIND, in network namespaces.

They ask no other server, unless they are told to. Their logs say which queries they have taken. ``scripts/setup test``
provides the programs.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conftest import PATIENCE
from networks import Net
from reference import message, wire

ADDRESSES = ("127.0.0.1", "::1")
#: Both answer a query for it, and it belongs to no zone.
OTHER = message(wire([b"ready", b"invalid"]), id_=0xFFFF)

#: A zone without its file: unbound and BIND answer SERVFAIL.
BROKEN = "broken.test"

_UNBOUND = Path(sys.prefix, "unbound/usr/sbin/unbound")
_NAMED = Path(sys.prefix, "bind9/usr/sbin/named")
_UNBOUND_CONF = """\
server:
    username: ""
    chroot: ""
    pidfile: ""
    directory: "{folder}"
    logfile: "{folder}/log"
    use-syslog: no
    log-queries: yes
    log-tag-queryreply: yes
    module-config: "iterator"
{interfaces}
    access-control: 0.0.0.0/0 allow
    incoming-num-tcp: 100
    # Else, unbound answers for it (RFC 6761).
    local-zone: "test." nodefault
{more}
remote-control:
    control-enable: no
"""
_UNBOUND_ZONE = """\
auth-zone:
    name: "{zone}"
{file}
    fallback-enabled: no
    for-upstream: no
"""
_NAMED_CONF = """\
options {{
    directory "{folder}"; managed-keys-directory "{folder}";
    pid-file none; lock-file none; session-keyfile none;
    listen-on {{ {four} }}; listen-on-v6 {{ {six} }};
    recursion no; dnssec-validation no; require-server-cookie yes;
}};
controls {{}};
logging {{
    channel log {{ file "log"; }};
    category queries {{ log; }};
}};
zone "{zone}" {{ type primary; file "zone"; }};
zone "{broken}" {{ type primary; file "missing"; }};
"""


@dataclass(frozen=True)
class Zone:
    """A zone: addresses (IPv4 or IPv6), aliases and texts by label. Names that are not in it get NXDOMAIN.

    A text is several strings of up to 255 characters.
    """

    name: str
    addresses: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def file(self) -> str:
        """Return it as a zone file (RFC 1035, section 5)."""
        lines = [f"$ORIGIN {self.name}.", "@ 60 IN SOA ns admin 1 3600 600 86400 60", "@ 60 IN NS ns"]
        for label, address in {"ns": "127.0.0.1", **self.addresses}.items():
            lines.append(f"{label} 60 IN {'AAAA' if ':' in address else 'A'} {address}")
        lines += [f"{label} 60 IN CNAME {target}" for label, target in self.aliases.items()]
        lines += [f"{label} 60 IN TXT {' '.join(text)}" for label, text in self.texts.items()]
        return "\n".join([*lines, ""])

    def options(self) -> list[str]:
        """Return it as options of dnsmasq(8)."""
        addresses = [f"--host-record={label}.{self.name},{address}" for label, address in self.addresses.items()]
        aliases = [f"--cname={label}.{self.name},{target}.{self.name}" for label, target in self.aliases.items()]
        texts = [f"--txt-record={label}.{self.name},{','.join(text)}" for label, text in self.texts.items()]
        return [f"--local=/{self.name}/", *addresses, *aliases, *texts]


@dataclass(frozen=True)
class Listening:
    """Where a resolver listens: on port 53 of addresses of a network namespace. Without one, it gets its own."""

    addresses: Sequence[str] = ADDRESSES
    net: Net | None = None


#: Loopback of a namespace of its own.
ALONE = Listening()


class Resolver:
    """A resolver that runs until it is closed, in the network namespace ``net``."""

    def __init__(self, command: list[str], log: Path, logged: str, at: Listening = ALONE) -> None:
        self.net = at.net or Net()
        self._has_own_net = at.net is None
        self._addresses = at.addresses
        self._command = " ".join(command)
        self._log, self._logged = log, re.compile(logged)
        try:
            with self.net.entered():
                # TCP Fast Open, for clients and servers.
                Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3", "ascii")
                self._process = subprocess.Popen(command)
        except BaseException:
            self._close_net()
            raise
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + PATIENCE
        for address in self._addresses:
            with self.net.entered():
                asker = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            with asker:
                asker.settimeout(0.1)
                asker.connect((address, 53))
                while True:
                    try:
                        asker.send(OTHER)
                        asker.recv(512)
                        break
                    except OSError as error:  # nobody listens yet, or no answer yet
                        if self._process.poll() is not None or time.monotonic() > until:
                            raise RuntimeError(f"{self._command} does not answer") from error
                        time.sleep(0.01)

    def received(self) -> Counter[str]:
        """Return how often it has been asked for each name, in lower case."""
        text = self._log.read_text("utf-8", "backslashreplace")
        return Counter(name.lower().rstrip(".") for name in self._logged.findall(text))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._close_net()

    def _close_net(self) -> None:
        if self._has_own_net:
            self.net.close()


def unbound(folder: Path, zone: Zone, at: Listening = ALONE, more: str = "") -> Resolver:
    """Start unbound. It has the zone as its own; ``more`` are lines for the clause ``server`` and clauses behind it."""
    (folder / "zone").write_text(zone.file())
    configuration = folder / "unbound.conf"
    interfaces = "\n".join(f"    interface: {address}" for address in at.addresses)
    text = _UNBOUND_CONF.format(folder=folder, interfaces=interfaces, more=more)
    for name, file in ((zone.name, f'    zonefile: "{folder}/zone"'), (BROKEN, "")):
        text += _UNBOUND_ZONE.format(zone=name, file=file)
    configuration.write_text(text)
    return Resolver([str(_UNBOUND), "-d", "-c", str(configuration)], folder / "log", r" query: \S+ (\S+) ", at)


def dnsmasq(folder: Path, zone: Zone, at: Listening = ALONE) -> Resolver:
    """Start dnsmasq. It has the names of the zone, and knows no other server."""
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=root"]
    # It reads datagrams of up to this size.
    more = ["--no-hosts", "--no-resolv", "--edns-packet-max=4096"]
    listen = [f"--listen-address={address}" for address in at.addresses]
    log = ["--log-queries=extra", f"--log-facility={folder / 'log'}"]
    command = ["dnsmasq", *options, *more, "--bind-interfaces", *listen, *log, *zone.options()]
    return Resolver(command, folder / "log", r" query(?:\[[^]]*\])? (\S+) from ", at)


def bind(folder: Path, zone: Zone, at: Listening = ALONE) -> Resolver:
    """Start BIND. It has the zone as its own, and refuses other names. Clients with a cookie must know that of BIND."""
    (folder / "zone").write_text(zone.file())
    four, six = (" ".join(f"{address};" for address in at.addresses if (":" in address) == is_six) for is_six in (0, 1))
    text = _NAMED_CONF.format(folder=folder, zone=zone.name, broken=BROKEN, four=four or "none;", six=six or "none;")
    (folder / "named.conf").write_text(text)
    command = [str(_NAMED), "-f", "-n", "2", "-c", str(folder / "named.conf")]
    return Resolver(command, folder / "log", r" query: (\S+) IN ", at)


#: Functions that start a resolver with a zone. Its files go to a folder.
RESOLVERS: dict[str, Callable[[Path, Zone], Resolver]] = {"unbound": unbound, "dnsmasq": dnsmasq}
