"""``dnsprobe tree``: the counts of a running dnsprobe as a tree."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TextIO
from urllib.parse import urlsplit

from dnsprobe.errors import EXIT_GOOD, EXIT_USAGE, UserError
from dnsprobe.terminal import Look, look_of
from dnsprobe.text import shown
from dnsprobe.treeview.aggregate import Choice, TreeCounts, aggregate
from dnsprobe.treeview.client import NotAnswering, Scrape, Target, fetch
from dnsprobe.treeview.nodes import Path, rates, totals_by_path
from dnsprobe.treeview.render import folded_stacks, json_object, tree_lines, wrap

#: Terminal sequences that every terminal in use has (xterm's ctlseqs): another screen and back, without a cursor.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

#: How many names a message has room for.
_NAMES = 10


@dataclass(frozen=True, slots=True)
class _Reading:
    """The counters of the daemon at one moment (``time.monotonic``)."""

    scrape: Scrape
    counts: TreeCounts
    moment: float
    queries: dict[Path, int]
    encrypted: dict[Path, int]


def look_at(target: Target, choice: Choice, *, form: str, every: float | None) -> int:
    """Print the tree in a form (``tree``, ``folded`` or ``json``), and again ``every`` so many seconds; exit status.

    Until interrupted, then. Raises UserError where the daemon cannot be asked; of later looks, only where that does
    not get better by itself.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed", "dnsprobe tree prints there: leave out >&-")
    output = sys.stdout
    # Names that this locale has no characters for.
    if hasattr(output, "reconfigure"):
        output.reconfigure(errors="backslashreplace")
    reading = _read(target, choice, None)
    if every is None:
        look = look_of(output)
        output.write("".join(f"{line}\n" for line in _lines(target, choice, reading, form, look)))
        return EXIT_GOOD
    if form == "folded":
        raise UserError("--folded is of one moment", "leave out --watch", EXIT_USAGE)
    with contextlib.suppress(KeyboardInterrupt), _ends_at_sigterm(), _woken_by_resize() as wait:
        _watch(target, choice, reading, form, every, output, wait)
    return EXIT_GOOD


def _read(target: Target, choice: Choice, before: _Reading | None) -> _Reading:
    scrape = fetch(target)
    moment = time.monotonic()
    counts = aggregate(scrape, choice)
    # The counters of one that was started anew begin at zero.
    if before is not None and moment > before.moment and scrape.started == before.scrape.started:
        seconds = moment - before.moment
        counts.rates |= rates(counts.queries, before.queries, seconds)
        counts.rates |= rates(counts.encrypted, before.encrypted, seconds)
    return _Reading(scrape, counts, moment, totals_by_path(counts.queries), totals_by_path(counts.encrypted))


def _lines(
    target: Target, choice: Choice, reading: _Reading, form: str, look: Look, height: int | None = None, said: str = ""
) -> list[str]:
    if form == "folded":
        return folded_stacks(reading.counts)
    where = urlsplit(target.url).netloc
    version = shown(reading.scrape.version)
    if form == "json":
        facts = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "url": target.url,
            "version": version,
            "domains": list(choice.domains),
            "units": list(choice.units),
            "by": choice.by,
            **json_object(reading.counts),
        }
        return [json.dumps(facts)]
    title = f"dnsprobe {version} at {where}{said}"
    lines = tree_lines(reading.counts, look, title, height)
    if not reading.counts.queries.total:
        lines += _nothing(choice, reading.counts, look)
    return lines if height is None else lines[:height]


def _nothing(choice: Choice, counts: TreeCounts, look: Look) -> Iterator[str]:
    """Say what could have been chosen, where nothing is of what was."""
    for option, chosen, known in (
        ("--domain", choice.domains, counts.known_domains),
        ("--unit", choice.units, counts.known_units),
    ):
        if chosen:
            names = ", ".join(known[:_NAMES]) + (f", and {len(known) - _NAMES} more" if len(known) > _NAMES else "")
            yield from wrap(look.plain(f"what {option} can be here: {names or 'nothing has been counted yet'}"), look)


@contextlib.contextmanager
def _ends_at_sigterm() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does, so that the terminal is left as it was."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _woken_by_resize() -> Iterator[Callable[[float], bool]]:
    """Give a function that waits so many seconds, or until the terminal has another size: True then."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # A signal that is ignored wakes nobody.
    before = signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait(seconds: float) -> bool:
        if not select.select([reader], [], [], max(seconds, 0.0))[0]:
            return False
        os.read(reader, 4096)
        return True

    try:
        yield wait
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGWINCH, before)
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def _other_screen(output: TextIO, last: Callable[[], list[str]]) -> Iterator[None]:
    """Draw on a screen of its own, left for as long as the program is stopped (Ctrl-Z); ``last`` stays when it ends."""

    def stop(_number: int, _frame: object) -> None:
        # Not through the buffer, which may be in the middle of a write.
        os.write(output.fileno(), _LEAVE.encode())
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # It goes on here; that a signal came has it drawn anew.
        signal.signal(signal.SIGTSTP, stop)
        os.write(output.fileno(), _ENTER.encode())

    output.write(_ENTER)
    output.flush()
    before = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
        output.write(_LEAVE + "".join(f"{line}\n" for line in last()))
        output.flush()


def _watch(
    target: Target,
    choice: Choice,
    reading: _Reading,
    form: str,
    every: float,
    output: TextIO,
    wait: Callable[[float], bool],
) -> None:
    redraws = form == "tree" and look_of(output).moves
    said = f", every {every:g} s"
    trouble = ""

    def last() -> list[str]:
        return _lines(target, choice, reading, form, look_of(output))

    with _other_screen(output, last) if redraws else contextlib.nullcontext():
        while True:
            _show(target, choice, reading, form, output, said + trouble, redraws=redraws)
            due = time.monotonic() + every
            while wait(due - time.monotonic()):
                if redraws:
                    _show(target, choice, reading, form, output, said + trouble, redraws=True)
            try:
                reading = _read(target, choice, reading)
                trouble = ""
            except NotAnswering as error:
                trouble = f"; {error.message}, still trying"
                if not redraws:
                    print(f"dnsprobe: {error.message}, still trying", file=sys.stderr, flush=True)


def _show(
    target: Target, choice: Choice, reading: _Reading, form: str, output: TextIO, said: str, *, redraws: bool
) -> None:
    look = look_of(output)
    if not redraws:
        lines = _lines(target, choice, reading, form, look, said=said)
        output.write("".join(f"{line}\n" for line in lines) + ("\n" if form == "tree" else ""))
    else:
        # The last column stays empty: some terminals go to the next line when it is filled.
        narrow = replace(look, width=max((look.width or 80) - 1, 1))
        lines = _lines(target, choice, reading, form, narrow, shutil.get_terminal_size().lines, said)
        output.write(_HOME + "\n".join(f"{line}{_END_OF_LINE}" for line in lines) + _END_OF_SCREEN)
    output.flush()
