"""Situations: the devices, tunnels and namespaces that a query passes on its way out."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from functools import partial
from pathlib import Path

from networks import Net

from ways_out.place import (
    FAR4,
    FAR6,
    NEAR4,
    NEAR6,
    Absent,
    NotPlayed,
    Place,
    ip4_header,
    message,
    send_to,
    sender_to,
    udp_header,
)

#: The addresses inside of a tunnel: ours, and the server's.
_IN4, _OUT4 = "198.51.100.1", "198.51.100.53"
_IN6, _OUT6 = "2001:db8:1::1", "2001:db8:1::53"


def _ask(place: Place, far_net: Net, servers: tuple[str, ...] = (FAR4, FAR6), net: Net | None = None) -> None:
    """Ask each of these servers, which are all in one namespace; each query must arrive."""
    far = place.receiver(far_net)
    for server in servers:
        names = place.names(3, "six" if ":" in server else "four")
        place.right(*names, server=server)
        place.ask(partial(send_to, server, *names), net=net)
        far.over_udp(3)


def _addresses(device: str, four: str, six: str) -> str:
    return f"address add {four}/24 dev {device}\naddress add {six}/64 dev {device} nodad\nlink set {device} up"


def _bare_cable(place: Place) -> Net:
    """Connect v0 with another namespace, without addresses on v0."""
    far = place.make_net()
    place.veth("v0", far, "v1")
    place.ip(far, _addresses("v1", FAR4, FAR6))
    return far


def vlan(place: Place) -> None:
    far = place.cable(addresses=False)
    for net, device, four, six in ((place.net, "v0", NEAR4, NEAR6), (far, "v1", FAR4, FAR6)):
        place.ip(net, f"link add link {device} name {device}.7 type vlan id 7\n{_addresses(f'{device}.7', four, six)}")
    _ask(place, far)


def bond(place: Place) -> None:
    far = _bare_cable(place)
    place.ip(
        place.net, f"link add b0 type bond mode active-backup\nlink set v0 master b0\n{_addresses('b0', NEAR4, NEAR6)}"
    )
    _ask(place, far)


def bridge(place: Place) -> None:
    far = _bare_cable(place)
    place.ip(place.net, f"link add br0 type bridge\nlink set v0 master br0 up\n{_addresses('br0', NEAR4, NEAR6)}")
    _ask(place, far)


def macvlan(place: Place) -> None:
    far = _bare_cable(place)
    place.ip(
        place.net,
        f"link set v0 up\nlink add link v0 name x0 type macvlan mode bridge\n{_addresses('x0', NEAR4, NEAR6)}",
    )
    _ask(place, far)


def ipvlan(place: Place) -> None:
    far = _bare_cable(place)
    place.ip(
        place.net, f"link set v0 up\nlink add link v0 name x0 type ipvlan mode l2\n{_addresses('x0', NEAR4, NEAR6)}"
    )
    _ask(place, far)


def vrf(place: Place) -> None:
    far = _bare_cable(place)
    # Addresses come last: IPv6 drops those of a device that gets a master.
    place.ip(
        place.net,
        "link add red type vrf table 10\nlink set red up\nlink set v0 master red\n" + _addresses("v0", NEAR4, NEAR6),
    )
    receiver = place.receiver(far)
    for server in (FAR4, FAR6):
        names = place.names(3, "six" if ":" in server else "four")
        place.right(*names, server=server)
        place.ask(partial(_send_by, b"red", server, *names))
        receiver.over_udp(3)


def _send_by(device: bytes, server: str, *names: str) -> None:
    with sender_to(server, connected=False) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        for name in names:
            sender.sendto(message(name), (server, 53))


def _tunnel(place: Place, kind: str, more: str = "", servers: tuple[str, ...] = (_OUT4, _OUT6)) -> None:
    far = place.cable()
    for net, own, other, four, six in (
        (place.net, NEAR4, FAR4, _IN4, _IN6),
        (far, FAR4, NEAR4, _OUT4, _OUT6),
    ):
        lines = [f"link add t0 type {kind} local {own} remote {other} {more}"]
        lines += [f"address add {four}/24 dev t0"] if _OUT4 in servers else []
        lines += [f"address add {six}/64 dev t0 nodad"] if _OUT6 in servers else []
        place.ip(net, "\n".join([*lines, "link set t0 up"]))
    _ask(place, far, servers)


def ipip(place: Place) -> None:
    _tunnel(place, "ipip", servers=(_OUT4,))


def sit(place: Place) -> None:
    _tunnel(place, "sit", servers=(_OUT6,))


def gre(place: Place) -> None:
    _tunnel(place, "gre")


def vxlan(place: Place) -> None:
    _tunnel(place, "vxlan", "id 7 dstport 4789")


def wireguard(place: Place) -> None:
    far = place.cable()
    for net in (place.net, far):
        place.ip(net, "link add t0 type wireguard")
    keys = [subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    public = [
        subprocess.run(["wg", "pubkey"], input=key, capture_output=True, text=True, check=True).stdout.strip()
        for key in keys
    ]
    for number, (net, other, four, six) in enumerate(
        ((place.net, FAR4, _IN4, _IN6), (far, NEAR4, _OUT4, _OUT6)),
    ):
        peer = ["peer", public[1 - number], "endpoint", f"{other}:51820", "allowed-ips", "0.0.0.0/0,::/0"]
        with net.entered():
            setup = ["wg", "set", "t0", "listen-port", "51820", "private-key", "/dev/stdin", *peer]
            subprocess.run(setup, input=keys[number], text=True, check=True)
        place.ip(net, _addresses("t0", four, six))
    _ask(place, far, (_OUT4, _OUT6))


def _protected(place: Place, mode: str) -> None:
    far = place.cable()
    for near, other in ((NEAR4, FAR4), (NEAR6, FAR6)):
        ends = f"tmpl src {near} dst {other} proto esp mode {mode}"
        for net, direction in ((place.net, "out"), (far, "in")):
            state = f"xfrm state add src {near} dst {other} proto esp spi 0x7 mode {mode}"
            place.ip(
                net,
                f"{state} auth-trunc hmac(sha256) 0x{'5a' * 32} 128 enc cbc(aes) 0x{'a5' * 16}\n"
                f"xfrm policy add src {near} dst {other} dir {direction} {ends}",
            )
    _ask(place, far)


def ipsec_transport(place: Place) -> None:
    _protected(place, "transport")


def ipsec_tunnel(place: Place) -> None:
    _protected(place, "tunnel")


def container(place: Place) -> None:
    """A container with a cable to a bridge of its host, which forwards for it."""
    far = place.cable()
    inside = place.make_net()
    place.veth("c0", inside, "eth0")
    place.ip(place.net, "link add br0 type bridge\nlink set c0 master br0 up")
    place.ip(
        inside,
        _addresses("eth0", "10.88.0.2", "2001:db8:88::2")
        + "\nroute add default via 10.88.0.1\nroute add default via 2001:db8:88::1",
    )
    place.ip(place.net, _addresses("br0", "10.88.0.1", "2001:db8:88::1"))
    place.ip(far, f"route add default via {NEAR4}\nroute add default via {NEAR6}")
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        place.sysctl(place.net, name, "1")
    _ask(place, far, net=inside)


def control_group(place: Place) -> None:
    """A container in a control group below the root, with its own cgroup namespace."""
    far = place.receiver(place.cable())
    group = place.control_group("container")
    names = place.names(3)
    place.right(*names)

    def ask() -> None:
        (group / "cgroup.procs").write_text("0")
        _unshare(0x02000000)  # CLONE_NEWCGROUP
        send_to(FAR4, *names)

    place.ask(ask)
    far.over_udp(3)


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


def forwarded(place: Place) -> None:
    """Packets from another host, which this one forwards: no process here asks, so there is nothing to count."""
    if not Path("/dev/net/tun").exists():
        raise Absent("no /dev/net/tun")
    far = place.cable()
    receiver = place.receiver(far)
    with place.net.entered():
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        # IFF_TUN | IFF_NO_PI: whole IP packets, without a header.
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"outside", 0x1001))
    try:
        place.ip(place.net, "address add 198.51.100.1/24 dev outside\nlink set outside up")
        place.ip(far, f"route add default via {NEAR4}")
        place.sysctl(place.net, "ipv4/ip_forward", "1")
        for name in place.names(3):
            query = message(name)
            header = ip4_header(17, 8 + len(query), "198.51.100.9", FAR4)
            os.write(tun, header + udp_header(query) + query)
        receiver.over_udp(3)
    finally:
        os.close(tun)
    if place.asked:
        raise NotPlayed("nothing is asked here")
