"""Runs the tests of tests/vm/guest in virtual machines: see ``scripts/vm --help``."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from pathlib import Path

import page
import ways_out_page
from archive import ArchiveError
from children import CommandError
from kernels import GUESTS, choose
from report import summary
from session import END_SIGNALS, Request, Session

_HERE = Path(__file__).resolve().parent
_TREE = _HERE.parent.parent
#: The pages that are made from the results, and the modules that make them.
_PAGES = {_TREE / "docs/kernels.md": page, _TREE / "docs/ways-out.md": ways_out_page}

#: Seconds for all boots of one guest.
_DEADLINE = 4200

#: Guests that run at a time. Most have one emulated processor, and sometimes wait for a watchdog or a reboot.
_JOBS = len(os.sched_getaffinity(0)) + 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/vm",
        description="Run the tests of tests/vm/guest in virtual machines, which the first run builds.",
    )
    parser.add_argument("guest", nargs="*", help="guests to run (default: all)")
    parser.add_argument("--list", action="store_true", help="list the guests and exit")
    parser.add_argument(
        "--jobs",
        type=int,
        default=_JOBS,
        metavar="N",
        help="guests at a time (default: %(default)s, one more than there are processors)",
    )
    parser.add_argument(
        "--beside",
        type=int,
        metavar="PID",
        help="run one guest at a time, and with low priority, until this process has ended",
    )
    parser.add_argument("--prepare", action="store_true", help="build the kernels and disks of the guests, and exit")
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="build kernels and disks again, from the packages that the archive has now",
    )
    parser.add_argument(
        "--deb",
        action="append",
        type=Path,
        metavar="FILE",
        default=[],
        help="package to test (default: scripts/build-deb builds one)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=_TREE / "build/vm",
        metavar="DIR",
        help="folder for the results, with a subfolder for each guest (default: build/vm)",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=_DEADLINE,
        metavar="SECONDS",
        help="time limit for each guest (default: %(default)s)",
    )
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="write docs/kernels.md and docs/ways-out.md from the results of all guests",
    )
    parser.add_argument(
        "--guest-folder",
        type=Path,
        default=_HERE / "guest",
        metavar="DIR",
        help="folder with main.sh and other tests (default: tests/vm/guest)",
    )
    return parser.parse_args(arguments)


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    parsed = _parse(arguments)
    if parsed.list:
        for guest in GUESTS:
            how = f", built from {guest.source}" if guest.source else ""
            print(f"{guest.name:<10} kernel of {guest.release}{how}, userland of {guest.userland}")
        return 0
    try:
        request = _request(parsed)
    except ValueError as error:
        print(f"scripts/vm: {error}", file=sys.stderr)
        return 2
    for number in END_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        session = Session(request)
        if parsed.prepare:
            session.prepare()
            return 0
        results = session.run()
    except (CommandError, ArchiveError) as error:
        print(f"scripts/vm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"scripts/vm: ended by {interrupt} before all guests had finished", file=sys.stderr)
        return 130
    print("\n" + summary(results))
    if any(result.trouble for result in results):
        return 1
    return 0 if parsed.guest else _publish(parsed.out, write=parsed.write_docs)


def _publish(out: Path, *, write: bool) -> int:
    """Write the pages about kernels, or compare them with the results."""
    differences = []
    for path, maker in _PAGES.items():
        if write:
            path.write_text(maker.page(out))
            print(f"scripts/vm: wrote {path}")
        elif trouble := maker.drift(out, path):
            differences.append(trouble)
            print(f"scripts/vm: {trouble}", file=sys.stderr)
    return 1 if differences else 0


def _request(parsed: argparse.Namespace) -> Request:
    if platform.machine() != "x86_64":
        raise ValueError(f"the guests are for x86_64, this host is {platform.machine()}")
    if parsed.write_docs and parsed.guest:
        raise ValueError("--write-docs needs the results of all guests: name none")
    if parsed.jobs < 1:
        raise ValueError(f"--jobs {parsed.jobs}: give at least 1")
    for path in [*parsed.deb, parsed.guest_folder / "main.sh"]:
        if not path.is_file():
            raise ValueError(f"no such file: {path}")
    return Request(
        guests=tuple(choose(parsed.guest)),
        packages=tuple(parsed.deb),
        guest_folder=parsed.guest_folder,
        out=parsed.out,
        deadline=parsed.deadline,
        jobs=parsed.jobs,
        beside=parsed.beside,
        refresh=parsed.refresh,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
