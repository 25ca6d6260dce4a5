"""The proof that hooks work: climb the ladders, send canaries, keep the hooks that report them correctly.

Later rounds of canaries prove again and again that the hooks still work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dnsprobe.errors import UserError
from dnsprobe.hook_names import Attach
from dnsprobe.kernel.canary import Canaries, CanaryPort
from dnsprobe.kernel.hooks import EGRESS, PARTS, PATHS, RUNGS, TCP_LADDER, UDP_LADDER, Hook, Rung, whole_path
from dnsprobe.kernel.loader_client import LoaderClient
from dnsprobe.kernel.maps import EventRing


@dataclass(slots=True)
class PathState:
    """The state of a path: the rung and symbol that see it, empty if none does; whether the last canaries proved it.

    ``rung`` and ``attach`` are the key of the rung in RUNGS. ``tried`` are the hooks that were refused or not proved,
    each with the reason.
    """

    rung: str = ""
    attach: str = ""
    symbol: str = ""
    verified: bool = False
    tried: list[str] = field(default_factory=list)

    def serve(self, rung: str, attach: str, symbol: str) -> None:
        """Note which hook serves the path: its canaries have proved that."""
        self.rung, self.attach, self.symbol, self.verified = rung, attach, symbol, True

    @property
    def place(self) -> str:
        """How messages call the hook: ``kprobe udp_send_skb.isra.51``. Empty if there is none."""
        return RUNGS[self.rung, self.attach].place(self.symbol) if self.rung else ""

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
        self.open_paths = [path for path in paths if path in ladder[0].functions]
        self.attempt = 0

    @property
    def rung(self) -> Rung | None:
        """The rung to try next, None if no rung or no path is left."""
        return self._rungs[0] if self._rungs and self.open_paths else None

    def next_rung(self) -> None:
        """Give up the rung."""
        del self._rungs[0]
        self.attempt = 0


class Prover:
    """Attaches and proves the hooks of all paths that this host has.

    ``port`` receives the canaries, ``suffix`` is the end of their names in wire format, and ``ring`` has the events
    that hooks report of them. :meth:`climb` is called once; rounds follow.
    """

    def __init__(self, port: CanaryPort, suffix: bytes, ring: EventRing) -> None:
        self._port, self._suffix, self._ring = port, suffix, ring
        self.paths: dict[str, PathState] = {path: PathState() for path in (*PATHS, *PARTS)}
        self.hooks: list[Hook] = []
        self._missed_before_close = 0

    @property
    def active_paths(self) -> tuple[str, ...]:
        """The paths that are watched and that this host has: without IPv6 there is no udp6."""
        return tuple(path for path in self.paths if whole_path(path) in self._port.paths)

    @property
    def served_paths(self) -> list[str]:
        """The active paths that have a hook."""
        return [path for path in self.active_paths if self.paths[path].rung]

    @property
    def unserved(self) -> dict[str, str]:
        """The active paths that have no hook, with the hooks that were tried. Some may be of PARTS."""
        return {
            path: "; ".join(self.paths[path].tried) or "there was no hook to try"
            for path in self.active_paths
            if not self.paths[path].rung
        }

    @property
    def all_proved(self) -> bool:
        """True if every path that has a hook is proved, except for those of PARTS."""
        return all(self.paths[path].verified for path in self.served_paths if path not in PARTS)

    # The first proof

    def climb(
        self,
        loader: LoaderClient,
        choice: HookChoice,
        log: Callable[[str], None],
        trying: Callable[[str], None],
    ) -> None:
        """Attach, for each path, the first rung that its canaries prove. UserError if a UDP path has none.

        ``log`` gets the messages of compiler and verifier, ``trying`` the title of a rung before each attempt.
        """
        paths = [path for path in self.active_paths if path not in PARTS]
        udp = _Climb(UDP_LADDER, choice, choice.udp, paths)
        tcp = _Climb(TCP_LADDER, choice, choice.tcp, paths)
        # The sender of the canaries starts while the loader compiles.
        canaries = self._canaries(paths)
        try:
            while hooks := [each for climb in (udp, tcp) for each in self._attach_next(loader, climb, log, trying)]:
                self._prove(canaries, hooks)
                for climb in (udp, tcp):
                    climb.open_paths = [path for path in climb.open_paths if not self.paths[path].verified]
                if not udp.open_paths and not tcp.open_paths:
                    break
                canaries = self._canaries(paths)
        finally:
            canaries.dismiss()
        if udp.open_paths:
            unserved = self.unserved
            reasons = " | ".join(f"{path}: {unserved[path]}" for path in udp.open_paths)
            raise UserError(f"no hook could be verified. {reasons}", "dnsprobe doctor shows what this kernel offers")

    def serve_parts(
        self,
        loader: LoaderClient,
        log: Callable[[str], None],
        trying: Callable[[str], None],
        prepare: Callable[[bool], None],
    ) -> None:
        """Prove the paths of PARTS, after :meth:`climb`. Where functions serve UDP, attach the hook at egress for them.

        ``prepare`` is called with True before that hook is proved: from then on, it handles datagrams in parts, and the
        hooks at functions leave them to it. If it is not proved, ``prepare`` is called with False. :meth:`climb`
        explains ``log`` and ``trying``.
        """
        paths = [path for path in PARTS if path in self.active_paths]
        if not paths:
            return
        at_egress = [path for path in paths if self.paths[whole_path(path)].attach == EGRESS.attach]
        if at_egress:
            for path in set(paths) - set(at_egress):
                self.paths[path].tried.append(f"{EGRESS.place('egress')}: it serves only {whole_path(at_egress[0])}")
            self._prove_at_egress(at_egress)
            return
        climb = _Climb((EGRESS,), HookChoice(), "auto", paths)
        canaries = self._canaries(paths)
        try:
            while hooks := self._attach_next(loader, climb, log, trying):
                prepare(True)
                self._prove(canaries, hooks)
                if self.paths[paths[0]].rung:
                    break
                prepare(False)
                canaries = self._canaries(paths)
        finally:
            canaries.dismiss()

    def _prove_at_egress(self, paths: Sequence[str]) -> None:
        """Prove paths of PARTS whose other datagrams the hook at egress serves as well."""
        canaries = self._canaries(paths)
        try:
            canaries.release()
            canaries.wait()
            for path, problem in self._verdicts(canaries, paths).items():
                state, other = self.paths[path], self.paths[whole_path(path)]
                if problem:
                    state.tried.append(f"{other.place}: {problem}")
                else:
                    state.serve(other.rung, other.attach, other.symbol)
        finally:
            canaries.dismiss()

    def _canaries(self, paths: Sequence[str]) -> Canaries:
        return Canaries(paths, self._port.port, self._suffix)

    def _attach_next(
        self, loader: LoaderClient, climb: _Climb, log: Callable[[str], None], trying: Callable[[str], None]
    ) -> list[Hook]:
        """Attach in the next way that the kernel accepts; no hook if there is none left."""
        while rung := climb.rung:
            trying(rung.title)
            attached = loader.attach(rung, climb.open_paths, climb.attempt)
            if attached.messages:
                log(attached.messages)
            if climb.attempt == 0:
                self._note_refusals(rung, attached.refused, attached.messages)
            if attached.hooks:
                climb.attempt += 1
                return attached.hooks
            climb.next_rung()
        return []

    def _note_refusals(self, rung: Rung, refused: Mapping[str, str], messages: str) -> None:
        # The verifier's last line is about its work; the line before has the reason.
        lines = [line for line in messages.splitlines() if line and not line.startswith("processed ")]
        detail = f" ({lines[-1]})" if lines else ""
        for path, reason in refused.items():
            self.paths[path].tried.append(f"{rung.place(rung.functions[path])}: {reason}{detail}")

    def _prove(self, canaries: Canaries, hooks: Sequence[Hook]) -> None:
        """Send canaries through new hooks. Keep those that report them correctly, close the others."""
        paths = [path for hook in hooks for path in hook.paths]
        canaries.release(paths)
        canaries.wait()
        verdicts = self._verdicts(canaries, paths)
        for hook in hooks:
            place = RUNGS[hook.rung, hook.attach].place(hook.symbol)
            if not any(verdicts[path] for path in hook.paths):
                for path in hook.paths:
                    state = self.paths[path]
                    state.serve(hook.rung, hook.attach, hook.symbol)
                self.hooks.append(hook)
                continue
            for path in hook.paths:
                reason = verdicts[path] or "shared with a path that it does not serve"
                self.paths[path].tried.append(f"{place}: {reason}")
            hook.close()

    def _verdicts(self, canaries: Canaries, paths: Sequence[str]) -> dict[str, str]:
        """Return the problem of each path, an empty text if its canaries prove it."""
        events = self._ring.read()
        self._port.close_connections()
        verdicts = canaries.judge(events)
        return {path: verdicts[path] for path in paths}

    # Later rounds

    def start_round(self) -> Canaries:
        """Send canaries through the hooks in use; OSError if their sender cannot be started.

        The caller waits for the canaries, and passes them to :meth:`finish_round`.
        """
        canaries = self._canaries(self.served_paths)
        canaries.release()
        return canaries

    def finish_round(self, canaries: Canaries) -> dict[str, str]:
        """Judge a round. A path whose canaries are missing or wrong is not verified any more. Return its problem."""
        verdicts = self._verdicts(canaries, self.served_paths)
        for path, problem in verdicts.items():
            self.paths[path].verified = not problem
        return {path: problem for path, problem in verdicts.items() if problem}

    def fail_round(self, problem: str) -> dict[str, str]:
        """Take all paths as not verified, because a round could not be started. Return the problem of each path."""
        for path in self.served_paths:
            self.paths[path].verified = False
        return dict.fromkeys(self.served_paths, problem)

    def missed_runs(self) -> int:
        """Return how many packets and writes were missed, because they interrupted a BPF program on that CPU."""
        return self._missed_before_close + sum(hook.missed_runs() for hook in self.hooks)

    def close(self) -> None:
        """Detach all hooks and release the port of the canaries. The numbers stay readable."""
        with contextlib.suppress(OSError):
            self._missed_before_close = self.missed_runs()
        for hook in self.hooks:
            hook.close()
        self.hooks = []
        self._port.close()
