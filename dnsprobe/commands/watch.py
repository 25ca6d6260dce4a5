"""``dnsprobe watch``: queries with their process trees, as they are sent."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from dnsprobe.config.main import Config
from dnsprobe.errors import EXIT_GOOD, UserError
from dnsprobe.kernel.abi import Statistic
from dnsprobe.kernel.losses import describe_losses
from dnsprobe.model import Identity, Query
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.series import total_queries
from dnsprobe.pipeline.session import Session
from dnsprobe.sinks.console import json_line, tree
from dnsprobe.sinks.wording import wall_offset_ns
from dnsprobe.terminal import look_of
from dnsprobe.text import number, shown

_TICK_SECONDS = 1.0


def watch(config: Config, domains: Sequence[str], *, as_json: bool, check_privileges: Callable[[], None]) -> int:
    """Print queries until SIGINT or SIGTERM, then a summary on standard error; the exit status.

    ``domains`` are patterns; without any, those of the configuration are watched, and without those all names.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed", "dnsprobe watch prints there: leave out >&-")
    rules = RuleSet.build([(text, text, 6) for text in domains] or config.domains)
    check_privileges()
    session = Session(config, rules)
    try:
        session.start()
        render = _json_renderer() if as_json else _tree_renderer(sys.stdout)
        _say(_introduction(session, rules))
        with _stop_signals() as stop, contextlib.suppress(BrokenPipeError):
            _follow(session, stop, render, sys.stdout)
            session.detach()
            for query, identity in session.remaining_queries():
                sys.stdout.write(render(query, identity) + "\n")
        session.detach()
        _say(_summary(session))
    finally:
        session.close()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        return EXIT_GOOD
    # The reader is gone (head(1), a closed pager): Python must not complain of it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_GOOD


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stop_signals() -> Iterator[int]:
    """Give a descriptor that becomes readable when the process is told to end."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def heed(number: int, _frame: object) -> None:
        # While nobody reads our output we are stuck in write(2), which Python resumes: a second signal ends us.
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, heed) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(writer)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _follow(session: Session, stop: int, render: Callable[[Query, Identity], str], output: TextIO) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(stop, selectors.EVENT_READ)
        selector.register(session.probe.fileno(), selectors.EVENT_READ)
        tended = time.monotonic()
        while True:
            ready = {key.fd for key, _ in selector.select(_TICK_SECONDS)}
            for query, identity in session.queries():
                output.write(render(query, identity) + "\n")
            output.flush()
            if stop in ready:
                return
            if time.monotonic() - tended > _TICK_SECONDS:
                session.sweep_if_due()
                tended = time.monotonic()


def _json_renderer() -> Callable[[Query, Identity], str]:
    offset = wall_offset_ns()
    return lambda query, identity: json_line(query, identity, offset)


def _tree_renderer(output: TextIO) -> Callable[[Query, Identity], str]:
    offset = wall_offset_ns()

    def render(query: Query, identity: Identity) -> str:
        # Ask each time: the terminal may have been resized.
        return tree(query, identity, offset, look_of(output)) + "\n"

    return render


def _introduction(session: Session, rules: RuleSet) -> str:
    names = ", ".join(shown(rule.name) for rule in rules.rules[:5]) + (" ..." if len(rules.rules) > 5 else "")
    hooks = ", ".join(f"{path} at {session.probe.paths[path].symbol}" for path in session.probe.served_paths)
    watched = "all names" if [rule.pattern for rule in rules.rules] == ["."] else names
    return f"watching {watched} ({hooks}); Ctrl-C ends\n"


def _summary(session: Session) -> str:
    counts = session.collect()
    statistics = session.probe.statistics()
    trees = {series.tree for series in counts if not series.encrypted}
    return (
        f"{number(total_queries(counts), 'query', 'queries')} from {number(len(trees), 'process tree')}, "
        f"{statistics[Statistic.EVENTS]} shown, {describe_losses(session.losses())}"
    )
