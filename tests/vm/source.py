"""A kernel that Debian does not have, built from Debian's source by ``isra/build.sh``.

A product of its own, so that it is not built again when something else about its guest changes: it takes many minutes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from archive import Archive
from children import Children
from kernels import Guest
from products import LOG, Product, Tell, recipe, write_manifest

_ISRA = Path(__file__).parent / "isra"


def image(guest: Guest, children: Children) -> Product:
    """Return the image of a guest that has a source: ``vmlinuz``. The manifest has its release as ``release``."""

    def build(folder: Path, tell: Tell) -> None:
        log = folder / LOG
        work = folder / "work"
        made = work / "made"
        made.mkdir(parents=True)
        archive = Archive(guest.release, work / "apt", children, log)
        tell(f"downloading {guest.source}")
        archive.update()
        versions = archive.download([guest.source], work)
        (package,) = work.glob("*.deb")
        children.output(["dpkg-deb", "--extract", package, work / "tree"])
        tarball = work / "tree/usr/src" / f"{guest.source}.tar.xz"
        children.follow([_ISRA / "build.sh", tarball, made], log, tell, cwd=work)
        shutil.move(made / "vmlinuz", folder / "vmlinuz")
        write_manifest(folder, {"release": (made / "version").read_text().strip(), **versions})
        shutil.rmtree(work)

    files = sorted(path for path in _ISRA.iterdir() if path.is_file())
    return Product(f"image-{guest.name}", recipe(guest.release, guest.source, *files), build)
