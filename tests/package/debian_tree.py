"""A minimal Debian of some release in a folder, to test the package where nothing else is installed."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from archive import Archive
from children import Children
from products import LOG, Cache, PrintLine, Product, cache_folder, recipe

_REPOSITORY = Path(__file__).parents[2]

# The essential packages, apt, and systemctl to ask about units.
_MINIMAL = ("--mode=root", "--variant=apt", "--include=systemd", '--aptopt=APT::Install-Recommends "false"')

# In a separate mount namespace, the mounts disappear with the last process, however that one ends. Each step uses exec,
# so the program has the pid of the child that was started.
_ENTER = """\
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --rbind /dev "$1/dev"
root=$1 folder=$2
shift 2
exec chroot "$root" /usr/bin/env -i --chdir="$folder" HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
"""
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def progress_printer(config: pytest.Config) -> PrintLine:
    """Return a function that prints a line of progress past pytest's capture."""
    capture = config.pluginmanager.getplugin("capturemanager")

    def print_line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\npackage: {text}", end="", file=sys.stderr, flush=True)

    return print_line


@functools.cache
def build_deb() -> Path:
    """Return the package of the working tree, built once for all tests. Raises AssertionError with its errors."""
    folder = tempfile.mkdtemp(prefix="dnsprobe-package-")
    atexit.register(shutil.rmtree, folder)
    done = subprocess.run([_REPOSITORY / "scripts/build-deb", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


class DebianTree:
    """A root file system; programs in it see the host's network, processes and kernel."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._remembered: dict[str, str] = {}

    def command(
        self, *arguments: str, folder: str = "/root", environment: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return the command that runs a program in the tree, in ``folder`` of the tree, with only ``environment``."""
        variables = [f"{name}={value}" for name, value in {"PATH": _PATH, **(environment or {})}.items()]
        enter = ["unshare", "--mount", "--propagation=private", "sh", "-ec", _ENTER, "sh"]
        return [*enter, str(self.root), folder, *variables, *arguments]

    def run(self, *arguments: str, status: int = 0, environment: Mapping[str, str] | None = None) -> str:
        """Run a program to its end and return what it printed. Raises AssertionError if it ends with another status."""
        done = subprocess.run(
            self.command(*arguments, environment=environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def apt(self, *arguments: str) -> str:
        """Run apt-get without recommended packages."""
        return self.run("apt-get", "-q", "-y", "--no-install-recommends", *arguments)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the tree, and create the folders above it."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        place.chmod(mode)

    def remember(self) -> None:
        """Save the present contents for :meth:`changes`."""
        self._remembered = self._contents()

    def changes(self) -> set[str]:
        """Return the paths that were added, removed or changed since :meth:`remember`, without those of packages."""
        now, before = self._contents(), self._remembered
        return {path for path in now.keys() | before.keys() if now.get(path) != before.get(path)} - self._owned()

    def _contents(self) -> dict[str, str]:
        """Return all paths, each with the target of a link, the digest of a file, or an empty string."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            for name in folders + files:
                path = Path(folder, name)
                found[f"/{path.relative_to(self.root)}"] = _content(path)
        return found

    def _owned(self) -> set[str]:
        lists = (self.root / "var/lib/dpkg/info").glob("*.list")
        paths = {path for file in lists for path in file.read_text(encoding="utf-8").splitlines()}
        # Packages of Debian 12 list files below /lib and the like, which are links to /usr/lib.
        return paths | {f"/usr{path}" for path in paths}


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def debian_tree(release: str, print_line: PrintLine) -> Iterator[DebianTree]:
    """Yield a fresh tree, whose apt reaches the archive in the way that the host does; remove it afterwards."""
    children = Children()
    try:
        packed = Cache(cache_folder()).get(_minimal(release, children), print_line) / "tree.tar"
        with tempfile.TemporaryDirectory(prefix="dnsprobe-package-", dir=_large_folder()) as folder:
            archive = Archive(release, Path(folder) / "apt", children, Path(folder) / LOG)
            root = Path(folder) / "root"
            root.mkdir()
            subprocess.run(["tar", "-x", "--numeric-owner", "-f", packed, "-C", root], check=True)
            _connect(root, archive)
            yield DebianTree(root)
    finally:
        children.stop()


def _large_folder() -> str | None:
    # apt is twice as fast in memory. A tree takes a quarter of the memory that has to be free.
    memory = "/dev/shm"
    return memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > 4 << 30 else None


def _minimal(release: str, children: Children) -> Product:
    def build(folder: Path, print_line: PrintLine) -> None:
        print_line(f"installing a minimal Debian {release}")
        archive = Archive(release, folder / "apt", children, folder / LOG)
        command = ["unshare", "--mount", "--propagation=private", "mmdebstrap", *_MINIMAL]
        options = [f"--aptopt={archive.settings}"]
        place = folder / "tree.tar"
        with tempfile.TemporaryDirectory(prefix="dnsprobe-package-", dir=_large_folder()) as large:
            environment = {"LC_ALL": "C", "TMPDIR": large}
            children.run([*command, *options, release, place, archive.sources], folder / LOG, env=environment)
        shutil.rmtree(folder / "apt")

    return Product(f"minimal-{release}", recipe(release, *_MINIMAL), build)


def _connect(root: Path, archive: Archive) -> None:
    """Give apt of the tree the sources and settings that the host has now: they may be newer than the tree."""
    apt = root / "etc/apt"
    for path in [apt / "sources.list", *(apt / "sources.list.d").iterdir(), apt / "apt.conf.d/99mmdebstrap"]:
        path.unlink(missing_ok=True)
    shutil.copy(archive.sources, apt / "sources.list.d")
    settings = archive.settings.read_text(encoding="utf-8") + 'Acquire::Languages "none";\n'
    bundle = re.search(r'^Acquire::https::CAInfo "(.+)";$', settings, re.MULTILINE)
    authorities = Path(bundle[1] if bundle else "/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        shutil.copy(authorities, apt / "authorities.crt")
        settings += 'Acquire::https::CAInfo "/etc/apt/authorities.crt";\n'
    (apt / "apt.conf.d/99host").write_text(settings, encoding="utf-8")
    for key in re.findall(r"^Signed-By: (/.+)$", archive.sources.read_text(encoding="utf-8"), re.MULTILINE):
        place = root / key.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(key, place)
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    # No fsync: nobody needs the tree after a power cut.
    (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n", encoding="utf-8")
