"""Compare the metrics with dnsperf(1), which asks a real resolver at full speed, over UDP and over TCP.

Usage, as root: .venv/bin/python benchmarks/answers_under_load.py [--seconds N] [--resolver NAME]

Scrapes once a second. Prints whether the sums of all scrapes close, and the figures of both: how many queries got each
response code, and the mean latency with its bucket. Ends with status 1 if a sum does not close, a number of queries
differs, or the mean latencies are more than a bucket apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/host"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/vm/guest"))

from load import CONFIGURATION, ZONE, Load, differences, measure
from real_resolvers import RESOLVERS
from running import Service


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--resolver", choices=RESOLVERS, default="unbound")
    options = parser.parse_args()
    failed = False
    for transport in ("udp", "tcp"):
        with tempfile.TemporaryDirectory(prefix="dnsprobe-load-") as name:
            folder = Path(name)
            service = Service(CONFIGURATION, folder)
            resolver = RESOLVERS[options.resolver](folder, ZONE)
            try:
                load = measure(service, resolver, transport, options.seconds, folder)
            finally:
                resolver.close()
                service.stop()
        show(transport, options.seconds, load)
        for difference in differences(load):
            failed = True
            print(f"  DIFFERENCE: {difference}")
    sys.exit(failed)


def show(transport: str, seconds: int, load: Load) -> None:
    """Print the figures of a run."""
    last = load.scrapes[-1]
    closed = sum(sums.queries == sums.results for sums in load.scrapes)
    most = max(sums.waiting for sums in load.scrapes)
    print(f"{transport}: {load.told.sent / seconds:,.0f} queries a second")
    print(f"  scrapes whose sum closes: {closed} of {len(load.scrapes)}, with up to {most} queries waiting")
    print(f"  queries: dnsperf {load.told.sent}, dnsprobe {last.queries}")
    for rcode in sorted(load.rcodes | load.told.rcodes):
        print(f"  {rcode}: dnsperf {load.told.rcodes[rcode]}, dnsprobe {load.rcodes[rcode]}")
    print(f"  unanswered: {last.unanswered}, untracked: {last.untracked}")
    print(f"  mean latency: dnsperf {load.told.latency * 1e6:.0f} µs, dnsprobe {load.latency * 1e6:.0f} µs")


if __name__ == "__main__":
    main()
