"""The hooks that see what became of queries: answers, the ends of sockets, and errors that come back to them.

dnsprobe counts queries without them. While the answers of a version of IP are not seen, its queries are untracked: they
would end as unanswered although nobody looked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from dnsprobe.errors import UserError
from dnsprobe.hook_names import Attach
from dnsprobe.kernel.abi import ANSWERS_SEEN
from dnsprobe.kernel.canary import Canaries
from dnsprobe.kernel.canary_rounds import Verdicts
from dnsprobe.kernel.hooks import ANSWERS, EGRESS, ENDS, INGRESS, Hook
from dnsprobe.kernel.loader_client import LoaderClient
from dnsprobe.kernel.loader_protocol import ANSWERS as ANSWERS_HOOK
from dnsprobe.kernel.loader_protocol import SOCKET_ENDS, SOCKET_ERRORS
from dnsprobe.kernel.prover import PathState, Prover, last_reason

#: The hook that serves each path.
_HOOKS = {**dict.fromkeys(ANSWERS, ANSWERS_HOOK), ENDS[0]: SOCKET_ENDS, ENDS[1]: SOCKET_ERRORS}
#: How messages call a hook that the kernel refuses. The loader says where it has attached the others.
_PLACES = {
    ANSWERS_HOOK: INGRESS,
    SOCKET_ENDS: "cgroup sock_release",
    SOCKET_ERRORS: "tracepoint inet_sk_error_report",
}
#: What is missing without a hook. The paths of answers have it in common.
MISSING = {
    **dict.fromkeys(ANSWERS, "queries are counted, but not what became of them"),
    ENDS[0]: "queries of sockets that are closed end as timeout",
    ENDS[1]: "queries to closed ports end as timeout, or as closed",
}


#: Names for other layers, which import nothing from kernel.hooks.
__all__ = ["ANSWERS", "MISSING", "AnswerHooks"]


class AnswerHooks:
    """Attaches and proves the hooks of answers, with canaries of ``prover``, whose query hooks are proved.

    ``changed`` is called when other answers than before are seen. One thread at a time uses it; others may read its
    state.
    """

    def __init__(self, prover: Prover, changed: Callable[[], None]) -> None:
        self._prover, self._changed = prover, changed
        #: Those that are attached, by their names in loader_protocol.
        self.hooks: dict[str, Hook] = {}
        #: By path of ANSWERS and ENDS, those that this host has; none before :meth:`start`. Replaced, never changed.
        self.paths: Mapping[str, PathState] = {}
        #: The paths whose last canaries could not be sent or answered, which says nothing about their hooks.
        self._unsent: frozenset[str] = frozenset()
        #: The ANSWERS_SEEN of the versions of IP whose answers are seen.
        self.seen = 0

    @property
    def of_answers(self) -> dict[str, PathState]:
        """The states of the paths of answers, without those of other ends."""
        return {path: state for path, state in self.paths.items() if path in ANSWERS}

    @property
    def unproved(self) -> dict[str, str]:
        """The paths that are not proved, each with the reason.

        If the canary port is held in the network namespace of the host, no error comes back from it. This is no fault.
        """
        return {
            path: state.reason
            for path, state in self.paths.items()
            if not state.verified and not (path in ENDS and path in self._unsent)
        }

    @property
    def failed(self) -> list[str]:
        """The paths whose hook is to be attached again: it did not report what it should.

        A kernel without one of the hooks of ENDS does not get it later.
        """
        return [
            path
            for path, state in self.paths.items()
            if not state.verified
            and path not in self._unsent
            and self._is_query_seen(path)
            and (path in ANSWERS or state.rung)
        ]

    def start(self, loader: LoaderClient, log: Callable[[str], None]) -> None:
        """Attach and prove all hooks. UserError if the loader dies. ``log`` gets the messages of the verifier."""
        versions = {path[-1] for path in self._prover.served_paths}
        self.paths = {path: PathState() for path in (*ANSWERS, *ENDS) if path[-1] in versions}
        self._attach(loader, log, list(self.paths))

    def recover(self, loader: LoaderClient, log: Callable[[str], None]) -> None:
        """Attach the hooks again that do not report what they should, and prove them."""
        failed = self.failed
        if any(path in ANSWERS for path in failed):
            # Without the hook of answers, the others were not tried.
            failed += [path for path in ENDS if path in self.paths and not self.paths[path].rung]
        if failed:
            self._attach(loader, log, failed)

    def _attach(self, loader: LoaderClient, log: Callable[[str], None], wanted: Collection[str]) -> None:
        """Attach the hooks of paths, which serve these paths from then on if they are proved."""
        hooks = list(dict.fromkeys(_HOOKS[path] for path in wanted))
        paths = [path for path in self.paths if _HOOKS[path] in hooks]
        # The sender of the canaries starts while the loader works.
        canaries = self._start_canaries(paths)
        try:
            # Two programs would count an answer twice.
            for name in hooks:
                self._detach(name)
            # Meanwhile, their answers are not seen. So it stays if the loader dies.
            self._unsent -= {*paths}
            for path in paths:
                self._set(path, replace(self.paths[path], verified=False, problem="its hook is not attached"))
            self._update_seen()
            attached = loader.attach_answers(hooks)
            if attached.messages:
                log(attached.messages)
            self.hooks |= {hook.rung: hook for hook in attached.hooks}
            detail = last_reason(attached.messages)
            for path in paths:
                self._note_attached(path, attached.refused.get(_HOOKS[path], ""), detail)
            self._judge(paths, canaries)
        finally:
            if canaries is not None:
                canaries.dismiss()

    def _start_canaries(self, paths: list[str]) -> Canaries | None:
        with contextlib.suppress(UserError):  # send() tries again
            return self._prover.rounds.start(paths, self._streams)
        return None

    @property
    def _streams(self) -> list[str]:
        return [path for path, state in self._prover.paths.items() if state.verified]

    def _note_attached(self, path: str, refused: str, detail: str) -> None:
        if refused:
            place = _PLACES[_HOOKS[path]]
            self._set(path, PathState(tried=[f"{place}: {refused}{detail if 'refuses' in refused else ''}"]))
        else:
            hook = self.hooks[_HOOKS[path]]
            problem = f"udp{path[-1]} is not proved"  # unless the canaries say more
            rung = EGRESS.name if hook.attach == Attach.CGROUP else hook.symbol
            self._set(path, PathState(rung, hook.attach, hook.symbol, problem=problem))

    def verify(self) -> None:
        """Send canaries through the hooks in use. A path is proved if what became of them is reported."""
        self._judge(list(self.paths))

    def _judge(self, paths: Collection[str], canaries: Canaries | None = None) -> None:
        """Send canaries for those of the paths that have a hook.

        A query that the hook of queries does not report has no result either. That says nothing about these hooks.
        """
        paths = [path for path in paths if self.paths[path].rung and self._is_query_seen(path)]
        if paths:
            self._send(paths, canaries)
        self._update_seen()

    def _is_query_seen(self, path: str) -> bool:
        return self._prover.paths[f"udp{path[-1]}"].verified

    def _send(self, paths: list[str], canaries: Canaries | None) -> None:
        try:
            verdicts = self._prover.rounds.send(paths, canaries, self._streams)
        except UserError as error:  # no process or descriptor is left at the moment
            if self._prover.rounds.interrupted:
                return
            verdicts = Verdicts(dict.fromkeys(paths, error.message), frozenset(paths))
        self._unsent = (self._unsent - {*paths}) | verdicts.unsent
        for path, problem in verdicts.problems.items():
            self._set(path, replace(self.paths[path], verified=not problem, problem=problem))

    def _update_seen(self) -> None:
        """Canaries that could not be sent change nothing."""
        seen = self.seen
        for path in ANSWERS:
            state = self.paths.get(path)
            if state is None or (not state.verified and not (state.rung and path in self._unsent)):
                seen &= ~ANSWERS_SEEN[path[-1]]
            elif state.verified:
                seen |= ANSWERS_SEEN[path[-1]]
        if seen != self.seen:
            self.seen = seen
            self._changed()

    def _set(self, path: str, state: PathState) -> None:
        self.paths = {**self.paths, path: state}

    def _detach(self, name: str) -> None:
        if hook := self.hooks.pop(name, None):
            hook.close()

    def close(self) -> None:
        """Detach all hooks."""
        for name in list(self.hooks):
            self._detach(name)
