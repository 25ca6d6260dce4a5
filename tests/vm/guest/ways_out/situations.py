"""All situations, in the order of docs/ways-out.md, and the program that plays them on request.

The program reads names of situations, one in a line, and prints for each a line of JSON when it has played: what
dnsprobe should have counted. ``python3 -m ways_out.situations SENDER`` starts it; SENDER is senders/send.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from networks import Net

from ways_out import devices, firewalls, processes, raw, routes, sends
from ways_out.place import Absent, NotPlayed, Place, send_to

#: The situations of the table by their key: a group, and what it shows.
TITLES: dict[str, tuple[str, str]] = {}
_PLAYED: dict[str, Callable[[Place], None]] = {}


def _add(group: str, rows: dict[str, tuple[Callable[[Place], None], str]]) -> None:
    for key, (function, title) in rows.items():
        TITLES[key] = (group, title)
        _PLAYED[key] = function


_add(
    "Sends",
    {
        "plain": (sends.plain, "`sendto`"),
        "connected": (sends.connected, "`send` on a connected socket"),
        "mapped": (sends.mapped, "IPv4-mapped address on an IPv6 socket"),
        "sendmmsg": (sends.sendmmsg, "`sendmmsg`"),
        "uring": (sends.uring, "io_uring"),
        "uring_worker": (sends.uring_worker, "io_uring, by its worker (`IOSQE_ASYNC`)"),
        "corked": (sends.corked, "`UDP_CORK`, in three parts"),
        "more_behind_header": (sends.more_behind_header, "`MSG_MORE`, the question in the second part"),
        "more_behind_question": (sends.more_behind_question, "`MSG_MORE`, the question in the first part"),
        "spliced": (sends.spliced, "`splice`"),
        "sendfile": (sends.sendfile, "`sendfile`"),
        "zerocopy": (sends.zerocopy, "`MSG_ZEROCOPY`"),
        "zerocopy_padded": (sends.zerocopy_padded, "`MSG_ZEROCOPY`, with 1000 octets of padding"),
        "segmented_2": (sends.segmented_2, "`UDP_SEGMENT`, 2 datagrams"),
        "segmented_10": (sends.segmented_10, "`UDP_SEGMENT`, 10 datagrams"),
        "segmented_64": (sends.segmented_64, "`UDP_SEGMENT`, 64 datagrams"),
    },
)
_add(
    "Packets",
    {
        "fragments4": (sends.fragments4, "larger than the MTU, IPv4"),
        "fragments6": (sends.fragments6, "larger than the MTU, IPv6"),
        "options4": (sends.options4, "IPv4 options"),
        "hop_by_hop": (sends.hop_by_hop, "IPv6 hop-by-hop options"),
        "destination_options": (sends.destination_options, "IPv6 destination options"),
        "routing_header": (sends.routing_header, "IPv6 routing header"),
        "raw4": (raw.raw4, "raw socket, IPv4"),
        "raw4_whole": (raw.raw4_whole, "raw socket, IPv4, with the IP header"),
        "raw6": (raw.raw6, "raw socket, IPv6"),
        "packet_socket": (raw.packet_socket, "packet socket (`AF_PACKET`)"),
    },
)
_add(
    "Address translation",
    {
        "dnat_local": (firewalls.dnat_local, "DNAT to a resolver of the host, as in a container of Docker"),
        "docker": (firewalls.docker, "the same, and the resolver asks from that namespace, as dockerd does"),
        "redirected": (firewalls.redirected, "redirect to another port"),
        "dnat_remote": (firewalls.dnat_remote, "DNAT to another host and port, as kube-proxy does"),
        "balanced": (firewalls.balanced, "a load balancer at the socket replaces the server"),
        "balanced_to_port": (firewalls.balanced_to_port, "the same, with a port that is not watched"),
    },
)
_add(
    "Firewalls",
    {
        "queued": (firewalls.queued, "NFQUEUE: a program in user space accepts it"),
        "queued_gone": (firewalls.queued_gone, "the same, after the asker has ended"),
        "queued_tcp": (firewalls.queued_tcp, "NFQUEUE: it accepts a query over TCP"),
        "dropped_in_output": (firewalls.dropped_in_output, "dropped by nft in OUTPUT"),
        "dropped_in_postrouting": (firewalls.dropped_in_postrouting, "dropped by nft in POSTROUTING"),
        "dropped_by_program": (firewalls.dropped_by_program, "dropped by a BPF program of its control group"),
        "address_deny": (firewalls.address_deny, "`IPAddressDeny=` of systemd"),
        "redirected_by_tc": (firewalls.redirected_by_tc, "redirected by `tc`"),
        "dropped_by_tc": (firewalls.dropped_by_tc, "dropped by `tc`"),
    },
)
_add(
    "Routes",
    {
        "no_route": (routes.no_route, "no route: the send fails, nothing to count"),
        "blackhole": (routes.blackhole, "blackhole route: the send fails, nothing to count"),
        "unreachable": (routes.unreachable, "unreachable route: the send fails, nothing to count"),
        "prohibited": (routes.prohibited, "prohibit route: the send fails, nothing to count"),
        "silent_neighbour4": (routes.silent_neighbour4, "a neighbour that does not answer, IPv4"),
        "silent_neighbour6": (routes.silent_neighbour6, "a neighbour that does not answer, IPv6"),
        "multicast_interface": (routes.multicast_interface, "mDNS on three interfaces (`IP_MULTICAST_IF`)"),
        "multicast_packet_info": (routes.multicast_packet_info, "mDNS on three interfaces (`IP_PKTINFO`)"),
        "broadcast": (routes.broadcast, "broadcast"),
        "unicast_5353": (routes.unicast_5353, "a resolver on port 5353"),
    },
)
_add(
    "Devices",
    {
        "vlan": (devices.vlan, "VLAN"),
        "bond": (devices.bond, "bond"),
        "bridge": (devices.bridge, "bridge"),
        "macvlan": (devices.macvlan, "macvlan"),
        "ipvlan": (devices.ipvlan, "ipvlan"),
        "vrf": (devices.vrf, "VRF"),
        "ipip": (devices.ipip, "tunnel: IPIP"),
        "sit": (devices.sit, "tunnel: SIT"),
        "gre": (devices.gre, "tunnel: GRE"),
        "vxlan": (devices.vxlan, "tunnel: VXLAN"),
        "wireguard": (devices.wireguard, "tunnel: WireGuard"),
        "ipsec_transport": (devices.ipsec_transport, "IPsec, transport mode"),
        "ipsec_tunnel": (devices.ipsec_tunnel, "IPsec, tunnel mode"),
        "container": (devices.container, "container: namespace behind a bridge"),
        "control_group": (devices.control_group, "container: control group and cgroup namespace"),
        "forwarded": (devices.forwarded, "forwarded for another host: nothing to count"),
    },
)
_add(
    "Processes",
    {
        "gone_at_once": (processes.gone_at_once, "the process exits at once"),
        "real_time": (processes.real_time, "the process has real-time priority"),
        processes.Early.NAME: (lambda _: None, "sockets opened before dnsprobe started"),
    },
)

#: The name of the last query of each situation. dnsprobe reports in order, so it has reported all others before it.
LAST = "last.ways.test"


def _control_groups() -> Path | None:
    """Return where the control groups of version 2 are mounted."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)


def _play(situation: str, sender: Path, groups: Path | None) -> dict[str, object]:
    place = Place(situation, sender, groups)
    try:
        _PLAYED[situation](place)
    except Absent as reason:
        return {"absent": str(reason)}
    except NotPlayed as reason:
        return {"failed": str(reason)}
    except Exception:  # the other situations go on
        return {"failed": traceback.format_exc()}
    finally:
        place.close()
    rows = [[q.name, q.comm, q.transport, q.server, q.port, count] for q, count in place.asked.items()]
    return {"asked": rows}


def main(sender: str) -> None:
    """Play what is asked for."""
    early, groups, here = processes.Early(), _control_groups(), Net()
    _PLAYED[early.NAME] = early.situation
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        result = _play(line.strip(), Path(sender), groups)
        with here.entered(), contextlib.suppress(ConnectionRefusedError):
            send_to("127.0.0.1", f"{number}.{LAST}")
        print(json.dumps(result | {"last": f"{number}.{LAST}"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
