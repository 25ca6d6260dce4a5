"""How messages describe the hooks in use."""

from __future__ import annotations

from dnsprobe.kernel.prover import Prover


def describe_hooks(prover: Prover) -> str:
    """Return each path with the place in the kernel that serves it: ``udp4 at kprobe ip_send_skb``."""
    return ", ".join(
        f"{path} at {state.place}{'' if state.verified else ' (not proved)'}"
        for path, state in ((path, prover.paths[path]) for path in prover.served_paths)
    )
