"""What guests are made of, kept between runs: built once, found by what it is made from.

    CACHE/NAME/lock                 held while somebody builds or looks for the product
    CACHE/NAME/RECIPE-TIME/         a finished product; a shared lock on the folder means that a run uses it
    CACHE/NAME/building-*/          an unfinished one, of the holder of the lock

A product is renamed to its place when it is complete, so one that can be found is whole.
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

#: Gets one line of progress.
Tell = Callable[[str], None]

MANIFEST = "manifest"
LOG = "build.log"


def recipe(*parts: str | Path) -> str:
    """Return 12 hexadecimal digits that change whenever one of the texts, or the text of one of the files, does."""
    digest = hashlib.sha256()
    for part in parts:
        text = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(b"%d:%s" % (len(text), text))
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """Return where products are kept, outside of the tree: $XDG_CACHE_HOME/dnsprobe-vm, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnsprobe-vm"


@dataclass(frozen=True, slots=True)
class Product:
    """Something to build: ``build`` fills an empty folder, and writes a manifest of what it took from the archive."""

    name: str
    recipe: str
    build: Callable[[Path, Tell], None]


def read_manifest(folder: Path) -> dict[str, str]:
    """Return the manifest of a product: package or fact, and its version or value."""
    lines = (folder / MANIFEST).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def write_manifest(folder: Path, facts: dict[str, str]) -> None:
    """Write the manifest of a product."""
    (folder / MANIFEST).write_text("".join(f"{key}={value}\n" for key, value in facts.items()))


class Cache:
    """The folder of products; ``refresh`` builds anew what exists."""

    def __init__(self, folder: Path, *, refresh: bool = False) -> None:
        self._folder = folder
        self._refresh = refresh
        self._held: list[int] = []

    def get(self, product: Product, tell: Tell) -> Path:
        """Return the folder of a product, built if it is missing. It stays in place until :meth:`close`."""
        place = self._folder / product.name
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place / "lock", tell):
            found = None if self._refresh else _newest(place, product.recipe)
            if found is None:
                found = _build(place, product, tell)
                self._hold(found)
                _remove_outdated(place, found)
            else:
                self._hold(found)
        return found

    def close(self) -> None:
        """Let other runs remove the products that this one has got."""
        while self._held:
            os.close(self._held.pop())

    def _hold(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        self._held.append(descriptor)


def _newest(place: Path, digits: str) -> Path | None:
    return max(place.glob(f"{digits}-*"), default=None)


def _build(place: Path, product: Product, tell: Tell) -> Path:
    for left in place.glob("building-*"):  # of a run that was killed: the lock is ours
        # What it has started may still be ending, and write: then the next build removes the rest.
        shutil.rmtree(left, ignore_errors=True)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="building-", dir=place))
    try:
        folder.chmod(0o755)
        product.build(folder, tell)
        # Nanoseconds, as a refreshed product must not get the name of the one before.
        finished = folder.rename(place / f"{product.recipe}-{time.time_ns()}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tell(f"built in {time.monotonic() - started:.0f} s")
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
            pass  # another run uses it: the next build removes it
        finally:
            os.close(descriptor)


@contextmanager
def _locked(path: Path, tell: Tell) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another run that builds it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
