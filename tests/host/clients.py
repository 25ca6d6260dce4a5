"""Real clients of DNS, each in a network namespace with servers that answer, refuse, are late or silent.

``tests/host/test_clients_that_retry.py`` plays with those that are quick to install. For the others, as root:

    .venv/bin/python tests/host/clients.py go      # with golang-go, or GO=.../bin/go
    .venv/bin/python tests/host/clients.py java    # with a JDK, such as default-jdk-headless
    .venv/bin/python tests/host/clients.py resolved    # with RESOLVED=.../systemd-resolved: unpack its package

It prints what became of the queries in each scene, and ends with status 1 if the metrics differ from the packets.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "vm/guest"))

import dns_server
from capture import Capture, Outcomes
from networks import Net
from real_resolvers import BROKEN, Listening, Zone, bind
from running import PATIENCE, Service
from scraped import add_up, samples_of

ZONE = Zone("retries.test", {"www": "192.0.2.1"}, texts={"big": ["x" * 200] * 10})
#: The servers: one that answers, one where nobody listens, one that never answers, one whose first answer is too late.
ANSWERS, CLOSED, SILENT, LATE = (f"127.0.0.{number}" for number in (2, 3, 4, 5))
#: How late, in seconds. All clients wait for one second, and try twice.
LATENESS = 1.3
#: The queries of a client end with its sockets, not with the timeout.
CONFIGURATION = f"domains: [{ZONE.name}, {BROKEN}]\njournal: {{repeat: 1h}}\nanswers: {{timeout: 1m}}\n"

#: The servers of a client and the name that it asks for. ``big`` is for clients that ask for texts.
SCENES = {
    "answer": ([ANSWERS], f"www.{ZONE.name}"),
    "truncated": ([ANSWERS], f"big.{ZONE.name}"),
    "no such name": ([ANSWERS], f"none.{ZONE.name}"),
    "first is silent": ([SILENT, ANSWERS], f"www.{ZONE.name}"),
    "all are silent": ([SILENT], f"www.{ZONE.name}"),
    "first is closed": ([CLOSED, ANSWERS], f"www.{ZONE.name}"),
    "server failure": ([ANSWERS], f"www.{BROKEN}"),
    "late": ([LATE], f"www.{ZONE.name}"),
}

_LIBC = r"""
#include <netdb.h>
int main(int count, char **names) {
	/* Without AI_ADDRCONFIG, glibc asks for AAAA where there is no IPv6. */
	struct addrinfo *found, hints = {0};
	return getaddrinfo(names[1], 0, &hints, &found) != 0;
}
"""
_CARES = """
import pathlib, pycares, select, socket, sys
pathlib.Path("/proc/self/comm").write_text("cares")
channel = pycares.Channel(servers=sys.argv[2:], timeout=1.0, tries=2)
if sys.argv[1].startswith("big"):
    channel.query(sys.argv[1], pycares.QUERY_TYPE_TXT, lambda *_: None)
else:
    for family in (socket.AF_INET, socket.AF_INET6):
        channel.gethostbyname(sys.argv[1], family, lambda *_: None)
while any(sockets := channel.getsock()):
    ready = select.select(*sockets, [], channel.timeout())
    for read in ready[0] or [pycares.ARES_SOCKET_BAD]:
        channel.process_fd(read, pycares.ARES_SOCKET_BAD)
    for write in ready[1]:
        channel.process_fd(pycares.ARES_SOCKET_BAD, write)
"""
_GO = """
package main
import ("net"; "os")
func main() {
	if os.Args[1][:3] == "big" { net.LookupTXT(os.Args[1]) } else { net.LookupHost(os.Args[1]) }
}
"""
_JAVA = """
import java.util.Hashtable;
import javax.naming.directory.InitialDirContext;
public class Lookup {
    public static void main(String[] arguments) throws Exception {
        // The library itself, not that of the system.
        Hashtable<String, String> settings = new Hashtable<>();
        settings.put("java.naming.factory.initial", "com.sun.jndi.dns.DnsContextFactory");
        StringBuilder servers = new StringBuilder();
        for (int at = 1; at < arguments.length; at++) servers.append("dns://" + arguments[at] + " ");
        settings.put("java.naming.provider.url", servers.toString().trim());
        settings.put("com.sun.jndi.dns.timeout.initial", "1000");
        settings.put("com.sun.jndi.dns.timeout.retries", "2");
        String[] types = arguments[0].startsWith("big") ? new String[] {"TXT"} : new String[] {"A", "AAAA"};
        for (String type : types)
            try { new InitialDirContext(settings).getAttributes(arguments[0], new String[] {type}); }
            catch (javax.naming.NamingException expected) { }
    }
}
"""
_RESOLVED = r"""
program=$1 name=$2 type=$3 servers=$4
mount -t tmpfs none /run
mkdir -p /run/dbus /run/systemd/resolved.conf.d
for file in passwd group; do
	sed /^systemd-resolve:/d /etc/$file >/run/$file
	[ $file = passwd ] && rest=:993::/:/bin/false || rest=:
	echo systemd-resolve:x:993$rest >>/run/$file
	mount --bind /run/$file /etc/$file
done
cat >/run/systemd/resolved.conf.d/test.conf <<END
[Resolve]
DNS=$servers
FallbackDNS=
LLMNR=no
MulticastDNS=no
DNSSEC=no
DNSOverTLS=no
Cache=no
END
# Without a device other than loopback, it asks nobody.
if ! ip link show up0; then
	ip link add up0 type veth peer name up1
	ip address add 198.51.100.1/24 dev up0
	ip link set up0 up
	ip link set up1 up
fi
"$program" & process=$!
# It answers this itself (RFC 6761).
until dig +tries=1 +time=1 @127.0.0.53 ready.invalid; do kill -0 $process; done
dig +tries=1 +time=60 @127.0.0.53 "$name" "$type"
kill $process
wait $process
"""


@dataclass(frozen=True)
class Kind:
    """A kind of client: the name of its process, what builds it in a folder, and its command.

    ``command`` gets the folder, the name to ask for, and the servers.
    """

    comm: str
    build: Callable[[Path], object]
    command: Callable[[Path, str, list[str]], list[str]]
    hears_errors: bool = True
    asks_for_texts: bool = True
    #: It gives up after a time that is not given in resolv.conf.
    is_patient: bool = False

    @property
    def scenes(self) -> list[str]:
        left_out = [
            *(["truncated"] if not self.asks_for_texts else []),
            *(["all are silent"] if self.is_patient else []),
        ]
        return [scene for scene in SCENES if scene not in left_out]


def _compile(source: str, *command: str) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        path = folder / command[-1]
        path.write_text(source)
        subprocess.run([*command[:-1], str(path)], cwd=folder, check=True, env={**os.environ, "HOME": str(folder)})

    return build


def _dig(_folder: Path, name: str, _servers: list[str]) -> list[str]:
    types = ["TXT"] if name.startswith("big") else ["A", "AAAA"]
    return ["dig", "+time=1", "+tries=2", *(word for qtype in types for word in (name, qtype))]


def _resolved(_folder: Path, name: str, servers: list[str]) -> list[str]:
    program = os.environ.get("RESOLVED", "/lib/systemd/systemd-resolved")
    qtype = "TXT" if name.startswith("big") else "A"
    return ["sh", "-ec", _RESOLVED, "sh", program, name, qtype, " ".join(servers)]


QUICK = {
    "getent": Kind("getent", lambda _: None, lambda _, name, __: ["getent", "ahosts", name], asks_for_texts=False),
    "glibc": Kind(
        "glibc",
        _compile(_LIBC, "gcc", "-o", "glibc", "glibc.c"),
        lambda folder, name, _: [str(folder / "glibc"), name],
        asks_for_texts=False,
    ),
    # Its socket is not connected: it asks all servers at once.
    "musl": Kind(
        "musl",
        _compile(_LIBC, "musl-gcc", "-static", "-o", "musl", "musl.c"),
        lambda folder, name, _: [str(folder / "musl"), name],
        hears_errors=False,
        asks_for_texts=False,
    ),
    "c-ares": Kind(
        "cares", lambda _: None, lambda _, name, servers: ["/usr/bin/python3", "-c", _CARES, name, *servers]
    ),
    "dig": Kind("dig", lambda _: None, _dig),
}
SLOW = {
    # Its own resolver, not that of the C library.
    "go": Kind(
        "lookup",
        _compile(_GO, os.environ.get("GO", "go"), "build", "-tags", "netgo", "-o", "lookup", "lookup.go"),
        lambda folder, name, _: [str(folder / "lookup"), name],
    ),
    "java": Kind(
        "java",
        _compile(_JAVA, "javac", "Lookup.java"),
        lambda folder, name, servers: ["java", "-Xshare:auto", "-cp", str(folder), "Lookup", name, *servers],
    ),
    # It sends on what dig asks.
    "resolved": Kind("systemd-resolve", lambda _: None, _resolved, is_patient=True),
}


class LateServer(threading.Thread):
    """Answers each query after LATENESS."""

    def __init__(self, net: Net) -> None:
        super().__init__(daemon=True)
        with net.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind((LATE, 53))
        self._answers: list[threading.Timer] = []

    def run(self) -> None:
        while True:
            message, client = self._socket.recvfrom(65535)
            if not message:
                return
            _, qtype, end = dns_server.question(message)
            made = dns_server.answer(message, qtype, end)
            answer = threading.Timer(LATENESS, self._socket.sendto, (made, client))
            answer.start()
            self._answers.append(answer)

    def finish(self) -> None:
        """Wait until all answers are sent."""
        for answer in self._answers:
            answer.join()

    def close(self) -> None:
        self._socket.sendto(b"", (LATE, 53))
        self.join()
        self.finish()
        self._socket.close()


class Site:
    """A network namespace with the servers, for one client at a time."""

    def __init__(self, service: Service, kind: Kind, folder: Path) -> None:
        self._service, self._kind, self._folder, self._stack = service, kind, folder, ExitStack()
        for name in ("etc", "bind", "client"):
            (folder / name).mkdir(parents=True)
        (folder / "etc/nsswitch.conf").write_text("hosts: dns\n")
        kind.build(folder / "client")
        self._net = Net()
        self._stack.callback(self._net.close)
        with self._net.entered():
            # BIND listens only on addresses of a device.
            subprocess.run(["ip", "address", "add", ANSWERS, "dev", "lo"], check=True)
            silent = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            silent.bind((SILENT, 53))
        self._late = LateServer(self._net)
        self._late.start()
        self._stack.callback(self._late.close)
        self._stack.callback(bind(folder / "bind", ZONE, Listening([ANSWERS], self._net)).close)
        self._capture = Capture(self._net)
        self._stack.callback(self._capture.close)

    def play(self, scene: str) -> tuple[Outcomes, Outcomes]:
        """Run the client, and return what became of its queries: as its packets show, and as the metrics do."""
        servers, name = SCENES[scene]
        etc = self._folder / "etc"
        lines = [*(f"nameserver {server}" for server in servers), "options timeout:1 attempts:2", ""]
        (etc / "resolv.conf").write_text("\n".join(lines))
        before = self._counted()
        mount = 'for name in resolv.conf nsswitch.conf; do mount --bind "$1/$name" "/etc/$name"; done; shift; exec "$@"'
        command = ["unshare", "--mount", "sh", "-ec", mount, "sh", str(etc)]
        command += self._kind.command(self._folder / "client", name, servers)
        with self._net.entered():
            client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Its status says whether the name exists.
        client.wait(PATIENCE)
        self._late.finish()
        counted = self._counted() - before
        return self._capture.outcomes(hears_errors=self._kind.hears_errors), counted

    def _counted(self) -> Outcomes:
        """Return what became of the queries of the client, which has ended, as the metrics show."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            text = self._service.get("/metrics")
            found: Outcomes = Counter()
            for label, metric in (("rcode", "dnsprobe_responses_total"), ("reason", "dnsprobe_unanswered_total")):
                for labels, value in samples_of(metric, text):
                    if labels["process"] == self._kind.comm:
                        found[labels["qtype"], labels["transport"], labels[label]] += int(value)
            queries = add_up(samples_of("dnsprobe_queries_total", text), "process").get(self._kind.comm, 0)
            if queries == found.total():
                return found
            time.sleep(0.05)
        raise TimeoutError(f"{queries} queries of {self._kind.comm}, but {found}: all of its sockets are closed")

    def close(self) -> None:
        self._stack.close()


def play_all(service: Service, client: str, folder: Path) -> dict[str, tuple[Outcomes, Outcomes]]:
    """Play all scenes of a client, and return the result of :meth:`Site.play` for each."""
    kind = {**QUICK, **SLOW}[client]
    site = Site(service, kind, folder / client)
    try:
        return {scene: site.play(scene) for scene in kind.scenes}
    finally:
        site.close()


def main(names: list[str]) -> None:
    """Play all scenes with these clients, and print."""
    differ = False
    with tempfile.TemporaryDirectory(prefix="dnsprobe-clients-") as folder:
        service = Service(CONFIGURATION, Path(folder))
        try:
            for client in names:
                for scene, (captured, counted) in play_all(service, client, Path(folder)).items():
                    shown = ", ".join(f"{times} {' '.join(key)}" for key, times in sorted(counted.items()))
                    print(f"{client}: {scene}: {shown}", flush=True)
                    if captured != counted:
                        differ = True
                        print(f"  DIFFERENCE: the packets show {captured}")
        finally:
            service.stop()
    sys.exit(differ)


if __name__ == "__main__":
    main(sys.argv[1:])
