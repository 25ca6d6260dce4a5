"""Count the instructions that one send takes more with dnsprobe, in guests with the kernels of tests/vm.

Usage, as root: .venv/bin/python benchmarks/guest_cost.py [--other TREE] [KERNEL...]

QEMU counts instructions (-icount): the clock of a guest advances by a nanosecond with each one. So the figures repeat
within about ten instructions, however busy this host is. Guests have the kernels of ``scripts/vm --list``, and run this
source tree, or this one and another. Each way to attach is measured: first the instructions of a send without any
program, then how many more they are with an empty program, and with dnsprobe.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_VM = _HERE.parent / "tests/vm"
sys.path.append(str(_VM))

from children import Children  # noqa: E402 - in tests/vm
from disk import disk  # noqa: E402
from kernel import kernel  # noqa: E402
from kernels import Guest, choose  # noqa: E402
from machine import Machine  # noqa: E402
from products import Cache, cache_folder, read_manifest  # noqa: E402

_DEADLINE = 1800


def _make_tree(folder: Path, trees: dict[str, Path]) -> Path:
    """Make the files of a guest: the benchmark, the sender, and the source trees."""
    tree = folder / "tree"
    tree.mkdir()
    for name in ("programs.py", "daemon.py", "guest_measure.py"):
        shutil.copy(_HERE / name, tree)
    subprocess.run(["cc", "-O2", "-static", "-o", tree / "sends", _HERE / "sends.c"], check=True)
    for name, source in trees.items():
        for part in ("dnsprobe", "bpf"):
            shutil.copytree(source / part, tree / name / part, ignore=shutil.ignore_patterns("__pycache__"))
    folders = " ".join(f'"$PWD/{name}"' for name in trees)
    (tree / "main.sh").write_text(f'exec python3 guest_measure.py "$PWD/sends" {folders}\n', encoding="utf-8")
    return tree


def _run(guest: Guest, tree: Path, out: Path) -> bool:
    children, cache = Children(), Cache(cache_folder())
    kernel_folder = cache.get(kernel(guest, cache, children), print)
    disk_folder = cache.get(disk(guest.userland, children), print)
    print(f"\n{guest.name}: Linux {read_manifest(kernel_folder)['release']}", flush=True)
    out.mkdir()
    image = disk_folder / "disk.ext4"
    machine = Machine(kernel_folder, image, children, processors=1, counts_instructions=True)
    ending = machine.run(tree, "main.sh", _DEADLINE, out, lambda line: print(line, flush=True))
    cache.close()
    return ending.status == 0


def main() -> int:
    """Run the guests; return the exit status."""
    parser = argparse.ArgumentParser(description="Count the instructions that a send takes more with dnsprobe.")
    parser.add_argument("guest", nargs="*", help="guests, as scripts/vm --list prints them (default: all)")
    parser.add_argument("--other", type=Path, metavar="TREE", help="another source tree to compare with")
    options = parser.parse_args()
    trees = {"this": _HERE.parent} | ({"other": options.other} if options.other else {})
    try:
        guests = choose(options.guest)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory(prefix="dnsprobe-cost-") as name:
        tree = _make_tree(Path(name), trees)
        passed = [_run(guest, tree, Path(name) / guest.name) for guest in guests]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
