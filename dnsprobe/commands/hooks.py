"""How messages describe the hooks in use."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dnsprobe.kernel.answer_hooks import MISSING, AnswerHooks
from dnsprobe.kernel.prover import Prover


def describe_hooks(prover: Prover, answers: AnswerHooks | None = None) -> str:
    """Return each path with the place in the kernel that serves it: ``udp4 at kprobe ip_send_skb``."""
    served = [(path, prover.paths[path]) for path in prover.served_paths]
    if answers is not None:
        served += [(path, state) for path, state in answers.of_answers.items() if state.rung]
    return ", ".join(f"{path} at {state.place}{'' if state.verified else ' (not proved)'}" for path, state in served)


def describe_unproved(prover: Prover) -> str:
    """Return each path that is not proved with the reason, empty if all are: ``tcp4: the hook did not report …``."""
    return " | ".join(f"{path}: {reason}" for path, reason in prover.unproved.items())


def describe_missing(answers: AnswerHooks, paths: Collection[str] = (*MISSING,)) -> str:
    """Return what is missing because paths of answers are not proved, empty if all are. Queries are counted."""
    unproved = {path: reason for path, reason in answers.unproved.items() if path in paths}
    return " | ".join(f"{path}: {MISSING[path]}: {reason}" for path, reason in unproved.items())


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
