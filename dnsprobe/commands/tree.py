"""``dnsprobe tree``: show the counts of a running dnsprobe as a tree."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TextIO
from urllib.parse import urlsplit

from dnsprobe.commands.signals import interrupt_on_sigterm, wait_for_resize
from dnsprobe.errors import EXIT_GOOD, EXIT_USAGE, UserError
from dnsprobe.terminal import Look, look_of
from dnsprobe.text import shown
from dnsprobe.treeview.aggregate import Choice, TreeCounts, aggregate
from dnsprobe.treeview.client import NotAnswering, Scrape, Target, fetch
from dnsprobe.treeview.nodes import Path, rates, totals_by_path
from dnsprobe.treeview.render import folded_stacks, json_object, tree_lines, wrap
from dnsprobe.treeview.results import Results, by_path, growth

#: Control sequences of xterm, which other terminals have too: to the alternate screen without a cursor, and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

#: The most names that a message lists.
_NAMES = 10


@dataclass(frozen=True, slots=True)
class _Reading:
    """The counters of the daemon at one moment (``time.monotonic``)."""

    scrape: Scrape
    counts: TreeCounts
    moment: float
    queries: dict[Path, int]
    encrypted: dict[Path, int]
    results: dict[Path, Results]


def show_tree(target: Target, choice: Choice, *, form: str, every: float | None) -> int:
    """Print the tree in a form (``tree``, ``folded`` or ``json``). Return the exit status.

    With ``every``, print it again at this interval in seconds, until SIGINT or SIGTERM. Raises UserError if the daemon
    does not answer the first request, or refuses a later one; a later request without an answer is tried again.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed", "dnsprobe tree prints the tree there: do not close it (>&-)")
    output = sys.stdout
    # A name may contain characters that the locale cannot encode.
    if hasattr(output, "reconfigure"):
        output.reconfigure(errors="backslashreplace")
    view = _View(target, choice, form, output)
    reading = view.read()
    if every is None:
        output.write("".join(f"{line}\n" for line in view.lines(reading, look_of(output))))
        return EXIT_GOOD
    if form == "folded":
        raise UserError("--folded prints one moment only", "leave out --watch", EXIT_USAGE)
    with contextlib.suppress(KeyboardInterrupt), interrupt_on_sigterm(), wait_for_resize() as wait:
        _show_regularly(view, reading, every, wait)
    return EXIT_GOOD


@dataclass(frozen=True, slots=True)
class _View:
    """The daemon to read, the choice of its series, the form of the tree, and the stream to print it to."""

    target: Target
    choice: Choice
    form: str
    output: TextIO

    def read(self, before: _Reading | None = None) -> _Reading:
        """Fetch the counters; with an earlier reading also compute rates."""
        scrape = fetch(self.target)
        moment = time.monotonic()
        counts = aggregate(scrape, self.choice)
        # After a restart of the daemon, counters begin at zero.
        if before is not None and moment > before.moment and scrape.started == before.scrape.started:
            seconds = moment - before.moment
            counts.rates |= rates(counts.queries, before.queries, seconds)
            counts.rates |= rates(counts.encrypted, before.encrypted, seconds)
            if counts.results is not None:
                counts.recent = growth(counts.queries, counts.results, before.results)
        return _Reading(
            scrape,
            counts,
            moment,
            totals_by_path(counts.queries),
            totals_by_path(counts.encrypted),
            by_path(counts.queries, counts.results or {}),
        )

    def lines(self, reading: _Reading, look: Look, height: int | None = None, note: str = "") -> list[str]:
        """Return the lines to print, at most ``height``; ``note`` ends the title."""
        if self.form == "folded":
            return folded_stacks(reading.counts)
        if self.form == "json":
            return [self._json(reading)]
        title = f"dnsprobe {shown(reading.scrape.version)} at {urlsplit(self.target.url).netloc}{note}"
        lines = tree_lines(reading.counts, look, title, height)
        if not reading.counts.queries.total:
            lines += self._possible_choices(reading.counts, look)
        return lines if height is None else lines[:height]

    def _json(self, reading: _Reading) -> str:
        facts = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "url": self.target.url,
            "version": shown(reading.scrape.version),
            "domains": list(self.choice.domains),
            "units": list(self.choice.units),
            "by": self.choice.by,
        }
        return json.dumps({**facts, **json_object(reading.counts)})

    def _possible_choices(self, counts: TreeCounts, look: Look) -> Iterator[str]:
        """Yield what --domain and --unit could select, for a choice that selects nothing."""
        for option, chosen, known in (
            ("--domain", self.choice.domains, counts.known_domains),
            ("--unit", self.choice.units, counts.known_units),
        ):
            if chosen:
                names = ", ".join(known[:_NAMES]) + (f", and {len(known) - _NAMES} more" if len(known) > _NAMES else "")
                known_names = names or "nothing has been counted yet"
                yield from wrap(look.plain(f"values of {option} on this daemon: {known_names}"), look)

    def print_after_others(self, reading: _Reading, note: str) -> None:
        """Print the lines below the earlier output, as in a pipe."""
        lines = self.lines(reading, look_of(self.output), note=note)
        self.output.write("".join(f"{line}\n" for line in lines) + ("\n" if self.form == "tree" else ""))
        self.output.flush()

    def redraw(self, reading: _Reading, note: str) -> None:
        """Draw over the whole screen."""
        look = look_of(self.output)
        # The last column stays empty: some terminals begin a new line once it is filled.
        narrow = replace(look, width=max((look.width or 80) - 1, 1))
        lines = self.lines(reading, narrow, shutil.get_terminal_size().lines, note)
        self.output.write(_HOME + "\n".join(f"{line}{_END_OF_LINE}" for line in lines) + _END_OF_SCREEN)
        self.output.flush()


@contextlib.contextmanager
def _alternate_screen(output: TextIO, last: Callable[[], list[str]]) -> Iterator[None]:
    """Draw on the alternate screen, except while the program is stopped (Ctrl-Z). At the end print ``last()``."""

    def on_stop(_number: int, _frame: object) -> None:
        # Bypass the buffer, which may be in the middle of a write.
        os.write(output.fileno(), _LEAVE.encode())
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # The program continues here after SIGCONT. The signal ends the wait, which redraws the screen.
        signal.signal(signal.SIGTSTP, on_stop)
        os.write(output.fileno(), _ENTER.encode())

    output.write(_ENTER)
    output.flush()
    before = signal.signal(signal.SIGTSTP, on_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
        output.write(_LEAVE + "".join(f"{line}\n" for line in last()))
        output.flush()


def _show_regularly(view: _View, reading: _Reading, every: float, wait: Callable[[float], bool]) -> None:
    redraws = view.form == "tree" and look_of(view.output).moves
    show = view.redraw if redraws else view.print_after_others
    problem = ""

    def last() -> list[str]:
        return view.lines(reading, look_of(view.output))

    with _alternate_screen(view.output, last) if redraws else contextlib.nullcontext():
        while True:
            show(reading, f", every {every:g} s{problem}")
            due = time.monotonic() + every
            while wait(due - time.monotonic()):
                if redraws:
                    show(reading, f", every {every:g} s{problem}")
            try:
                reading = view.read(reading)
                problem = ""
            except NotAnswering as error:
                problem = f"; {error.message}, still trying"
                if not redraws:
                    print(f"dnsprobe: {error.message}, still trying", file=sys.stderr, flush=True)
