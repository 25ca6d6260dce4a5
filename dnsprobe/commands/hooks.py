"""How messages describe the hooks in use."""

from __future__ import annotations

from collections.abc import Sequence

from dnsprobe.kernel.prover import Prover


def describe_hooks(prover: Prover) -> str:
    """Return each path with the place in the kernel that serves it: ``udp4 at kprobe ip_send_skb``."""
    return ", ".join(
        f"{path} at {state.place}{'' if state.verified else ' (not proved)'}"
        for path, state in ((path, prover.paths[path]) for path in prover.served_paths)
    )


def describe_unproved(prover: Prover) -> str:
    """Return each path that is not proved with the reason, empty if all are: ``tcp4: the hook did not report …``."""
    return " | ".join(f"{path}: {reason}" for path, reason in prover.unproved.items())


def describe_unseen(prover: Prover) -> str:
    """Return what the hooks in use do not see: ``udp4 and udp6 do not see raw sockets and packet sockets``."""
    paths: dict[str, list[str]] = {}
    for path in prover.served_paths:
        paths.setdefault(prover.paths[path].unseen, []).append(path)
    return "; ".join(
        f"{_enumerated(group)} {'do' if len(group) > 1 else 'does'} not see {unseen}" for unseen, group in paths.items()
    )


def _enumerated(words: Sequence[str]) -> str:
    """Return words as a sentence has them: ``udp4, udp6 and parts4``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
