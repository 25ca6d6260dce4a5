"""How messages describe the hooks in use."""

from __future__ import annotations

from dnsprobe.kernel.probe import Probe


def describe_hooks(probe: Probe) -> str:
    """Return each path with the place in the kernel that serves it: ``udp4 at kprobe ip_send_skb``."""
    return ", ".join(
        f"{path} at {state.place}{'' if state.verified else ' (not proved)'}"
        for path, state in ((path, probe.paths[path]) for path in probe.served_paths)
    )


def all_proved(probe: Probe) -> bool:
    """Return True if every path that has a hook is proved."""
    return all(probe.paths[path].verified for path in probe.served_paths)
