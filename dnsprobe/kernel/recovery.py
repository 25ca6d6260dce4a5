"""Another hook for each path that is not proved, while the hooks of all other paths go on to count.

A new hook is tried with maps of its own, in which only the canaries match. So it counts nothing before it is proved. It
then takes the place of the one that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from dnsprobe.errors import UserError
from dnsprobe.kernel.hooks import EGRESS, PARTS, RUNGS, Hook
from dnsprobe.kernel.loader_client import LoaderClient
from dnsprobe.kernel.maps import Maps
from dnsprobe.kernel.prover import HookChoice, Prover


class Trial(NamedTuple):
    """Maps in which only the canaries match, and the prover of hooks that use them."""

    maps: Maps
    prover: Prover


class Recovery:
    """Exchanges the hooks of paths that are not proved.

    ``make_trial`` returns a new trial; its argument is whether the hooks handle only datagrams in parts. ``maps`` are
    the descriptors of the maps of the hooks in use. ``leave_parts`` is called with whether the hooks at functions leave
    datagrams in parts to the one at egress.
    """

    def __init__(
        self,
        prover: Prover,
        choice: HookChoice,
        maps: dict[str, int],
        make_trial: Callable[[bool], Trial],
        leave_parts: Callable[[bool], None],
    ) -> None:
        self._prover, self._choice, self._maps = prover, choice, maps
        self._make_trial, self._leave_parts = make_trial, leave_parts
        self._trial: Trial | None = None
        self._interrupted = False

    def run(self, loader: LoaderClient, log: Callable[[str], None]) -> None:
        """Try all rungs for the paths that are not proved, and use those that are. ``log`` gets messages of the kernel.

        Raises UserError if the loader dies, or if canaries cannot be sent, and OSError if there is no room for maps.
        """
        if paths := [path for path in self.failed if path not in PARTS]:
            together = self._with_siblings(paths)
            trial, found = self._try(
                loader, lambda prover: prover.climb(loader, self._choice, log, paths=together), parts_only=False
            )
            self._adopt(loader, trial, found, paths)
        parts = [path for path in self.failed if path in PARTS]
        if not parts or self._prover.prove_parts_at_egress():
            return
        trial, found = self._try(loader, lambda prover: prover.climb_parts(loader, log), parts_only=True)
        self._adopt(loader, trial, found, parts)

    def interrupt(self) -> None:
        """Let :meth:`run`, in another thread, end soon. It exchanges nothing after this."""
        self._interrupted = True
        self._prover.interrupt()
        if self._trial is not None:
            self._trial.prover.interrupt()

    def _try(
        self, loader: LoaderClient, climb: Callable[[Prover], None], *, parts_only: bool
    ) -> tuple[Prover, tuple[Hook, ...]]:
        """Climb with the maps of a new trial. Return its prover, and the hooks that are proved. They are detached."""
        self._trial = trial = self._make_trial(parts_only)
        try:
            self._go_on()
            loader.use_maps(trial.maps.descriptors)
            climb(trial.prover)
            return trial.prover, trial.prover.hooks
        finally:
            self._trial = None
            trial.prover.close()
            trial.maps.close()

    def _go_on(self) -> None:
        if self._interrupted:
            raise UserError("the exchange of hooks was interrupted")

    @property
    def failed(self) -> list[str]:
        """The paths that need a hook: those that are not proved, unless only their canaries could not be sent."""
        unsent = {path for path in self._prover.unsent if self._prover.paths[path].rung}
        return [path for path in self._prover.unproved if path not in unsent]

    def _with_siblings(self, paths: Collection[str]) -> set[str]:
        """Return paths with those that have the same hook."""
        together = {sibling for hook in self._prover.hooks if set(hook.paths) & set(paths) for sibling in hook.paths}
        return together | set(paths)

    def _adopt(self, loader: LoaderClient, trial: Prover, found: Collection[Hook], paths: Collection[str]) -> None:
        """Use the hooks that a trial has found, and note what it tried for these paths."""
        for path in paths:
            self._prover.note_tried(path, trial.paths[path].tried)
        loader.use_maps(self._maps)
        for hook in found:
            old = [other for other in self._prover.hooks if set(other.paths) & set(hook.paths)]
            proved = {path for other in old for path in other.paths if self._prover.paths[path].verified}
            # A path that works is worth more than one that may work.
            if proved <= set(hook.paths):
                self._exchange(loader, hook, old, overlap=bool(proved))

    def _exchange(self, loader: LoaderClient, found: Hook, old: list[Hook], *, overlap: bool) -> None:
        """Attach a hook that a trial has found in place of others, and prove it again.

        ``overlap`` is whether some of the others work. Two hooks would count a datagram twice, so they are detached
        first. For TCP, the state of the connection shows what another hook of the same kind has read: there is no gap.
        """
        self._go_on()
        rung = RUNGS[found.rung, found.attach]
        is_for_tcp = all(path.startswith("tcp") for path in found.paths)
        reads_datagrams = rung is EGRESS and not is_for_tcp
        if reads_datagrams:
            serves_parts = bool(set(found.paths) & set(PARTS))
            if not serves_parts:  # it reads datagrams in parts itself
                old = [*old, *(hook for hook in self._prover.hooks if set(hook.paths) & set(PARTS))]
            self._leave_parts(serves_parts)
        # The hook at egress keeps its state with the socket, those that see writes keep it in a map.
        same_state = all((RUNGS[other.rung, other.attach] is EGRESS) == (rung is EGRESS) for other in old)
        overlap = overlap and is_for_tcp and same_state
        if not overlap:
            self._prover.detach(old)
        try:
            attached = loader.attach(rung, found.paths, found.attempt)
            if overlap and attached.hooks:
                self._prover.detach(old)
            for path, reason in attached.refused.items():
                self._prover.fail(path, f"{rung.place(rung.functions[path])}: {reason}")
            self._prover.prove(attached.hooks)
        finally:  # also if the loader dies: the hooks at functions are all that sees datagrams in parts then
            if reads_datagrams and not any(self._prover.paths[path].rung for path in PARTS):
                self._leave_parts(False)
