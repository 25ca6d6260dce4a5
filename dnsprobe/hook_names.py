"""The names of the hooks in the configuration and in the metrics.

They are not in :mod:`dnsprobe.model`, because the loader child needs only them, and starts faster without that module.
"""

from __future__ import annotations

from enum import StrEnum


class UdpHook(StrEnum):
    """The hooks for UDP, best first, as in ``probe.hook`` and ``dnsprobe_hook_info``."""

    IP_SEND_SKB = "ip_send_skb"
    UDP_SEND_SKB = "udp_send_skb"
    CGROUP_SKB = "cgroup_skb"


#: Hooks that the configuration may still name, and those that replace them. net_dev_queue was a tracepoint.
OLD_HOOKS = {"net_dev_queue": UdpHook.CGROUP_SKB}


class TcpHook(StrEnum):
    """The hooks for TCP, best first, as in ``probe.tcp_hook`` and ``dnsprobe_hook_info``."""

    CGROUP_SKB = "cgroup_skb"
    TCP_SENDMSG_LOCKED = "tcp_sendmsg_locked"
    TCP_SENDMSG = "tcp_sendmsg"
    TCP_TRACEPOINT = "tcp_tracepoint"


class Attach(StrEnum):
    """How a program is attached to a hook, as in ``doctor --json`` and ``dnsprobe_hook_info``."""

    FENTRY = "fentry"
    KPROBE = "kprobe"
    CGROUP = "cgroup"
    TRACEPOINT = "tracepoint"
