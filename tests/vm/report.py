"""The results: numbers of tests, the verdict on each guest, and at the end of a run the table and the failures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import Ending

#: How much of a failure the summary shows: the last lines of what pytest wrote about it.
_FAILURE_LINES = 25


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of tests, and for each that failed its name and what pytest wrote about it.

    A test that could not be set up or torn down has failed.
    """

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.failures + other.failures,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one guest; ``trouble`` is empty if it passed, ``folder`` is None if it did not start."""

    guest: str
    kernel: str
    counts: Counts
    seconds: float
    trouble: str
    folder: Path | None


def read_counts(folder: Path) -> Counts:
    """Return the sum over all ``junit-*.xml`` of a folder. Raises ValueError for a file that pytest did not write."""
    total = Counts()
    for path in sorted(folder.glob("junit-*.xml")):
        try:
            total += count(path.read_text())
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no result of pytest: {error!r}") from error
    return total


def count(text: str) -> Counts:
    """Return the counts of a file that ``pytest --junitxml`` wrote."""
    total = Counts()
    for suite in ElementTree.fromstring(text).iter("testsuite"):
        tests, failures, errors, skipped = (
            int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")
        )
        failed = failures + errors
        total += Counts(tests - failed - skipped, failed, skipped, tuple(_failures(suite)))
    return total


def _failures(suite: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for case in suite.iter("testcase"):
        for failure in [*case.iter("failure"), *case.iter("error")]:
            yield f"{case.attrib['classname']}::{case.attrib['name']}", failure.text or failure.attrib["message"]


def judge(guest: str, kernel: str, ending: Ending, folder: Path) -> Result:
    """Return the verdict on a guest: from its ending, and from the results in ``out`` below the folder."""
    counts, unreadable = Counts(), ""
    try:
        counts = read_counts(folder / "out")
    except ValueError as error:
        unreadable = str(error)
    trouble = _no_ending(ending) or unreadable or _trouble(ending, counts)
    return Result(guest, kernel, counts, ending.seconds, trouble, folder)


def _no_ending(ending: Ending) -> str:
    if ending.status is not None:
        return ""
    what = {"died": "the guest died", "deadline": "the guest did not end in time and was ended"}[ending.fate]
    return f"{what}, in boot {ending.boots - 1}"


def _trouble(ending: Ending, counts: Counts) -> str:
    if counts.failed:
        return f"{counts.failed} test{'s' if counts.failed > 1 else ''} failed"
    if ending.status:
        return f"the script ended with status {ending.status}"
    return "" if counts.passed else "no test has passed"


def summary(results: Iterable[Result]) -> str:
    """Return the failures, the table of all guests, and below it, for each that failed, the reason and the logs.

    Whoever keeps only the end of the output still has the name and the reason of each failure.
    """
    results = list(results)
    rows: list[Sequence[str]] = [("guest", "kernel", "passed", "failed", "skipped", "seconds", "")]
    for result in results:
        counts = result.counts
        numbers = (str(number) for number in (counts.passed, counts.failed, counts.skipped))
        rows.append(
            (result.guest, result.kernel, *numbers, f"{result.seconds:.0f}", "FAILED" if result.trouble else "ok")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [line for result in results for line in _show_failures(result)]
    for row in rows:
        cells = [
            cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    for result in results:
        if result.trouble:
            where = f"; see console.log, journal.log and output.log in {result.folder}" if result.folder else ""
            lines.append(f"{result.guest}: {result.trouble}{where}")
    return "\n".join(lines)


def _show_failures(result: Result) -> Iterator[str]:
    for name, text in result.counts.failures:
        yield f"{result.guest}: {name} failed:"
        yield from (f"    {line}" for line in text.splitlines()[-_FAILURE_LINES:])
        yield ""
