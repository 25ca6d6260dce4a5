"""Measure what tracking answers costs: a query with its answer, and other packets, with answers on and off.

Usage, as root: .venv/bin/python benchmarks/answer_cost.py [--rounds N] [--sends N]

A daemon with answers, one without, and an empty program at ingress take turns. In each turn, answer_cost.c sends the
same packets over loopback, on one CPU. The kernel measures the programs (kernel.bpf_stats_enabled); for each run, that
costs about as much as an empty program takes. The table has the medians of all rounds, and in brackets the least:
nanoseconds of all runs at egress, and of all runs at ingress, for a packet or for a query with its answer. A query with
its answer are two packets, and a TCP segment may have an acknowledgement. The last columns are how long it took from
send to receive, measured without bpf_stats_enabled. Run it while
nothing else runs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import programs
from daemon import Daemon
from programs import CGROUP_SKB, INGRESS, EmptyProgram, Place, Runs

_HERE = Path(__file__).parent
_IN_OWN_NET = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]
#: What is sent: a kind of answer_cost.c, and its name in the table.
_CASES = {
    "answered": "query with its answer",
    "no_rule": "answer, no rule",
    "udp": "other UDP packet",
    "tcp": "other TCP segment",
}
_CONFIGURATION = "domains: [wanted.test]\nanswers: {}\n"
_ON, _OFF, _EMPTY = "on", "off", "empty"
_ANSWERS = {_ON: "{timeout: 1s}", _OFF: '"off"'}


def _runs(daemon: Daemon, start: str) -> Runs:
    """Return the runs of the programs that are attached, whose names begin with a word."""
    total = Runs(0, 0)
    for loaded, runs in daemon.programs:
        if loaded.kind == CGROUP_SKB and loaded.name.startswith(start):
            total += runs
    return total


class Benchmark:
    """Sends in turns. ``found`` has nanoseconds by case, turn and column."""

    def __init__(self, folder: Path, sends: int) -> None:
        self._folder, self._sends = folder, sends
        self._sender = folder / "answer_cost"
        source = _HERE / "answer_cost.c"
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", self._sender, source], check=True)
        self.found: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def _send(self, case: str, sends: int) -> float:
        command = [*_IN_OWN_NET, "taskset", "--cpu-list", "0", str(self._sender), case, str(sends)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    def turn(self, heading: str) -> None:
        """Measure with a daemon."""
        configuration = _CONFIGURATION.format(_ANSWERS[heading])
        daemon = Daemon([Path(sys.executable).with_name("dnsprobe")], configuration, self._folder / "cache")
        try:
            for case in _CASES:
                with programs.statistics():
                    before = {place: _runs(daemon, place) for place in ("egress", "ingress")}
                    self._send(case, self._sends)
                    for place, runs in before.items():
                        cost = (_runs(daemon, place) - runs).time_ns / self._sends
                        self.found[case, heading, place].append(cost)
                self.found[case, heading, "whole"].append(self._send(case, self._sends))
            # The numbers prove that the cases are what they are called.
            if daemon.counted != 2 * self._sends:
                sys.exit(f"{heading}: counted {daemon.counted} of {2 * self._sends} queries")
            if heading == _ON and 'rcode="NOERROR"' not in daemon.metrics():
                sys.exit("no query was answered")
        finally:
            daemon.close()

    def turn_of_empty(self) -> None:
        """Measure with an empty program at ingress, and without any program."""
        for case in _CASES:
            program = EmptyProgram(Place(CGROUP_SKB, INGRESS))
            with programs.statistics():
                before = program.runs
                self._send(case, self._sends)
                self.found[case, _EMPTY, "ingress"].append((program.runs - before).time_ns / self._sends)
            program.close()
            self.found[case, _EMPTY, "whole"].append(self._send(case, self._sends))

    def print_table(self) -> None:
        """Print what all rounds found."""
        columns = [
            (_OFF, "egress"),
            (_ON, "egress"),
            (_EMPTY, "ingress"),
            (_ON, "ingress"),
            (_EMPTY, "whole"),
            (_OFF, "whole"),
            (_ON, "whole"),
        ]
        print(f"{'':<24}" + "".join(f"{f'{place}, {heading}':>18}" for heading, place in columns))
        for case, what in _CASES.items():
            cells = []
            for heading, place in columns:
                found = self.found[case, heading, place]
                cells.append(f"{statistics.median(found):.0f} ({min(found):.0f})")
            print(f"{what:<24}" + "".join(f"{cell:>18}" for cell in cells))
        print("\nAt ingress, more than an empty program, median of the rounds:")
        for case, what in _CASES.items():
            pairs = zip(self.found[case, _ON, "ingress"], self.found[case, _EMPTY, "ingress"], strict=True)
            print(f"{what:<24}{statistics.median(on - empty for on, empty in pairs):8.0f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure what tracking answers costs.")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: %(default)s)")
    parser.add_argument("--sends", type=int, default=50_000, help="sends in each case (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(Path(folder), options.sends)
        for number in range(options.rounds):
            for heading in (_ON, _OFF)[:: 1 if number % 2 else -1]:
                benchmark.turn(heading)
            benchmark.turn_of_empty()
        benchmark.print_table()


if __name__ == "__main__":
    main()
