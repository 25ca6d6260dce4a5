"""The kernel of a guest: image, initrd, and a disk with its modules."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from archive import Archive, ArchiveError
from children import Children
from kernels import Guest
from products import LOG, Cache, PrintLine, Product, read_manifest, recipe, write_manifest
from source import image

_INIT = Path(__file__).parent / "initrd-init"

#: The modules that find and mount the disks. ext4 needs crc32c, but does not depend on it. virtio_console comes early,
#: because the journal is sent through it.
_INITRD_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "crc32c", "ext4")

#: Modules below ``kernel/`` for hardware that no guest has: most of the size. Modules that are absent are not loaded at
#: each boot. WireGuard needs those in arch/x86/crypto.
_UNUSED = """
    arch/x86/kvm
    sound
    drivers/{accel,ata,bluetooth,cdrom,comedi,cpufreq,crypto,edac,gnss,gpu,hid,hwmon,i2c,iio,infiniband,input,isdn,leds}
    drivers/{media,mmc,mtd,parport,platform,power,regulator,scsi,staging,thunderbolt,usb,video}
    drivers/block/floppy
    drivers/net/{arcnet,can,dsa,ethernet,fddi,hamradio,hippi,ieee802154,phy,usb,wan,wireless,wwan}
    net/{atm,ax25,bluetooth,mac80211,netrom,nfc,rose}
"""

#: Further packages of newer kernels, which are split into image, modules and shared files.
_PARTS = re.compile(r"linux-(binary|modules|base)-[0-9]")


def kernel(guest: Guest, cache: Cache, children: Children) -> Product:
    """Return the kernel of a guest as a product with ``vmlinuz``, ``initrd``, and ``modules.ext4`` if it has modules.

    The manifest has the release (``uname -r``) as ``release``.
    """
    parts: list[str | Path] = [guest.release, Path(__file__), _INIT]

    def build(folder: Path, print_line: PrintLine) -> None:
        work = folder / "work"
        work.mkdir()
        facts = (
            _built(guest, folder, cache, children, print_line)
            if guest.source
            else _debian(guest, folder, children, print_line)
        )
        print_line(f"making the initrd of {facts['release']}")
        _make_initrd(folder, work, facts["release"], children)
        write_manifest(folder, facts)
        shutil.rmtree(work)

    if guest.source:
        parts.append(image(guest, children).recipe)
    return Product(f"kernel-{guest.name}", recipe(*parts), build)


def _built(guest: Guest, folder: Path, cache: Cache, children: Children, print_line: PrintLine) -> dict[str, str]:
    built = cache.get(image(guest, children), print_line)
    shutil.copy(built / "vmlinuz", folder / "vmlinuz")
    return read_manifest(built)


def _debian(guest: Guest, folder: Path, children: Children, print_line: PrintLine) -> dict[str, str]:
    work = folder / "work"
    archive = Archive(guest.release, work / "apt", children, folder / LOG)
    print_line(f"looking for the current kernel of {guest.release}")
    archive.update()
    packages = _packages(archive)
    print_line(f"downloading {' '.join(packages)}")
    versions = archive.download(packages, work)
    for package in sorted(work.glob("*.deb")):
        children.output(["dpkg-deb", "--extract", package, work / "tree"])
    release = _take_modules(guest, work / "tree", folder, children)
    return {"release": release, **versions}


def _packages(archive: Archive) -> list[str]:
    found = next((name for name in archive.depends("linux-image-amd64") if name.startswith("linux-image-")), None)
    if found is None:
        raise ArchiveError("linux-image-amd64 depends on no linux-image-…: has it been renamed?")
    return [found, *(name for name in archive.depends(found) if _PARTS.match(name))]


def _take_modules(guest: Guest, tree: Path, folder: Path, children: Children) -> str:
    # Newer packages have files in both folders; depmod and the guest know only one.
    modules = tree / "usr/lib/modules"
    if (tree / "lib/modules").is_dir():
        shutil.copytree(tree / "lib/modules", modules, symlinks=True, dirs_exist_ok=True)
    releases = [path.parent.name for path in modules.glob("*/kernel")]
    if len(releases) != 1:
        raise ArchiveError(f"the packages of {guest.release} have modules of {releases or 'no kernel'}: expected one")
    release = releases[0]
    boot = next(path for path in (tree / f"boot/vmlinuz-{release}", modules / release / "vmlinuz") if path.exists())
    shutil.move(boot, folder / "vmlinuz")
    for name in ("build", "source"):  # links to headers, which the guest does not have
        (modules / release / name).unlink(missing_ok=True)
    for name in _unused():
        for path in (modules / release / "kernel").glob(f"{name}.ko*"):
            path.unlink()
        shutil.rmtree(modules / release / "kernel" / name, ignore_errors=True)  # some kernels lack it
    children.output(["depmod", "-b", tree / "usr", release])
    size = sum(path.stat().st_size for path in modules.rglob("*") if path.is_file())
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", "modules"]
    megabytes = size * 3 // 2 // 2**20 + 32
    children.output(["mke2fs", *options, "-d", modules, folder / "modules.ext4", f"{megabytes}M"])
    return release


def _unused() -> Iterable[str]:
    for word in _UNUSED.split():
        match = re.fullmatch(r"(.*)\{(.*)}", word)
        yield from (match[1] + name for name in match[2].split(",")) if match else [word]


def _make_initrd(folder: Path, work: Path, release: str, children: Children) -> None:
    initrd = work / "initrd"
    for name in ("bin", "dev", "m", "proc", "root", "sys"):
        (initrd / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", initrd / "bin/busybox")
    shutil.copy(_INIT, initrd / "init")
    (initrd / "init").chmod(0o755)
    names = []
    for module in _initrd_modules(work / "tree", release, children):
        name = module.name.split(".ko")[0] + ".ko"
        # insmod of busybox cannot read compressed modules.
        (initrd / "m" / name).write_bytes(_decompress(module, children))
        names.append(name)
    (initrd / "modlist").write_text("".join(f"{name}\n" for name in names))
    disks = ["root", "modules"] if (folder / "modules.ext4").exists() else ["root"]
    (initrd / "disks").write_text("".join(f"{name}\n" for name in disks))
    script = 'cd "$1" && find . -print0 | cpio --null --create --format=newc --quiet --owner=0:0 | gzip -6 >"$2"'
    children.output(["bash", "-o", "pipefail", "-c", script, "initrd", initrd, folder / "initrd"])


def _initrd_modules(tree: Path, release: str, children: Children) -> list[Path]:
    if not (tree / "usr/lib/modules" / release).is_dir():
        return []
    found: dict[Path, None] = {}
    # One by one, and without errors: kernels differ in which of them are built in or exist. A kernel that lacks a
    # necessary one does not boot, and its console shows why.
    for name in _INITRD_MODULES:
        command: list[str | Path] = ["modprobe", "-d", tree / "usr", "-S", release, "--show-depends", name]
        shown = children.output(["sh", "-c", '"$@" 2>/dev/null || :', "sh", *command])
        found |= dict.fromkeys(Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod "))
    return list(found)


def _decompress(module: Path, children: Children) -> bytes:
    match module.suffix:
        case ".xz":
            return lzma.decompress(module.read_bytes())
        case ".gz":
            return gzip.decompress(module.read_bytes())
        case ".zst":
            unpacked = module.with_suffix("")
            children.output(["zstd", "--quiet", "--decompress", "--force", "-o", unpacked, module])
            return unpacked.read_bytes()
    return module.read_bytes()
