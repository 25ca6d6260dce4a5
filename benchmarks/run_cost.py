"""Measure what one run of the BPF programs costs, by the result of the run, next to an empty program at the same hook.

Usage, as root: .venv/bin/python benchmarks/run_cost.py [--help]

The kernel measures the programs (kernel.bpf_stats_enabled). dnsprobe, the empty program and, with --other, another
installation take turns, for example that of an older commit. In each turn, sends.c sends the same packets over
loopback, on one CPU. The table has the medians of all rounds, and in brackets the least: nanoseconds of one run of the
empty program, and what a run of dnsprobe takes more than that. Over TCP to a watched port, it is what all runs for one
send take more: at egress, the packets of the receiver run the program, too. A processor may be slower at one time than
at another, so the table also says how many runs of the empty program take as long. The aims are for a processor on
which the empty program takes EMPTY_NS. Run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import programs
from daemon import Daemon, NotStartedError, free_port
from programs import EmptyProgram, Place, Runs

#: Nanoseconds of one run of an empty program, most of which is the measurement, where the aims were set.
EMPTY_NS = 35

_LONG_NAME = f"{'a' * 63}.{'b' * 20}.wanted.test"  # 97 octets in wire format


@dataclass(frozen=True, slots=True)
class Case:
    """Sends of one kind.

    ``way`` and ``name`` are arguments of sends.c; ``watched``: the destination port is watched. ``at_tcp``: programs at
    hooks for TCP are measured, otherwise those at hooks for UDP. ``counts``: each message is counted. ``firewall``: in
    a network namespace with a firewall that tracks connections. ``aim`` are the nanoseconds above an empty program that
    a run should take at most. ``per_send``: the cost is that of a send, with all its runs.
    """

    what: str
    way: str
    name: str = "www.wanted.test"
    watched: bool = True
    at_tcp: bool = False
    counts: bool = False
    firewall: bool = False
    aim: int | None = None

    @property
    def per_send(self) -> bool:
        """Whether runs are not what is to be compared: at egress, those for the receiver's packets are among them."""
        return self.at_tcp and self.watched


CASES = (
    Case("not DNS, connected", "udp", "-", watched=False, aim=10),
    Case("not DNS, unconnected", "udp-unconnected", "-", watched=False, aim=10),
    Case("DNS, port not watched", "udp", watched=False),
    Case("TCP at the hook for UDP", "tcp", watched=False, aim=5),
    Case("no rule matches", "udp", "www.other.test", aim=60),
    Case("no rule, near misses", "udp", "www.nam.example.test", aim=60),
    Case("no rule, new each time", "udp", "n########.other.test"),
    Case("counted", "udp", counts=True, aim=80),
    Case("counted, unconnected", "udp-unconnected", counts=True, aim=80),
    Case("counted, name of 97 octets", "udp", _LONG_NAME, counts=True, aim=130),
    Case("counted, new each time", "udp", "n########.wanted.test", counts=True),
    Case("not DNS, firewall", "udp", "-", watched=False, firewall=True),
    Case("no rule, firewall", "udp", "www.other.test", firewall=True),
    Case("counted, firewall", "udp", counts=True, firewall=True),
    Case("tcp, port not watched", "tcp", watched=False, at_tcp=True, aim=5),
    Case("tcp, acknowledgement", "tcp-empty", at_tcp=True),
    Case("tcp, no rule matches", "tcp", "www.other.test", at_tcp=True),
    Case("tcp, counted", "tcp", at_tcp=True, counts=True),
    Case("tcp, counted, in two", "tcp-in-two", at_tcp=True, counts=True),
)

_WITH_FIREWALL = """
ip link set lo up
nft 'add table inet cost; add chain inet cost out { type filter hook output priority 0; }'
nft 'add rule inet cost out ct state established accept'
exec "$@"
"""

#: By the beginning of the name of each program, of which the kernel keeps 15 octets: whether it is for TCP, and the
#: kernel function or tracepoint where it is attached.
_PROGRAMS = {
    "ip_send_skb": (False, "ip_send_skb"),
    "ip6_send_skb": (False, "ip6_send_skb"),
    "udp_send_skb": (False, "udp_send_skb"),
    "udp_v6_send_skb": (False, "udp_v6_send_skb"),
    "net_dev_queue": (False, "net_dev_queue"),
    "egress_stream": (True, ""),
    "egress": (False, ""),
    "tcp_sendmsg_loc": (True, "tcp_sendmsg_locked"),
    "tcp_sendmsg": (True, "tcp_sendmsg"),
}

_Measured = Mapping[tuple[bool, Place], Runs]


def measured(daemon: Daemon) -> _Measured:
    """Return the measurements of programs: whether they are for TCP, where they are attached, and their runs.

    Several programs at one place are added up.
    """
    found: dict[tuple[bool, Place], Runs] = defaultdict(lambda: Runs(0, 0))
    for loaded, runs in daemon.programs:
        for name, (tcp, function) in _PROGRAMS.items():
            if loaded.name.startswith(name):
                found[tcp, Place(loaded.kind, function)] += runs
                break
    return found


class Benchmark:
    """All turns of all rounds. ``folder`` is empty; ``installations`` are programs by the heading of their column."""

    def __init__(self, folder: Path, installations: Mapping[str, Path], options: argparse.Namespace) -> None:
        self._folder, self._installations, self._options = folder, installations, options
        self._sender = folder / "sends"
        source = Path(__file__).with_name("sends.c")
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", self._sender, source], check=True)
        self._port, self._unwatched = free_port(), free_port()
        self._cpu = max(os.sched_getaffinity(0))
        self._cases = [case for case in CASES if options.tcp or not case.at_tcp]
        #: Nanoseconds of one run of the empty program, by case and place, one of each round.
        self.empty: dict[tuple[str, Place], list[float]] = defaultdict(list)
        #: What each round measured, by case and installation.
        self.found: dict[tuple[str, str], list[_Measured]] = defaultdict(list)

    def _configuration(self, heading: str) -> str:
        hook = self._options.other_hook if heading == "other" else self._options.hook
        rules = [f"name{index}.example.test" for index in range(self._options.rules - 1)] + ["wanted.test"]
        return (
            f"domains: [{', '.join(rules)}]\n"
            f"probe: {{ports: [{self._port}], verify_interval: 0, hook: {hook}, "
            f"tcp_hook: {'auto' if self._options.tcp else 'none'}}}\n"
        )

    @contextmanager
    def _running(self, heading: str) -> Iterator[Daemon]:
        try:
            daemon = Daemon([self._installations[heading]], self._configuration(heading), self._folder / heading)
        except NotStartedError as error:
            sys.exit(f"{heading}: {error}")
        try:
            yield daemon
        finally:
            daemon.close()

    def _send(self, case: Case) -> None:
        port = self._port if case.watched else self._unwatched
        arguments = [case.way, str(port), str(self._options.sends), case.name]
        command = ["taskset", "--cpu-list", str(self._cpu), str(self._sender), *arguments]
        if case.firewall:
            command = ["unshare", "--net", "sh", "-ec", _WITH_FIREWALL, "sh", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def places(self) -> set[tuple[bool, Place]]:
        """Return where the programs of all installations are attached; print what the verifier says about them."""
        found: set[tuple[bool, Place]] = set()
        for heading in self._installations:
            with self._running(heading) as daemon:
                for case in self._cases:
                    if case.counts:
                        self._send(case)
                # Programs for the other version of IP do not run.
                found |= {key for key, runs in measured(daemon).items() if runs.runs > self._options.sends // 2}
                for loaded, _runs in sorted(daemon.programs, key=lambda program: program[0].name):
                    print(f"{heading:<6} {loaded.name:<15} {loaded.verified:7} instructions verified")
        return found

    def turn_of(self, heading: str) -> None:
        """Measure an installation in all cases."""
        with self._running(heading) as daemon:
            for case in self._cases:
                before = measured(daemon)
                self._send(case)
                after = measured(daemon)
                runs = {key: after[key] - before[key] for key in after if key[0] == case.at_tcp}
                self.found[case.what, heading].append(runs)
            expected = sum(self._options.sends for case in self._cases if case.counts)
            # Numbers of counted queries prove that the cases are what they are called.
            time.sleep(1)
            if (counted := daemon.counted) != expected:
                sys.exit(f"{heading}: counted {counted} of {expected} queries")

    def turn_of_empty(self, places: set[tuple[bool, Place]]) -> None:
        """Measure the empty program at each place in all cases."""
        for tcp, place in sorted(places, key=str):
            program = EmptyProgram(place)
            for case in self._cases:
                if case.at_tcp == tcp:
                    before = program.runs
                    self._send(case)
                    runs = program.runs - before
                    self.empty[case.what, place].append(runs.time_ns / runs.runs)
            program.close()

    def above_empty(self, case: Case, heading: str) -> list[tuple[float, float]]:
        """Return what a run of an installation costs above empty programs, one pair for each round.

        A pair has nanoseconds, and the number of runs of the empty program that take as long. Where several programs
        run for the same packet, it is the cost of all. Where ``case.per_send``, it is the cost of all runs for a send.
        """
        costs = []
        for at, round_measured in enumerate(self.found[case.what, heading]):
            ran = {
                self.empty[case.what, place][at]: runs
                for (_tcp, place), runs in round_measured.items()
                if (case.what, place) in self.empty and runs.runs
            }
            more = sum(runs.time_ns - runs.runs * empty for empty, runs in ran.items())
            most = max((runs.runs for runs in ran.values()), default=1)
            cost = more / (self._options.sends if case.per_send else most)
            costs.append((cost, cost / max(ran, default=1)))
        return costs

    def print_table(self) -> None:
        """Print what all rounds found."""
        headings = list(self._installations)
        width = max(len(case.what) for case in self._cases)
        print("\nEmpty programs: nanoseconds of one run")
        for place in dict.fromkeys(place for _what, place in self.empty):
            costs = [cost for (_what, where), costs in self.empty.items() if where == place for cost in costs]
            print(f"{place!s:<{width}}  {statistics.median(costs):4.0f} ({min(costs):3.0f})")
        print("\nMore than an empty program: nanoseconds of one run, runs of the empty program that take as long")
        titles = "  ".join(f"{heading:>17}" for heading in headings)
        print(f"{'':<{width}}  {titles}  {'ratio':>5}  {'aim':>9}")
        for case in self._cases:
            found = [self.above_empty(case, heading) for heading in headings]
            pairs = zip(found[0], found[-1], strict=True)
            ratio = statistics.median(ours[1] / theirs[1] if theirs[1] else 0 for ours, theirs in pairs)
            compared = f"{ratio:5.2f}" if len(headings) > 1 else f"{'':>5}"
            aim = f"{case.aim:4} {case.aim / EMPTY_NS:4.1f}" if case.aim is not None else ""
            print(f"{case.what:<{width}}  {'  '.join(map(_summary, found))}  {compared}  {aim}".rstrip())


def _summary(costs: list[tuple[float, float]]) -> str:
    in_ns, in_empties = zip(*costs, strict=True)
    return f"{statistics.median(in_ns):4.0f} ({min(in_ns):4.0f}) {statistics.median(in_empties):5.1f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what one run of the BPF programs costs.")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each program (default: %(default)s)")
    parser.add_argument("--sends", type=int, default=50_000, help="sends in each case (default: %(default)s)")
    parser.add_argument("--rules", type=int, default=10, help="number of rules (default: %(default)s)")
    parser.add_argument("--hook", default="auto", help="probe.hook (default: %(default)s)")
    parser.add_argument("--other", type=Path, metavar="PROGRAM", help="dnsprobe of another installation")
    parser.add_argument("--other-hook", default="auto", metavar="HOOK", help="its probe.hook (default: %(default)s)")
    parser.add_argument("--no-tcp", dest="tcp", action="store_false", help="leave out the hooks for TCP")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    options = _arguments()
    installations = {"this": Path(sys.executable).with_name("dnsprobe")}
    if options.other:
        installations["other"] = options.other
    with tempfile.TemporaryDirectory() as folder, programs.statistics():
        benchmark = Benchmark(Path(folder), installations, options)
        places = benchmark.places()
        for number in range(options.rounds):
            # The second of two may find a faster or slower processor, so they change places.
            order = [*installations, ""][:: 1 if number % 2 else -1]
            for heading in order:
                if heading:
                    benchmark.turn_of(heading)
                else:
                    benchmark.turn_of_empty(places)
        benchmark.print_table()


if __name__ == "__main__":
    main()
