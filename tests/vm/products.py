"""The cache of kernels, disks and other parts of guests. Each is built once, and found by a digest of its sources.

    CACHE/NAME/lock                 held while a run looks for the product or builds it
    CACHE/NAME/RECIPE-TIME/         a finished product; a run that uses it holds a shared lock on the folder
    CACHE/NAME/building-*/          an unfinished product of the run that holds the lock

A product is renamed to its place when it is complete, so every product that is found is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: A function that prints one line of progress.
PrintLine = Callable[[str], None]

MANIFEST = "manifest"
LOG = "build.log"


def recipe(*parts: str | Path) -> str:
    """Return 12 hexadecimal digits that change with any of the texts and with the contents of any of the files."""
    digest = hashlib.sha256()
    for part in parts:
        text = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(b"%d:%s" % (len(text), text))
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """Return the folder of all products: $XDG_CACHE_HOME/dnsprobe-vm, by default ~/.cache/dnsprobe-vm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnsprobe-vm"


@dataclass(frozen=True, slots=True)
class Product:
    """A part of a guest. ``build`` fills an empty folder, and writes a manifest of the packages that it used."""

    name: str
    recipe: str
    build: Callable[[Path, PrintLine], None]


def read_manifest(folder: Path) -> dict[str, str]:
    """Return the manifest of a product: the version of each package, and other facts."""
    lines = (folder / MANIFEST).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def write_manifest(folder: Path, facts: dict[str, str]) -> None:
    """Write the manifest of a product."""
    (folder / MANIFEST).write_text("".join(f"{key}={value}\n" for key, value in facts.items()))


class Cache:
    """The folder of products. ``refresh`` builds products again that exist."""

    def __init__(self, folder: Path, *, refresh: bool = False) -> None:
        self._folder = folder
        self._refresh = refresh
        self._held: list[int] = []

    def get(self, product: Product, print_line: PrintLine) -> Path:
        """Return the folder of a product; build it if it is missing. It stays in place until :meth:`close`."""
        place = self._folder / product.name
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place / "lock", print_line):
            found = None if self._refresh else _newest(place, product.recipe)
            if found is None:
                found = _build(place, product, print_line)
                self._hold(found)
                _remove_outdated(place, found)
            else:
                self._hold(found)
        return found

    def close(self) -> None:
        """Allow other runs to remove the products that this run used."""
        while self._held:
            os.close(self._held.pop())

    def _hold(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        self._held.append(descriptor)


def _newest(place: Path, digits: str) -> Path | None:
    return max(place.glob(f"{digits}-*"), default=None)


def _build(place: Path, product: Product, print_line: PrintLine) -> Path:
    # This run holds the lock, so these folders are left from a run that was killed.
    for left in place.glob("building-*"):
        # Children of that run may still write to it. The next build then removes the rest.
        shutil.rmtree(left, ignore_errors=True)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="building-", dir=place))
    try:
        folder.chmod(0o755)
        product.build(folder, print_line)
        # In nanoseconds: a refreshed product must not get the name of the old one.
        finished = folder.rename(place / f"{product.recipe}-{time.time_ns()}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_line(f"built in {time.monotonic() - started:.0f} s")
    return finished


def _remove_outdated(place: Path, current: Path) -> None:
    for folder in place.iterdir():
        if not folder.is_dir() or folder == current:
            continue
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            pass  # another run uses it; the next build removes it
        finally:
            os.close(descriptor)


@contextmanager
def _locked(path: Path, print_line: PrintLine) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print_line("waiting for another run that builds it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
