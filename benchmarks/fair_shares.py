"""Show what one user's flood takes from another user: counts, trees, and events.

Usage, as root: .venv/bin/python benchmarks/fair_shares.py [--other DNSPROBE] [ATTACK ...]

Each attack of attacks.py is played in a network namespace, against this dnsprobe and, with --other, against another
installation, for example that of an older commit. The table has, for each attack, how many queries the victim sent, and
how many of them were counted for its process, have its tree (the lineage for orphans), and have an event; and who
exceeded a share. The maps are smaller than by default, so that an attack needs fewer processes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attacks import ATTACKS

HERE = Path(__file__).parent

CONFIGURATION = """\
domains: [w*.wild.test, plain.test]
probe: {processes: 1024, counters: 2048, names: 4096, recent: 8192, lineage: 4096, tree: lineage}
metrics: {labels: [unit, container]}
"""
#: With the sizes by default: 65,535 types of one process fill all counters.
BY_DEFAULT = {"types", "names", "events"}

_SAMPLE = re.compile(r"dnsprobe_(queries|share_exceeded)_total\{(.*)\} ([0-9.e+]+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_IN_NET = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]


@contextmanager
def _running(program: str, configuration: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the address of a running dnsprobe and the file with its log."""
    (folder / "dnsprobe.yaml").write_text(configuration, encoding="utf-8")
    log = folder / "log"
    command = [program, "run", "--config", str(folder / "dnsprobe.yaml"), "--listen", "127.0.0.1:0"]
    environment = os.environ | {"CACHE_DIRECTORY": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--log-target", "console"], stderr=output, env=environment)
    try:
        while not (found := re.search(r"http://([^/]+)/metrics", log.read_text("utf-8"))):
            if process.poll() is not None:
                sys.exit(log.read_text("utf-8"))
            time.sleep(0.1)
        yield found[1], log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _samples(address: str) -> list[tuple[str, dict[str, str], int]]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = _SAMPLE.findall(text)
    return [(metric, dict(_LABEL.findall(labels)), int(float(value))) for metric, labels, value in found]


def measure(program: str, attack: str) -> str:
    """Play an attack, and return what the victim has got."""
    configuration = CONFIGURATION if attack not in BY_DEFAULT else CONFIGURATION.replace("counters: 2048, ", "")
    process = "orphan" if attack in {"chain", "sleepers"} else "victim"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _running(program, configuration, folder) as (address, log):
            command = [*_IN_NET, sys.executable, str(HERE / "attacks.py"), attack]
            sent = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["sent"]
            time.sleep(2)
            samples = _samples(address)
        counts = [(labels, number) for _, labels, number in samples if labels.get("process") == process]
        exceeded = {f"{labels['user']} {labels['resource']}" for metric, labels, _ in samples if metric != "queries"}
        counted = sum(number for _, number in counts)
        tree = "starter" if process == "orphan" else "python"
        trees = sum(number for labels, number in counts if tree in labels["tree"])
        entries = sum(f"{process}[" in line for line in log.read_text("utf-8", "replace").splitlines())
    got = f"{sent} sent, {counted} counted, {trees} with tree, {entries} with event"
    return f"{got}; exceeded: {', '.join(sorted(exceeded)) or '-'}"


def main() -> None:
    """Print a line for each attack and program."""
    parser = argparse.ArgumentParser(description="Show what one user's flood takes from another user.")
    parser.add_argument("--other", metavar="DNSPROBE", help="another installation, measured first")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"{', '.join(ATTACKS)}; all by default")
    arguments = parser.parse_args()
    programs = [*([arguments.other] if arguments.other else []), str(Path(sys.executable).with_name("dnsprobe"))]
    for attack in arguments.attacks or ATTACKS:
        for program in programs:
            print(
                f"{attack:10} {'before' if program != programs[-1] else 'now':7} {measure(program, attack)}", flush=True
            )


if __name__ == "__main__":
    main()
