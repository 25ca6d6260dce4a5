"""A run over some guests, from their kernels and disks to their results."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
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
from products import MANIFEST, Cache, PrintLine, Product, cache_folder, read_manifest
from report import Counts, Result, judge

_TREE = Path(__file__).resolve().parent.parent.parent

#: The script to run, as a path below the tree that a guest gets.
_SCRIPT = "guest/main.sh"

#: What is added to the niceness of guests that run beside other work, so that it does not wait for them.
_LOW_PRIORITY = 10

#: The signals that end a run.
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Request:
    """The options of a run.

    ``packages`` are the .deb files to test, empty to build one; ``guest_folder`` has the tests and main.sh; ``out``
    gets a folder for each guest; ``deadline`` is in seconds for each guest; ``jobs`` is how many guests run at a time,
    but only one until the process ``beside`` has ended; ``refresh`` builds kernels and disks again.
    """

    guests: tuple[Guest, ...]
    packages: tuple[Path, ...]
    guest_folder: Path
    out: Path
    deadline: float
    jobs: int
    refresh: bool
    beside: int | None = None


class Printer:
    """Prints whole lines from many threads, each with the name of its source."""

    def __init__(self, width: int) -> None:
        self._lock = threading.Lock()
        self._width = width
        self._started = time.monotonic()

    def printer(self, source: str, *, timed: bool = False) -> PrintLine:
        """Return a function that prints the lines of one source; ``timed`` adds the time since the start."""

        def print_line(line: str) -> None:
            elapsed = f"[{time.monotonic() - self._started:4.0f} s] " if timed else ""
            with self._lock:
                print(f"{source:<{self._width}} | {elapsed}{line}", flush=True)

        return print_line


class Session:
    """One run over some guests. Kernels and disks are built in parallel; a guest starts when its parts are ready."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._cache = Cache(cache_folder(), refresh=request.refresh)
        self._children = Children()
        self._slots = threading.Semaphore(request.jobs if request.beside is None else 1)
        self._products: dict[str, Future[Path]] = {}
        self._printer = Printer(max(len(product.name) for product in self._wanted()))

    def prepare(self) -> None:
        """Build kernels and disks. Raises the error of the first that cannot be built."""
        with self._building():
            for product in self._products.values():
                product.result()

    def run(self) -> list[Result]:
        """Run the guests, and return the results in their order."""
        if self._request.beside is not None:
            os.nice(_LOW_PRIORITY)
            threading.Thread(target=self._add_slots, args=(self._request.beside,), daemon=True).start()
        with (
            tempfile.TemporaryDirectory(prefix="dnsprobe-vm-") as name,
            ThreadPoolExecutor(len(self._request.guests)) as runners,
            self._building(runners),
        ):
            tree = self._make_tree(Path(name))
            order = list(self._request.guests)
            if self._request.beside is not None:
                order.sort(key=lambda guest: guest.processors)  # the other process needs them, too
            results = {guest.name: runners.submit(self._guest, guest, tree) for guest in order}
            return [results[guest.name].result() for guest in self._request.guests]

    def _add_slots(self, beside: int) -> None:
        """Run more guests at a time once a process has ended."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(beside)
            select.select([descriptor], [], [])
            os.close(descriptor)
        if self._request.jobs > 1:
            self._slots.release(self._request.jobs - 1)

    @contextlib.contextmanager
    def _building(self, *others: ThreadPoolExecutor) -> Iterator[None]:
        """Build kernels and disks while the body runs. If the body raises, all children have ended afterwards."""
        # One thread for each kernel from source, which come first and take longest, and two for the rest.
        with ThreadPoolExecutor(2 + sum(bool(guest.source) for guest in self._request.guests)) as builders:
            try:
                self._products = {product.name: builders.submit(self._get, product) for product in self._wanted()}
                yield
            except BaseException:
                for number in END_SIGNALS:  # a second signal, while programs are ended, would leave some running
                    signal.signal(number, signal.SIG_IGN)
                self._children.stop()
                for threads in (builders, *others):
                    threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _wanted(self) -> list[Product]:
        wanted: dict[str, Product] = {}
        for guest in sorted(self._request.guests, key=lambda guest: not guest.source):
            for product in (kernel(guest, self._cache, self._children), disk(guest.userland, self._children)):
                wanted.setdefault(product.name, product)
        return list(wanted.values())

    def _get(self, product: Product) -> Path:
        return self._cache.get(product, self._printer.printer(product.name, timed=True))

    def _make_tree(self, folder: Path) -> Path:
        tree = folder / "tree"
        tree.mkdir()
        guest_folder = self._request.guest_folder
        shutil.copytree(guest_folder, tree / "guest", ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
        senders = tree / "senders"
        senders.mkdir()
        for source in sorted((guest_folder / "senders").glob("*.c")):
            command: list[str | Path] = ["gcc", "-O2", "-static", "-pthread", "-o", senders / source.stem, source]
            self._children.output(command)
        for package in self._request.packages or [self._build_package()]:
            shutil.copy(package, tree)
        return tree

    def _build_package(self) -> Path:
        print_line = self._printer.printer("package", timed=True)
        print_line("scripts/build-deb")
        return Path(self._children.output([_TREE / "scripts/build-deb"], cwd=_TREE).strip().splitlines()[-1])

    def _guest(self, guest: Guest, tree: Path) -> Result:
        print_line = self._printer.printer(guest.name, timed=True)
        try:
            return self._run_guest(guest, tree, print_line)
        except (CommandError, ArchiveError, OSError) as error:  # the other guests go on
            print_line(f"not run: {error}")
            return Result(guest.name, "", Counts(), 0.0, "it could not be run", None)

    def _run_guest(self, guest: Guest, tree: Path, print_line: PrintLine) -> Result:
        kernel_folder = self._products[f"kernel-{guest.name}"].result()
        disk_folder = self._products[f"disk-{guest.userland}"].result()
        release = read_manifest(kernel_folder)["release"]
        with self._slots:
            out = _claim(self._request.out / guest.name)
            for name, folder in (("kernel", kernel_folder), ("userland", disk_folder)):
                shutil.copy(folder / MANIFEST, out / f"{name}.versions")
            print_line(f"starting {release} with the userland of {guest.userland}")
            machine = Machine(
                kernel_folder,
                disk_folder / "disk.ext4",
                self._children,
                processors=guest.processors,
                arguments=[
                    *(f"vm.{name}=1" for name in ("systemd", "preemption", "hooks") if getattr(guest, name)),
                    *guest.arguments,
                ],
            )
            ending = machine.run(tree, _SCRIPT, self._request.deadline, out, self._printer.printer(guest.name))
        result = judge(guest.name, release, ending, out)
        print_line(f"{result.trouble or 'all tests passed'}, after {ending.seconds:.0f} s")
        return result


def _claim(folder: Path) -> Path:
    """Create or empty a folder, lock it against other runs until this process ends, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandError(
            f"another run writes to {folder}: wait until it ends, or choose another folder with --out"
        ) from None
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return folder
