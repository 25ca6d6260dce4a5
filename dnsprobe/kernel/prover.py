"""The proof that hooks work: climb the ladders, send canaries, keep the hooks that report them correctly.

Later rounds of canaries prove again and again that the hooks still work. :mod:`dnsprobe.kernel.recovery` exchanges
those that do not.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from dnsprobe.errors import UserError
from dnsprobe.hook_names import Attach
from dnsprobe.kernel.canary import Canaries, CanaryPort
from dnsprobe.kernel.canary_rounds import CanaryRounds
from dnsprobe.kernel.hooks import EGRESS, PARTS, PATHS, RUNGS, TCP_LADDER, UDP_LADDER, Hook, Rung, whole_path
from dnsprobe.kernel.loader_client import LoaderClient
from dnsprobe.kernel.maps import CanaryRing


@dataclass(frozen=True, slots=True)
class PathState:
    """The state of a path: the rung and symbol that see it, empty if none does; whether the last canaries proved it.

    ``rung`` and ``attach`` are the key of the rung in RUNGS. ``tried`` are the hooks that were refused or not proved,
    each with the reason. ``problem`` is why the hook that serves the path is not proved now.
    """

    rung: str = ""
    attach: str = ""
    symbol: str = ""
    verified: bool = False
    tried: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def reason(self) -> str:
        """Why the path is not proved; empty if it is."""
        if self.verified:
            return ""
        return self.problem if self.rung else "; ".join(self.tried) or "there was no hook to try"

    @property
    def place(self) -> str:
        """How messages call the hook: ``kprobe udp_send_skb.isra.51``. Empty if there is none."""
        return f"{self.attach} {self.symbol}" if self.rung else ""

    @property
    def unseen(self) -> str:
        """What the hook does not see, empty if there is no hook."""
        return RUNGS[self.rung, self.attach].unseen if self.rung else ""


@dataclass(frozen=True, slots=True)
class HookChoice:
    """Which rungs may serve: ``udp`` and ``tcp`` are the name of a rung, or ``auto`` for all.

    ``fentry`` is whether functions may be attached to by fentry.
    """

    udp: str = "auto"
    tcp: str = "auto"
    fentry: bool = True


class _Climb:
    """The way up one ladder: the rung and the attempt that come next, for the paths that have no hook yet."""

    def __init__(self, ladder: Sequence[Rung], choice: HookChoice, hook: str, paths: Sequence[str]) -> None:
        self._rungs = [
            rung for rung in ladder if hook in {"auto", rung.name} and (choice.fentry or rung.attach != Attach.FENTRY)
        ]
        self.open_paths = [path for path in paths if all(path in rung.functions for rung in ladder)]
        self.attempt = 0

    @property
    def rung(self) -> Rung | None:
        """The rung to try next, None if no rung or no path is left."""
        return self._rungs[0] if self._rungs and self.open_paths else None

    def attach_next(
        self,
        loader: LoaderClient,
        log: Callable[[str], None],
        trying: Callable[[str], None],
        refuse: Callable[[str, str], None],
    ) -> list[Hook]:
        """Attach in the next way that the kernel accepts; no hook if there is none left.

        ``refuse`` is called with each path that the first way of a rung cannot serve, and with the reason.
        """
        while rung := self.rung:
            trying(rung.title)
            attached = loader.attach(rung, self.open_paths, self.attempt)
            if attached.messages:
                log(attached.messages)
            if self.attempt == 0:
                detail = last_reason(attached.messages)
                for path, reason in attached.refused.items():
                    refuse(path, f"{rung.place(rung.functions[path])}: {reason}{detail}")
            for hook in attached.hooks:
                hook.attempt = self.attempt
            if attached.hooks:
                self.attempt += 1
                return attached.hooks
            del self._rungs[0]
            self.attempt = 0
        return []


def last_reason(messages: str) -> str:
    """Return the reason in what the verifier has written, in parentheses, empty if there is none."""
    # The verifier's last line is about its work; the line before has the reason.
    lines = [line for line in messages.splitlines() if line and not line.startswith("processed ")]
    return f" ({lines[-1]})" if lines else ""


class Paths:
    """The states of all paths. ``watched`` are those without PARTS that the host has."""

    def __init__(self, watched: Collection[str]) -> None:
        self._watched = watched
        #: A state is never changed, but replaced, because other threads read it.
        self.paths: dict[str, PathState] = {path: PathState() for path in (*PATHS, *PARTS)}

    @property
    def active_paths(self) -> tuple[str, ...]:
        """The paths that are watched and that this host has: without IPv6 there is no udp6."""
        return tuple(path for path in self.paths if whole_path(path) in self._watched)

    @property
    def served_paths(self) -> list[str]:
        """The active paths that have a hook."""
        return [path for path in self.active_paths if self.paths[path].rung]

    @property
    def unserved(self) -> dict[str, str]:
        """The active paths that have no hook, with the hooks that were tried. Some may be of PARTS."""
        return {path: self.paths[path].reason for path in self.active_paths if not self.paths[path].rung}

    @property
    def unproved(self) -> dict[str, str]:
        """The active paths that are not proved, each with the reason: none if the probe sees all queries it should."""
        return {path: self.paths[path].reason for path in self.active_paths if not self.paths[path].verified}

    def serve(self, path: str, rung: str, attach: str, symbol: str) -> None:
        """Note which hook serves a path: its canaries have proved that."""
        self.paths[path] = PathState(rung, attach, symbol, True, self.paths[path].tried)

    def fail(self, path: str, tried: str) -> None:
        """Note a hook that was refused or not proved, with the reason."""
        if tried not in self.paths[path].tried:
            self.note_tried(path, [*self.paths[path].tried, tried])

    def note_tried(self, path: str, tried: Sequence[str]) -> None:
        """Note the hooks that were refused or not proved, each with the reason, in place of those known so far."""
        self.paths[path] = replace(self.paths[path], tried=list(tried))


class Prover(Paths):
    """Attaches and proves the hooks of all paths that this host has.

    ``port`` receives the canaries, ``suffix`` is the end of their names in wire format, and ``ring`` has the events
    that hooks report of them. Threads may read its state and call :meth:`missed_runs`, :meth:`interrupt` and
    :meth:`close` while another one proves hooks.
    """

    def __init__(self, port: CanaryPort, suffix: bytes, ring: CanaryRing) -> None:
        super().__init__(port.paths)
        self.rounds = CanaryRounds(port, suffix, ring)
        self.hooks: tuple[Hook, ...] = ()
        # Guards the hooks: their descriptors must not be closed while another thread reads through them.
        self._lock = threading.Lock()
        self._missed_by_closed = 0
        #: The paths whose last canaries could not be sent, which says nothing about their hooks.
        self.unsent: frozenset[str] = frozenset()

    # The proof

    def climb(
        self,
        loader: LoaderClient,
        choice: HookChoice,
        log: Callable[[str], None] = lambda _: None,
        trying: Callable[[str], None] = lambda _: None,
        paths: Collection[str] | None = None,
    ) -> None:
        """Attach, for each path, the first rung that its canaries prove: for those of ``paths``, or for all but PARTS.

        ``log`` gets the messages of compiler and verifier, ``trying`` the title of a rung before each attempt. Raises
        UserError if the loader dies, or if canaries cannot be sent at all.
        """
        wanted = [path for path in self.active_paths if path not in PARTS and (paths is None or path in paths)]
        self._climb(
            [_Climb(UDP_LADDER, choice, choice.udp, wanted), _Climb(TCP_LADDER, choice, choice.tcp, wanted)],
            wanted,
            loader,
            log,
            trying,
        )

    def climb_parts(
        self,
        loader: LoaderClient,
        log: Callable[[str], None] = lambda _: None,
        trying: Callable[[str], None] = lambda _: None,
        prepare: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Attach the hook at egress for the paths of PARTS alone, if their canaries prove it.

        ``prepare`` is called with True before that hook is proved: from then on, it handles datagrams in parts, and the
        hooks at functions leave them to it. If it is not proved, ``prepare`` is called with False. :meth:`climb`
        explains the rest.
        """
        paths = [path for path in PARTS if path in self.active_paths]
        self._climb([_Climb((EGRESS,), HookChoice(), "auto", paths)], paths, loader, log, trying, prepare)

    def serve_parts(
        self,
        loader: LoaderClient,
        log: Callable[[str], None],
        trying: Callable[[str], None],
        prepare: Callable[[bool], None],
    ) -> None:
        """Prove the paths of PARTS, after :meth:`climb`. Where functions serve UDP, attach the hook at egress for them.

        :meth:`climb_parts` explains the arguments.
        """
        if not self.prove_parts_at_egress() and any(path in self.active_paths for path in PARTS):
            self.climb_parts(loader, log, trying, prepare)

    def prove_parts_at_egress(self) -> bool:
        """Prove the paths of PARTS whose other datagrams the hook at egress serves. Return whether there are any."""
        paths = [path for path in PARTS if path in self.active_paths]
        at_egress = [path for path in paths if self.paths[whole_path(path)].attach == EGRESS.attach]
        if not at_egress:
            return False
        for path in set(paths) - set(at_egress):
            self.fail(path, f"{EGRESS.place('egress')}: it serves only {whole_path(at_egress[0])}")
        for path, problem in self._round(at_egress).items():
            other = self.paths[whole_path(path)]
            if problem:
                self.fail(path, f"{other.place}: {problem}")
            else:
                self.serve(path, other.rung, other.attach, other.symbol)
        return True

    def _climb(
        self,
        climbs: Sequence[_Climb],
        paths: Sequence[str],
        loader: LoaderClient,
        log: Callable[[str], None],
        trying: Callable[[str], None],
        prepare: Callable[[bool], None] = lambda _: None,
    ) -> None:
        # The sender of the canaries starts while the loader compiles.
        canaries = self.rounds.start(paths)
        try:
            while hooks := [hook for climb in climbs for hook in climb.attach_next(loader, log, trying, self.fail)]:
                prepare(True)
                self.prove(hooks, canaries)
                for climb in climbs:
                    # If canaries cannot be sent, no other hook will be proved either.
                    open_paths = [path for path in climb.open_paths if path not in self.unsent]
                    climb.open_paths = [path for path in open_paths if not self.paths[path].verified]
                if not any(climb.open_paths for climb in climbs):
                    return
                prepare(False)
                canaries = self.rounds.start(paths)
        except UserError:
            prepare(False)
            raise
        finally:
            canaries.dismiss()

    def prove(self, hooks: Sequence[Hook], canaries: Canaries | None = None) -> None:
        """Send canaries through new hooks. Keep those that report them correctly, close the others."""
        paths = [path for hook in hooks for path in hook.paths]
        try:
            verdicts = self._round(paths, canaries)
        except UserError:
            for hook in hooks:
                hook.close()
            raise
        for hook in hooks:
            place = RUNGS[hook.rung, hook.attach].place(hook.symbol)
            if not any(verdicts[path] for path in hook.paths) and self._keep(hook):
                for path in hook.paths:
                    self.serve(path, hook.rung, hook.attach, hook.symbol)
                continue
            for path in hook.paths:
                reason = verdicts[path] or "shared with a path that it does not serve"
                self.fail(path, f"{place}: {reason}")
            hook.close()

    def _round(self, paths: Sequence[str], canaries: Canaries | None = None) -> dict[str, str]:
        """Send canaries. Return the problem of each path, empty if it is proved."""
        verdicts = self.rounds.send(paths, canaries)
        self.unsent = verdicts.unsent
        return verdicts.problems

    # Later rounds

    def verify(self) -> dict[str, str]:
        """Send canaries through the hooks in use. A path is proved if they come back. Return the problems of others."""
        served = self.served_paths
        try:
            verdicts = self._round(served)
        except UserError as error:  # no process or descriptor is left at the moment
            if self.rounds.interrupted:
                return {}
            verdicts = dict.fromkeys(served, error.message)
            self.unsent = frozenset(served)
        for path, problem in verdicts.items():
            self.paths[path] = replace(self.paths[path], verified=not problem, problem=problem)
        return {path: problem for path, problem in verdicts.items() if problem}

    def interrupt(self) -> None:
        """Let a proof that another thread makes fail soon. There is none after this."""
        self.rounds.interrupt()

    # Hooks

    def _keep(self, hook: Hook) -> bool:
        with self._lock:
            if self.rounds.interrupted:
                return False
            self.hooks = (*self.hooks, hook)
        return True

    def detach(self, hooks: Collection[Hook]) -> None:
        """Detach some hooks. Their paths have none then."""
        for hook in hooks:
            parts = [path for path in PARTS if whole_path(path) in hook.paths and hook.attach == EGRESS.attach]
            for path in (*hook.paths, *parts):
                self.paths[path] = PathState(tried=self.paths[path].tried)
        self._close_hooks(hooks)

    def _close_hooks(self, hooks: Collection[Hook]) -> None:
        with self._lock:
            self.hooks = tuple(hook for hook in self.hooks if hook not in hooks)
            for hook in hooks:
                with contextlib.suppress(OSError):
                    self._missed_by_closed += hook.missed_runs()
                hook.close()

    def missed_runs(self) -> int:
        """Return how many packets and writes were missed, because they interrupted a BPF program on that CPU."""
        with self._lock:
            return self._missed_by_closed + sum(hook.missed_runs() for hook in self.hooks)

    def close(self) -> None:
        """Detach all hooks. The numbers stay readable."""
        self._close_hooks(self.hooks)


def require_udp(prover: Prover) -> None:
    """Raise UserError if a path of UDP has no hook."""
    unserved = {path: tried for path, tried in prover.unserved.items() if path in UDP_LADDER[0].functions}
    reasons = " | ".join(f"{path}: {unserved[path]}" for path in unserved if path not in PARTS)
    if reasons:
        raise UserError(f"no hook could be verified. {reasons}", "dnsprobe doctor shows what this kernel offers")
