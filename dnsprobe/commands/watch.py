"""``dnsprobe watch``: print queries with their process trees as they are sent."""

from __future__ import annotations

import contextlib
import os
import selectors
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from dnsprobe.commands.hooks import describe_hooks
from dnsprobe.commands.rate_alerts import NOBODY, RateAlerts
from dnsprobe.commands.signals import readable_on_stop
from dnsprobe.config.main import Config
from dnsprobe.errors import EXIT_GOOD, UserError
from dnsprobe.kernel.losses import Source, describe_losses
from dnsprobe.model import Identity, Query, TreeAlert
from dnsprobe.names.pattern import parse_pattern
from dnsprobe.names.ruleset import RuleTable, Spec
from dnsprobe.pipeline.series import total_queries
from dnsprobe.pipeline.session import Session
from dnsprobe.sinks.console import json_line, tree, tree_alert
from dnsprobe.sinks.queue import Entry
from dnsprobe.sinks.wording import wall_offset_ns
from dnsprobe.terminal import look_of
from dnsprobe.text import number, shown

_TICK_SECONDS = 1.0


def watch(config: Config, domains: Sequence[str], *, as_json: bool, check_limits: Callable[[], None]) -> int:
    """Print queries until SIGINT or SIGTERM, then a summary on standard error. Return the exit status.

    ``domains`` are patterns; without any, those of the configuration are watched, and without those all names.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed", "dnsprobe watch prints queries there: do not close it (>&-)")
    specs: Sequence[Spec] = [(text, text, 6) for text in domains] or config.domains
    # A wrong pattern is reported before missing privileges.
    for _name, pattern, *_ in specs:
        parse_pattern(pattern)
    check_limits()
    session = Session(config, specs)
    try:
        session.start()
        render = _Counting(_json_renderer() if as_json else _tree_renderer(sys.stdout))
        _print_to_stderr(_introduction(session))
        with readable_on_stop() as stop, contextlib.suppress(BrokenPipeError):
            _follow(session, stop, render, sys.stdout)
            session.detach()
            for query, identity in _shown(session.rules, session.remaining_queries()):
                sys.stdout.write(render(query, identity) + "\n")
        session.detach()
        _print_to_stderr(_summary(session, render.queries))
    finally:
        session.close()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        return EXIT_GOOD
    # The reader is gone (head(1), a closed pager). Without this, Python would report it again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_GOOD


def _print_to_stderr(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def _follow(session: Session, stop: int, render: Callable[[Entry, Identity], str], output: TextIO) -> None:
    rates = RateAlerts(session)
    with selectors.DefaultSelector() as selector:
        selector.register(stop, selectors.EVENT_READ)
        selector.register(session.probe.maps.events.fileno(), selectors.EVENT_READ)
        selector.register(session.matcher.fileno(), selectors.EVENT_READ)
        last_sweep = time.monotonic()
        while True:
            left = session.seconds_left
            ready = {key.fd for key, _ in selector.select(_TICK_SECONDS if left is None else min(left, _TICK_SECONDS))}
            for query, identity in _shown(session.rules, session.queries()):
                output.write(render(query, identity) + "\n")
            output.flush()
            if stop in ready:
                return
            if time.monotonic() - last_sweep > _TICK_SECONDS:
                session.sweep_if_due()
                last_sweep = time.monotonic()
                output.writelines(f"{render(found, NOBODY)}\n" for found in rates.look_now())
                output.flush()


class _Counting:
    """Renders entries as ``render`` does, and counts queries; a later result is not counted again."""

    def __init__(self, render: Callable[[Entry, Identity], str]) -> None:
        self._render = render
        self.queries = 0

    def __call__(self, query: Entry, identity: Identity) -> str:
        self.queries += isinstance(query, Query) and not query.is_late
        return self._render(query, identity)


def _json_renderer() -> Callable[[Entry, Identity], str]:
    offset = wall_offset_ns()
    return lambda query, identity: json_line(query, identity, offset)


def _tree_renderer(output: TextIO) -> Callable[[Entry, Identity], str]:
    offset = wall_offset_ns()

    def render(query: Entry, identity: Identity) -> str:
        # Look at the terminal each time: it may have been resized.
        look = look_of(output)
        if isinstance(query, TreeAlert):
            return tree_alert(query, offset, look) + "\n"
        return tree(query, identity, offset, look) + "\n"

    return render


def _is_everything(rules: RuleTable) -> bool:
    return [rule.pattern for rule in rules.rules] == ["."]


def _shown(rules: RuleTable, queries: Iterable[tuple[Query, Identity]]) -> Iterator[tuple[Query, Identity]]:
    """Yield what is to be printed. Messages that could not be read belong to no name, so they are only shown if all
    names are watched.
    """
    everything = _is_everything(rules)
    return ((query, identity) for query, identity in queries if everything or not query.unread)


def _introduction(session: Session) -> str:
    rules = session.rules
    names = ", ".join(shown(rule.name) for rule in rules.rules[:5]) + (" ..." if len(rules.rules) > 5 else "")
    watched = "all names" if _is_everything(rules) else names
    return f"watching {watched} ({describe_hooks(session.probe.prover)}); Ctrl-C ends\n"


def _summary(session: Session, number_shown: int) -> str:
    counts = session.collect()
    trees = {series.tree for series in counts if series.of_queries}
    # Every query was shown, whether or not it has a series of its own.
    losses = {loss: times for loss, times in session.losses().items() if loss.source is not Source.SERIES_FOLDED}
    queries = total_queries(counts) + session.totals.expired.total()
    return (
        f"{number(queries, 'query', 'queries')} from {number(len(trees), 'process tree')}, "
        f"{number_shown} shown, {describe_losses(losses)}"
    )
