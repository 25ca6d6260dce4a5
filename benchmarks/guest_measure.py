"""Runs in a guest of guest_cost.py, where a nanosecond is an instruction: measures sends, and prints the table.

Usage: guest_measure.py SENDER TREE...: the program that sends.c makes, and source trees of dnsprobe.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon import Daemon, NotStartedError, free_port
from programs import CGROUP_SKB, KPROBE, RAW_TRACEPOINT, TRACING, EmptyProgram, Place

#: By heading: whether the port is watched, whether the query counts, and its name.
CASES = {
    "not DNS": (False, False, "-"),
    "no rule": (True, False, "www.other.test"),
    "new name": (True, False, "n########.other.test"),
    "counted": (True, True, "www.wanted.test"),
    "97 octets": (True, True, f"{'a' * 63}.{'b' * 20}.wanted.test"),
}
EMPTY = (
    Place(KPROBE, "ip_send_skb"),
    Place(TRACING, "ip_send_skb"),
    Place(CGROUP_SKB, ""),
    Place(RAW_TRACEPOINT, "net_dev_queue"),
)
#: Ways to attach. A version of dnsprobe may not know all of them.
SETTINGS = ("hook: ip_send_skb", "hook: ip_send_skb, attach: kprobe", "hook: cgroup_skb")
SENDS, REPEATS = 2200, 3

Costs = dict[str, float]


class Guest:
    """Measures sends with this sender. ``port`` is watched."""

    def __init__(self, sender: str) -> None:
        self._sender = sender
        self.port, self._unwatched = free_port(), free_port()

    def costs(self) -> Costs:
        """Return the instructions of one send in each case, in user space and in the kernel."""
        found = {}
        for case, (watched, _counts, name) in CASES.items():
            command = [self._sender, "udp", str(self.port if watched else self._unwatched), str(SENDS), name]
            found[case] = statistics.median(
                float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(REPEATS)
            )
        return found

    def with_daemon(self, tree: str, settings: str) -> Costs:
        """Return the costs while dnsprobe watches. Raises NotStartedError."""
        configuration = (
            "domains: [wanted.test]\n"
            f"probe: {{ports: [{self.port}], tcp_hook: none, lineage: 0, verify_interval: 0, {settings}}}\n"
        )
        os.chdir(tree)  # that of the module
        daemon = Daemon([sys.executable, "-m", "dnsprobe"], configuration, Path(tree) / "cache")
        try:
            costs = self.costs()
            expected = SENDS * REPEATS * sum(counts for _watched, counts, _name in CASES.values())
            if (counted := daemon.counted) != expected:
                raise AssertionError(f"{counted} of {expected} queries counted")
        finally:
            daemon.close()
        return costs

    def with_empty(self, place: Place) -> Costs:
        """Return the costs while an empty program is attached. OSError if the kernel refuses it."""
        program = EmptyProgram(place)
        try:
            return self.costs()
        finally:
            program.close()


def main() -> None:
    """Print the table."""
    sender, *trees = sys.argv[1:]
    guest = Guest(sender)
    print(f"{'':<46}{''.join(f'{case:>11}' for case in CASES)}")
    without = guest.costs()
    _print_row("without any program", without)

    def measure(what: str, measured: Callable[..., Costs], *arguments: Any) -> None:
        try:
            costs = measured(*arguments)
        except (NotStartedError, OSError) as error:
            print(f"{what:<46}  refused: {str(error).strip().splitlines()[-1].rpartition(': ')[2][:70]}")
        else:
            _print_row(what, {case: cost - without[case] for case, cost in costs.items()})

    for place in EMPTY:
        measure(f"empty, {place}", guest.with_empty, place)
    for tree in trees:
        for settings in SETTINGS:
            measure(f"{Path(tree).name}, {settings}", guest.with_daemon, tree, settings)
    measure("without any program, again", guest.costs)


def _print_row(what: str, costs: Costs) -> None:
    print(f"{what:<46}{''.join(f'{costs[case]:11.0f}' for case in CASES)}", flush=True)


if __name__ == "__main__":
    main()
