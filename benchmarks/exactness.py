"""Check that no query is lost without being counted: counted, and counted as missed, is what was sent.

Usage: .venv/bin/python benchmarks/exactness.py [QUERIES [PROBE...]]

Four processes send QUERIES queries (10,000,000), for few names and some new ones, over IPv4 and IPv6, and some with
UDP_SEGMENT. Four real-time processes wake up by timers on the same processors, interrupt them and send more. Meanwhile
another program hammers its maps, and the rules change every 300 ms. PROBE is a part of the section `probe` of a
configuration, such as "hook: ip_send_skb, attach: kprobe"; each is tried in turn. Without one, dnsprobe chooses the
hook. With "tcp_hook: auto" or another hook for TCP, the queries are sent over TCP.

Prints a line for each PROBE. The exit status is 1 if a query was lost, counted twice, or counted for another process or
rule. Other programs of the host must be quiet: the skipped runs of their packets are counted as missed, too.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_GUEST = Path(__file__).resolve().parent.parent / "tests/vm/guest"
sys.path.insert(0, str(_GUEST))

import contention  # noqa: E402 -- it is in the folder above, since guests need it, too


def main() -> None:
    """Print a line for each PROBE."""
    queries = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    failed = False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that dnsprobe does not stay
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sender in ("contend", "hammer"):
            source = _GUEST / f"senders/{sender}.c"
            subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", folder / sender, source], check=True)
        for probe in sys.argv[2:] or [""]:
            program = Path(sys.executable).with_name("dnsprobe")
            with contention.Daemon(program, folder, probe) as daemon:
                result = daemon.contend(folder, queries)
            failed = failed or bool(result.mistakes or result.unaccounted)
            print("\n".join([f"{probe or 'auto'}: {result}", *result.mistakes]), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
