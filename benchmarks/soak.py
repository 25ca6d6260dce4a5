"""Run a daemon under everything at once, and check that it stays level and that victims are counted exactly.

For MINUTES (30), in network namespaces of their own: a storm of processes that ask once and end; a user who floods with
new names under a wildcard rule; a reload every five seconds, which adds or removes a rule; a scrape every second. All
the while, two victims ask at a steady pace, for new names now and then.

Prints a line for each interval: resident memory of the daemon (KiB), descriptors, threads, BPF maps and their memory
(KiB), and what the victims sent. The exit status is 1 if anything grew between the second quarter and the last one, if
a victim was not counted exactly or not under its own tree, or if the daemon logged an error.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT / "tests/vm/guest"))

from running import Service  # noqa: E402 -- it is in the folder above, since guests need it, too

#: Users that no account of the host has.
_ATTACKER, _VICTIMS = 3_000_001, (3_000_002, 3_000_003)
_OWN_NET = ("unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh")
_RULES = 'domains: [victim.test, watched.test, "*.flood.test"{more}]\nmetrics: {{max_series: 1000, series_ttl: 1m}}\n'
_USAGE = "scripts/soak [--help] [MINUTES]"
_SAMPLES = 40
#: What may come on top, in the unit of each column: scrapes come and go, and an allocator rounds.
_SLACK = {"rss": 4096, "descriptors": 4, "threads": 2, "maps": 0, "map_memory": 256}
_GROWTH = 1.05


class Sample(NamedTuple):
    """What the daemon uses at a moment."""

    rss: int
    descriptors: int
    threads: int
    maps: int
    map_memory: int


def take_sample(pid: int) -> Sample:
    """Read what a process uses. Memory is in KiB."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    memory: dict[str, int] = {}
    descriptors = list(Path(f"/proc/{pid}/fdinfo").iterdir())
    for descriptor in descriptors:
        try:
            text = descriptor.read_text("utf-8")
        except OSError:
            continue  # closed meanwhile
        if found := re.search(r"^map_id:\s*(\d+)$", text, re.MULTILINE):
            locked = re.search(r"^memlock:\s*(\d+)$", text, re.MULTILINE)
            memory[found[1]] = int(locked[1]) // 1024 if locked else 0

    def number(key: str) -> int:
        found = re.search(rf"^{key}:\s*(\d+)", status, re.MULTILINE)
        return int(found[1]) if found else 0

    return Sample(number("VmRSS"), len(descriptors), number("Threads"), len(memory), sum(memory.values()))


def repeat(stop: threading.Event, pause: float, work: Callable[[], object]) -> threading.Thread:
    """Do something again and again in a thread, with a pause in between."""

    def run() -> None:
        while not stop.is_set():
            work()
            stop.wait(pause)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def ask(number: int, uid: int) -> None:
    """Be a victim: send queries until SIGTERM, then print how many."""
    Path("/proc/self/comm").write_text(f"victim{number}")  # another user may not write it
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while not ended.wait(0.02):
            label = b"n%d" % (sent // 100)
            name = b"".join(bytes([len(part)]) + part for part in (label, b"victim", b"test")) + b"\0"
            sender.sendto(struct.pack("!6H", sent % 65536, 0x100, 1, 0, 0, 0) + name + b"\0\1\0\1", ("127.0.0.1", 53))
            sent += 1
    print(sent)


class Soak:
    """A daemon and all that plagues it."""

    def __init__(self, folder: Path, minutes: float) -> None:
        folder.chmod(0o755)  # other users run the programs in it
        for program in ("storm", "flood"):
            source = _ROOT / f"benchmarks/{program}.c"
            subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-static", "-o", folder / program, source], check=True)
        self._folder, self._seconds = folder, minutes * 60
        self._stop = threading.Event()
        self._rounds = 0
        self.scrapes = self.reloads = 0
        self.service = Service(_RULES.format(more=""), folder)

    def _as_attacker(self, program: str, *arguments: str) -> None:
        user = ("setpriv", f"--reuid={_ATTACKER}", f"--regid={_ATTACKER}", "--clear-groups")
        command = [*_OWN_NET, *user, str(self._folder / program), *arguments]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    def _flood(self) -> None:
        self._rounds += 1
        self._as_attacker("flood", "127.0.0.1", "53", f"r{self._rounds}.flood.test", "10000", "1", "1")

    def _reload(self) -> None:
        self.reloads += 1
        more = ", other.test" if self.reloads % 2 else ""
        self.service.configuration.write_text(_RULES.format(more=more), "utf-8")
        self.service.process.send_signal(signal.SIGHUP)

    def _scrape(self) -> None:
        self.service.get("/metrics")
        self.scrapes += 1

    def run(self) -> tuple[list[Sample], list[int]]:
        """Return what the daemon used at each moment, and how many queries each victim sent."""
        victims = [
            subprocess.Popen(
                [*_OWN_NET, sys.executable, __file__, "victim", str(number), str(uid)], stdout=subprocess.PIPE
            )
            for number, uid in enumerate(_VICTIMS)
        ]
        threads = [
            repeat(self._stop, 2, lambda: self._as_attacker("storm", "asker", "500", "2")),
            repeat(self._stop, 3, self._flood),
            repeat(self._stop, 5, self._reload),
            repeat(self._stop, 1, self._scrape),
        ]
        samples = []
        try:
            for _ in range(_SAMPLES):
                time.sleep(self._seconds / _SAMPLES)
                samples.append(take_sample(self.service.process.pid))
                print(*samples[-1], sep="\t", flush=True)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            for victim in victims:
                victim.terminate()
            sent = [int(victim.communicate()[0] or 0) for victim in victims]
        return samples, sent

    def mistakes(self, samples: Sequence[Sample], sent: Sequence[int]) -> list[str]:
        """Return what is wrong, in words."""
        found = []
        before, after = samples[_SAMPLES // 4 : _SAMPLES // 2], samples[_SAMPLES * 3 // 4 :]
        for column in Sample._fields:
            most, now = (max(getattr(sample, column) for sample in some) for some in (before, after))
            if now > most * _GROWTH + _SLACK[column]:
                found.append(f"{column} grew: at most {most} in the second quarter, {now} in the last one")
        counted = self.service.by("dnsprobe_queries_total", "process")
        for number, queries in enumerate(sent):
            if counted.get(f"victim{number}") != queries:
                found.append(f"victim{number} sent {queries}, counted are {counted.get(f'victim{number}')}")
        log = self.service.err.read_text("utf-8")
        found += [line for line in log.splitlines() if "Traceback" in line or "ERROR" in line]
        return found


def main() -> None:
    """Print a line for each sample, and at the end what is wrong."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=_USAGE
    )
    parser.add_argument("minutes", metavar="MINUTES", type=float, nargs="?", default=30.0, help="how long (30)")
    minutes: float = parser.parse_args().minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that dnsprobe does not stay
    with tempfile.TemporaryDirectory() as name:
        soak = Soak(Path(name), minutes)
        try:
            print(*Sample._fields, sep="\t", flush=True)
            samples, sent = soak.run()
            mistakes = soak.mistakes(samples, sent)
            queries = soak.service.by("dnsprobe_queries_total", "domain")
            status = soak.service.stop()
            last = soak.service.err.read_text("utf-8").splitlines()[-1]
        finally:
            soak.service.kill()
    print(f"{soak.scrapes} scrapes, {soak.reloads} reloads, victims sent {sum(sent)}; by domain: {queries}")
    print(last)
    mistakes += [f"exit status {status}"] if status else []
    print("\n".join(mistakes) or "level, and the victims are exact")
    sys.exit(bool(mistakes))


if __name__ == "__main__":
    if sys.argv[1:2] == ["victim"]:
        ask(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
