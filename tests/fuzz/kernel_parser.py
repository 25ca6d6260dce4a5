"""Compare the parser of the kernel side with the reference parser on odd messages, as many as there is time for.

Usage, as root: .venv/bin/python tests/fuzz/kernel_parser.py [SECONDS [SEED]]

Sends each message over IPv4 and IPv6 to loopback, and compares events and statistics with tests/host/reference.py.
Prints how many messages were tried, and how often each outcome came. Ends with an error at the first difference.
Default: 60 seconds, and a seed from the clock, which is printed.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "host"))

from odd_messages import Messages
from test_kernel_parser import compare, running_kernel

_AT_ONCE = 500
_SHOWN = 20


def main(arguments: list[str]) -> None:
    """Run for some seconds, and print what came of it."""
    seconds = float(arguments[0]) if arguments else 60
    seed = int(arguments[1]) if len(arguments) > 1 else int(time.time())
    print(f"seed {seed}", flush=True)
    messages, outcomes = Messages(random.Random(seed)), Counter[str]()
    with running_kernel() as kernel:
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            outcomes += compare(kernel, [messages.next() for _ in range(_AT_ONCE)])
        taken = time.monotonic() - begin
        paths = len(kernel.senders)
    print(f"{outcomes.total()} messages, each over {paths} paths, in {taken:.0f} s: no difference")
    for outcome, times in outcomes.most_common(_SHOWN):
        print(f"{times:10} {outcome}")


if __name__ == "__main__":
    main(sys.argv[1:])
