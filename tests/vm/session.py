"""A run over some guests, from what they are made of to their results."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from archive import ArchiveError
from children import Children, CommandError
from disk import disk
from kernel import kernel
from kernels import Guest
from machine import Machine
from products import MANIFEST, Cache, Product, Tell, cache_folder, read_manifest
from report import Counts, Result, judge

_TREE = Path(__file__).resolve().parent.parent.parent

#: Of the tree that a guest gets.
_SCRIPT = "guest/main.sh"

#: What ends a run.
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a run is to do.

    ``packages`` are the .deb files to test, for none one is built; ``guest_folder`` has the tests, main.sh among them;
    ``out`` gets a folder for each guest; ``deadline`` is in seconds for each guest; ``jobs`` is how many run at a time.
    """

    guests: tuple[Guest, ...]
    packages: tuple[Path, ...]
    guest_folder: Path
    out: Path
    deadline: float
    jobs: int
    refresh: bool


class Printer:
    """Prints whole lines from many threads, each with who says it."""

    def __init__(self, width: int) -> None:
        self._lock = threading.Lock()
        self._width = width
        self._started = time.monotonic()

    def teller(self, who: str, *, timed: bool = False) -> Tell:
        """Return what prints lines of one speaker; ``timed`` puts the time since the start before them."""

        def tell(line: str) -> None:
            elapsed = f"[{time.monotonic() - self._started:4.0f} s] " if timed else ""
            with self._lock:
                print(f"{who:<{self._width}} | {elapsed}{line}", flush=True)

        return tell


class Session:
    """One run over some guests: what they are made of is built, each is started as soon as its parts are there."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._cache = Cache(cache_folder(), refresh=wishes.refresh)
        self._children = Children()
        self._slots = threading.Semaphore(wishes.jobs)
        self._products: dict[str, Future[Path]] = {}
        self._printer = Printer(max(len(product.name) for product in self._wanted()))

    def prepare(self) -> None:
        """Build what the guests are made of. Raises what the first that cannot be built raises."""
        with self._building():
            for product in self._products.values():
                product.result()

    def run(self) -> list[Result]:
        """Return the results in the order of the guests."""
        with (
            tempfile.TemporaryDirectory(prefix="dnsprobe-vm-") as name,
            ThreadPoolExecutor(len(self._wishes.guests)) as runners,
            self._building(runners),
        ):
            tree = self._make_tree(Path(name))
            results = [runners.submit(self._guest, guest, tree) for guest in self._wishes.guests]
            return [result.result() for result in results]

    @contextlib.contextmanager
    def _building(self, *others: ThreadPoolExecutor) -> Iterator[None]:
        """Build beside what is done inside. Whatever is raised there, all that was started has been ended."""
        # Those from source, which come first and take longest, and two others beside them.
        with ThreadPoolExecutor(2 + sum(bool(guest.source) for guest in self._wishes.guests)) as builders:
            try:
                self._products = {product.name: builders.submit(self._get, product) for product in self._wanted()}
                yield
            except BaseException:
                for number in END_SIGNALS:  # ending takes seconds, and a second one would leave programs behind
                    signal.signal(number, signal.SIG_IGN)
                self._children.stop()
                for threads in (builders, *others):
                    threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _wanted(self) -> list[Product]:
        wanted: dict[str, Product] = {}
        for guest in sorted(self._wishes.guests, key=lambda guest: not guest.source):
            for product in (kernel(guest, self._cache, self._children), disk(guest.userland, self._children)):
                wanted.setdefault(product.name, product)
        return list(wanted.values())

    def _get(self, product: Product) -> Path:
        return self._cache.get(product, self._printer.teller(product.name, timed=True))

    def _make_tree(self, folder: Path) -> Path:
        tree = folder / "tree"
        tree.mkdir()
        guest_folder = self._wishes.guest_folder
        shutil.copytree(guest_folder, tree / "guest", ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
        senders = tree / "senders"
        senders.mkdir()
        for source in sorted((guest_folder / "senders").glob("*.c")):
            command: list[str | Path] = ["gcc", "-O2", "-static", "-pthread", "-o", senders / source.stem, source]
            self._children.output(command)
        for package in self._wishes.packages or [self._build_package()]:
            shutil.copy(package, tree)
        return tree

    def _build_package(self) -> Path:
        tell = self._printer.teller("package", timed=True)
        tell("scripts/build-deb")
        return Path(self._children.output([_TREE / "scripts/build-deb"], cwd=_TREE).strip().splitlines()[-1])

    def _guest(self, guest: Guest, tree: Path) -> Result:
        tell = self._printer.teller(guest.name, timed=True)
        try:
            return self._run_guest(guest, tree, tell)
        except (CommandError, ArchiveError, OSError) as error:  # of this guest: the others go on
            tell(f"not run: {error}")
            return Result(guest.name, "", Counts(), 0.0, "it could not be run", None)

    def _run_guest(self, guest: Guest, tree: Path, tell: Tell) -> Result:
        kernel_folder = self._products[f"kernel-{guest.name}"].result()
        disk_folder = self._products[f"disk-{guest.userland}"].result()
        release = read_manifest(kernel_folder)["release"]
        with self._slots:
            out = _empty(self._wishes.out / guest.name)
            for name, folder in (("kernel", kernel_folder), ("userland", disk_folder)):
                shutil.copy(folder / MANIFEST, out / f"{name}.versions")
            tell(f"starting {release} with the userland of {guest.userland}")
            machine = Machine(kernel_folder, disk_folder / "disk.ext4", self._children, processors=guest.processors)
            ending = machine.run(tree, _SCRIPT, self._wishes.deadline, out, self._printer.teller(guest.name))
        result = judge(guest.name, release, ending, out)
        tell(f"{result.trouble or 'all is well'}, after {ending.seconds:.0f} s")
        return result


def _empty(folder: Path) -> Path:
    """Return the folder, made if it is missing, emptied, and locked against other runs while this process lives."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandError(f"another run writes to {folder}: wait for it, or give another folder by --out") from None
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return folder
