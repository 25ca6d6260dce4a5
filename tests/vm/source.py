"""A kernel that is not in Debian's archive, built from Debian's source by ``isra/build.sh``.

A separate product, so that a change to anything else of its guest does not build it again: that takes many minutes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from archive import Archive
from children import Children
from kernels import Guest
from products import LOG, PrintLine, Product, recipe, write_manifest

_ISRA = Path(__file__).parent / "isra"


def image(guest: Guest, children: Children) -> Product:
    """Return the image of a guest with a source, as a product with ``vmlinuz`` and a manifest with its ``release``."""

    def build(folder: Path, print_line: PrintLine) -> None:
        log = folder / LOG
        work = folder / "work"
        made = work / "made"
        made.mkdir(parents=True)
        archive = Archive(guest.release, work / "apt", children, log)
        print_line(f"downloading {guest.source}")
        archive.update()
        versions = archive.download([guest.source], work)
        (package,) = work.glob("*.deb")
        children.output(["dpkg-deb", "--extract", package, work / "tree"])
        tarball = work / "tree/usr/src" / f"{guest.source}.tar.xz"
        children.follow([_ISRA / "build.sh", tarball, made], log, print_line, cwd=work)
        shutil.move(made / "vmlinuz", folder / "vmlinuz")
        write_manifest(folder, {"release": (made / "version").read_text().strip(), **versions})
        shutil.rmtree(work)

    files = sorted(path for path in _ISRA.iterdir() if path.is_file())
    return Product(f"image-{guest.name}", recipe(guest.release, guest.source, *files), build)
