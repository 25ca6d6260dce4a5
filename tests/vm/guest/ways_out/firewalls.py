"""Situations: address translation, firewalls, and programs that drop or redirect packets."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from ways_out import programs
from ways_out.place import (
    FAR4,
    FAR6,
    PATIENCE,
    Absent,
    NotPlayed,
    Place,
    hardware_address,
    message,
    send_over_tcp,
    send_to,
    sender_to,
)

#: The address of Docker's resolver in a container, and one of a service of Kubernetes.
_DOCKER, _SERVICE = "127.0.0.11", "198.51.100.10"


def _ask_in_each_way(
    place: Place, servers: dict[str, str], received: Callable[[], str], over_tcp: Callable[[], str]
) -> None:
    """Ask these servers by sendto, by a connected socket, and over TCP; each query must arrive."""
    for tag, server in servers.items():
        (unconnected,) = place.names(1, f"{tag}-sendto")
        (connected,) = place.names(1, f"{tag}-connect")
        (stream,) = place.names(1, f"{tag}-tcp")
        place.right(unconnected, connected, server=server)
        place.ask(partial(send_to, server, unconnected))
        place.ask(partial(_send_connected, server, connected))
        place.right(stream, server=server, transport="tcp")
        asker = place.start(partial(send_over_tcp, server, stream))
        arrived = {received(), received(), over_tcp()}
        place.wait(asker)
        if arrived != {unconnected, connected, stream}:
            raise NotPlayed(f"{arrived} arrived")


def _send_connected(server: str, name: str) -> None:
    with sender_to(server) as sender:
        sender.send(message(name))


def dnat_local(place: Place) -> None:
    """A resolver on this host, as in a container of Docker."""
    place.nft(f"""
        table inet t {{ chain out {{ type nat hook output priority -100;
            ip daddr {_DOCKER} udp dport 53 dnat ip to 127.0.0.1:40053
            ip daddr {_DOCKER} tcp dport 53 dnat ip to 127.0.0.1:40053
        }}
        }}""")
    resolver = place.receiver(place.net, 40053)
    _ask_in_each_way(place, {"four": _DOCKER}, lambda: next(iter(resolver.over_udp(1))), resolver.over_tcp)


def redirected(place: Place) -> None:
    place.nft("""
        table inet t { chain out { type nat hook output priority -100;
            meta l4proto { tcp, udp } th dport 53 redirect to :40053
        }
        }""")
    resolver = place.receiver(place.net, 40053)
    servers = {"four": "127.0.0.1", "six": "::1"}
    _ask_in_each_way(place, servers, lambda: next(iter(resolver.over_udp(1))), resolver.over_tcp)


def dnat_remote(place: Place) -> None:
    """A service whose address is replaced by that of one of its servers, as kube-proxy does it."""
    far_net = place.cable()
    far = place.receiver(far_net, 5300)
    place.ip(place.net, f"route add {_SERVICE} via {FAR4}\nroute add 2001:db8:1::10 via {FAR6}")
    place.nft(f"""
        table inet t {{ chain out {{ type nat hook output priority -100;
            ip daddr {_SERVICE} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {FAR4}:5300
            ip6 daddr 2001:db8:1::10 meta l4proto {{ tcp, udp }} th dport 53 dnat ip6 to [{FAR6}]:5300
        }}
        }}""")
    servers = {"four": _SERVICE, "six": "2001:db8:1::10"}
    _ask_in_each_way(place, servers, lambda: next(iter(far.over_udp(1))), far.over_tcp)


def docker(place: Place) -> None:
    """The resolver behind the redirect asks the real server from the same namespace, as dockerd does it."""
    place.nft(f"""
        table inet t {{ chain out {{ type nat hook output priority -100;
            ip daddr {_DOCKER} udp dport 53 dnat ip to 127.0.0.1:40053
        }}
        }}""")
    real = place.receiver(place.net)

    def resolve(ready: Callable[[], None]) -> None:
        resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        resolver.bind(("127.0.0.1", 40053))
        ready()
        while True:
            query, client = resolver.recvfrom(4096)
            with sender_to("127.0.0.9", connected=False) as sender:
                sender.sendto(query, ("127.0.0.9", 53))
            resolver.sendto(query[:2] + b"\x81\x80" + query[4:], client)

    with place.helper(resolve, "dockerd-like"):
        for comm in ("web", "cron", "miner"):
            (name,) = place.names(1, comm)
            place.right(name, server=_DOCKER, comm=comm)
            place.right(name, server="127.0.0.9", comm="dockerd-like")
            place.ask(partial(_ask_and_wait, _DOCKER, name), comm)
        real.over_udp(3)


def _ask_and_wait(server: str, name: str) -> None:
    """Ask a server, and wait for its answer."""
    with sender_to(server, connected=False) as sender:
        sender.settimeout(PATIENCE)
        sender.sendto(message(name), (server, 53))
        sender.recv(4096)


_NETLINK_NETFILTER, _QUEUE_SUBSYSTEM = 12, 3  # include/uapi/linux/netlink.h, include/uapi/linux/netfilter/nfnetlink.h


def _queue_message(kind: int, payload: bytes, flags: int) -> bytes:
    """Return a message for queue 0: include/uapi/linux/netfilter/nfnetlink_queue.h."""
    body = struct.pack("=BBH", 0, 0, 0) + payload
    return struct.pack("=IHHII", 16 + len(body), _QUEUE_SUBSYSTEM << 8 | kind, flags, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def accept_all(ready: Callable[[], None], gate: int | None = None) -> None:
    """Accept each packet of queue 0, from user space. ``gate``: read an octet from there before each packet."""
    queue = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    queue.bind((0, 0))
    # Bind the queue, then ask for whole packets. Each request is acknowledged.
    for attribute in (
        _attribute(1, struct.pack(">BBH", 1, 0, socket.AF_INET)),
        _attribute(2, struct.pack(">IB", 65535, 2)),
    ):
        queue.sendall(_queue_message(2, attribute, flags=5))
        _, _, _, _, status = struct.unpack_from("=HHIIi", queue.recv(65535), 4)
        if status:
            raise OSError(-status, "NFQUEUE")
    ready()
    while True:
        data = queue.recv(1 << 17)
        at, packet = 20, b""
        while at + 4 <= len(data):
            length, kind = struct.unpack_from("=HH", data, at)
            if kind & 0x3FFF == 1:  # NFQA_PACKET_HDR begins with the id of the packet
                packet = data[at + 4 : at + 8]
            at += (length + 3) & ~3
        if gate is not None:
            os.read(gate, 1)
        queue.sendall(_queue_message(1, _attribute(2, struct.pack(">I", 1) + packet), flags=1))


def _queue(place: Place) -> None:
    try:
        place.nft("""
            table inet t { chain out { type filter hook output priority 0;
                meta l4proto { tcp, udp } th dport 53 queue num 0
            }
            }""")
    except (Absent, NotPlayed):
        # A kernel may have the target of iptables only.
        for program in ("iptables", "ip6tables"):
            for protocol in ("udp", "tcp"):
                match = ("-p", protocol, "--dport", "53", "-j", "NFQUEUE", "--queue-num", "0")
                place.iptables(program, "-A", "OUTPUT", *match)


def queued(place: Place) -> None:
    """A firewall in user space: Portmaster, OpenSnitch, Suricata. The asker waits for an answer, as resolvers do."""
    far = place.receiver(place.cable())
    _queue(place)
    with place.helper(accept_all, "firewall"):
        for server in (FAR4, FAR6):
            names = place.names(3, "six" if ":" in server else "four")
            place.right(*names, server=server)
            for name in names:
                asker = place.start(partial(_ask_and_wait, server, name))
                far.answer()
                place.wait(asker)


def queued_tcp(place: Place) -> None:
    """As :func:`queued`, over TCP."""

    def ask(server: str, name: str) -> None:
        with socket.create_connection((server, 53), PATIENCE) as connection:
            query = message(name)
            connection.sendall(struct.pack("!H", len(query)) + query)
            # The server closes the connection when it has the query.
            assert connection.recv(1) == b""

    far = place.receiver(place.cable())
    _queue(place)
    with place.helper(accept_all, "firewall"):
        for server in (FAR4, FAR6):
            (name,) = place.names(1, "six" if ":" in server else "four")
            place.right(name, server=server, transport="tcp")
            asker = place.start(partial(ask, server, name))
            far.over_tcp()
            place.wait(asker)


def queued_gone(place: Place) -> None:
    """As :func:`queued`, but the asker has ended when the firewall decides."""
    far = place.receiver(place.cable())
    _queue(place)
    gate, opened = os.pipe()
    with place.helper(partial(accept_all, gate=gate), "firewall"):
        for server in (FAR4, FAR6):
            for name in place.names(3, "six" if ":" in server else "four"):
                place.right(name, server=server)
                place.ask(partial(send_to, server, name))
                os.write(opened, b"1")
                far.over_udp(1)
    os.close(gate)
    os.close(opened)


def _asked_in_vain(place: Place, server: str = FAR4, count: int = 3) -> None:
    """Ask from a process that ignores the errors of its sends."""
    names = place.names(count, "six" if ":" in server else "four")
    place.right(*names, server=server)

    def ask() -> None:
        with sender_to(server, connected=False) as sender:
            for name in names:
                with suppress(PermissionError):
                    sender.sendto(message(name), (server, 53))

    place.ask(ask)


def _dropped(place: Place, hook: str) -> None:
    place.cable()
    place.nft(f"table inet t {{ chain c {{ type filter hook {hook} priority 0; udp dport 53 drop\n}}\n}}")
    _asked_in_vain(place)
    _asked_in_vain(place, FAR6)


def dropped_in_output(place: Place) -> None:
    _dropped(place, "output")


def dropped_in_postrouting(place: Place) -> None:
    _dropped(place, "postrouting")


def dropped_by_program(place: Place) -> None:
    place.cable()
    group = place.control_group("deny")
    programs.drop_everything(group)
    for server, tag in ((FAR4, "four"), (FAR6, "six")):
        names = place.names(3, tag)
        place.right(*names, server=server)

        def ask(server: str = server, names: list[str] = names) -> None:
            (group / "cgroup.procs").write_text("0")
            for name in names:
                try:
                    send_to(server, name)
                except PermissionError:
                    continue
                raise AssertionError("it was not dropped")

        place.ask(ask)


def address_deny(place: Place) -> None:
    """IPAddressDeny= of systemd, in a transient unit."""
    if not Path("/run/systemd/system").exists():
        raise Absent("systemd does not run here")
    programs.allow_programs(1)
    (name,) = place.names(1)
    place.right(name, comm="send", server="127.0.0.1")
    unit = ["systemd-run", "--wait", "--quiet", "--collect", "--property=IPAddressDeny=any"]
    done = subprocess.run([*unit, place.sender, "sendto", "4", name, "1"], capture_output=True, check=False)
    if not done.returncode:
        raise NotPlayed("systemd did not deny the send")


def redirected_by_tc(place: Place) -> None:
    far_net = place.cable()
    far = place.receiver(far_net)
    with far_net.entered():
        hardware = hardware_address("v1").hex(":")
    place.veth("w0", far_net, "w1")
    place.ip(place.net, "link set w0 up")
    place.ip(far_net, f"link set w1 address {hardware}\nlink set w1 up")
    place.tc(
        place.net,
        "qdisc add dev v0 clsact\n"
        "filter add dev v0 egress protocol ip u32 match u32 0 0 action mirred egress redirect dev w0\n"
        "filter add dev v0 egress protocol ipv6 u32 match u32 0 0 action mirred egress redirect dev w0",
    )
    # Neighbour discovery does not work over the redirect in both directions, so the neighbours are known.
    place.ip(place.net, "\n".join(f"neigh replace {far} lladdr {hardware} dev v0" for far in (FAR4, FAR6)))
    for device in ("all", "w1"):
        place.sysctl(far_net, f"ipv4/conf/{device}/rp_filter", "0")
    for tag, server in (("four", FAR4), ("six", FAR6)):
        names = place.names(3, tag)
        place.right(*names, server=server)
        place.ask(partial(send_to, server, *names))
        far.over_udp(3)


def dropped_by_tc(place: Place) -> None:
    place.cable()
    # The program of classic BPF returns TC_ACT_SHOT.
    place.tc(place.net, 'qdisc add dev v0 clsact\nfilter add dev v0 egress bpf da bytecode "1,6 0 0 2"')
    for tag, server in (("four", FAR4), ("six", FAR6)):
        names = place.names(3, tag)
        place.right(*names, server=server)

        def ask(server: str = server, names: list[str] = names) -> None:
            for name in names:
                with suppress(OSError):  # ENOBUFS
                    send_to(server, name)

        place.ask(ask)


def balanced(place: Place) -> None:
    """A load balancer at the socket replaces the server's address, so the kernel never sees the one that was asked."""
    _balanced(place, None)


def balanced_to_port(place: Place) -> None:
    """As :func:`balanced`, and the server listens on a port that is not watched."""
    _balanced(place, 5300)


def _balanced(place: Place, port: int | None) -> None:
    far = place.receiver(place.cable(), port or 53)
    place.ip(place.net, f"route add {_SERVICE} via {FAR4}")
    group = place.control_group("balanced")
    programs.replace_server(group, FAR4, port)
    unconnected, connected = place.names(2)
    place.right(unconnected, connected, port=port or 53)

    def ask() -> None:
        (group / "cgroup.procs").write_text("0")
        send_to(_SERVICE, unconnected)
        with sender_to(_SERVICE) as sender:
            sender.send(message(connected))

    place.ask(ask)
    far.over_udp(2)
