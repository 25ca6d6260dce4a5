"""One guest at work: QEMU, from the first boot to what it leaves behind."""

from __future__ import annotations

import os
import re
import select
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from children import Children, Command, CommandError, Stopped
from products import Tell

#: Exit status by which a script asks for a reboot.
REBOOT = 85

#: kernel/reboot.c, at the level of emergencies. Neither a panic nor a reset says so.
_PROPER_END = re.compile(r"\] reboot: Restarting system")

#: Lines of the console that are shown of a guest that did not end well.
_SHOWN = 25

_KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "quiet loglevel=4",
    # An oops or a panic ends the guest at once: QEMU has -no-reboot.
    "panic=-1 oops=panic",
    # Protection from other guests on the same processor, at the price of time.
    "mitigations=off init_on_alloc=0",
    # An emulated processor can stand still for seconds when the host is busy.
    "nowatchdog rcupdate.rcu_cpu_stall_timeout=120",
    # QEMU translates code for the address that it is at: at another one in each process, libraries are translated anew.
    "norandmaps",
)


#: What happened to a guest that did not report a status.
Fate = Literal["", "deadline", "died"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a guest ended: the exit status of its script, or None and what happened instead."""

    status: int | None
    fate: Fate
    boots: int
    seconds: float


class Machine:
    """A guest of a kernel (folder of vmlinuz, initrd and perhaps modules.ext4) and a disk, which is not changed."""

    def __init__(self, kernel: Path, disk: Path, children: Children, *, processors: int, memory: int = 2048) -> None:
        self._kernel = kernel
        self._disk = disk
        self._children = children
        self._memory = memory
        self._processors = processors

    def run(self, tree: Path, script: str, deadline: float, out: Path, tell: Tell) -> Ending:
        """Run ``script``, a path below ``tree``, as root in /mnt/tree of the guest, and again after each reboot.

        ``deadline`` is in seconds, for all boots together. ``tell`` gets each line of the script. The folder ``out``
        gets console.log, journal.log and output.log, written while the guest runs, and in ``out/`` what the script has
        left in /mnt/out of the guest.
        """
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="dnsprobe-vm-") as name:
            work = Path(name)
            _pack(tree, work / "tree.tar")
            overlay = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]
            self._children.output(["qemu-img", *overlay, self._disk.resolve(), work / "root.qcow2"])
            boot = 0
            while True:
                status, fate = self._boot(work, script, boot, started + deadline, out, tell)
                boot += 1
                if status != REBOOT:
                    return Ending(status, fate, boot, time.monotonic() - started)
                tell(f"reboot at the script's wish, after {time.monotonic() - started:.0f} s")

    def _boot(
        self, work: Path, script: str, boot: int, deadline: float, out: Path, tell: Tell
    ) -> tuple[int | None, Fate]:
        for name in ("status", "out"):
            (work / name).write_bytes(b"")
        for name in ("console.log", "journal.log"):
            with (out / name).open("a") as file:
                file.write(f"---- boot {boot} ----\n")
        said_before = (out / "console.log").stat().st_size
        arguments = " ".join((*_KERNEL_ARGUMENTS, f"vm.boot={boot} vm.script={script}"))
        in_time = self._attend([*self._qemu(work, out), "-append", arguments], work, out, deadline, tell)
        if (work / "out").stat().st_size:
            self._unpack(work / "out", out / "out", tell)
        said = (out / "console.log").read_bytes()[said_before:].decode(errors="replace")
        status = (work / "status").read_text().strip()
        # After its script a guest can still crash or hang, as the kernel and all services stop.
        if in_time and status.isdigit() and _PROPER_END.search(said):
            return int(status), ""
        for line in said.splitlines()[-_SHOWN:]:
            tell(f"console: {line}")
        return None, "died" if in_time else "deadline"

    def _attend(self, qemu: Command, work: Path, out: Path, deadline: float, tell: Tell) -> bool:
        """Run QEMU to its end; return whether that was before the deadline."""
        with (work / "qemu.log").open("w+b") as complaints, (out / "output.log").open("a") as output:
            child = self._children.start(qemu, stdout=subprocess.PIPE, stderr=complaints)
            try:
                for line in _lines(child, deadline):
                    output.write(line + "\n")
                    output.flush()
                    tell(line)
                # QEMU closes its output a moment before it ends.
                in_time = _ended(child, deadline)
            finally:
                self._children.end(child)
            if self._children.stopping:
                raise Stopped
            if in_time:  # else it complains of having been ended
                complaints.seek(0)
                for line in complaints.read().decode(errors="replace").splitlines():
                    tell(f"qemu: {line}")
        return in_time

    def _qemu(self, work: Path, out: Path) -> list[str | Path]:
        command: list[str | Path] = [
            *("qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,thread=multi"),
            # Of what a newer one has (wide vectors with their state to be saved, SMAP, five levels of page tables), all
            # costs an emulated processor time. With cmpxchg16b, QEMU 7.2 corrupts the slab of 6.12 guests in about half
            # of all boots.
            *("-cpu", "Nehalem,cx16=off"),
            *("-smp", str(self._processors), "-m", str(self._memory)),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none", "-nic", "none"),
            *("-kernel", self._kernel / "vmlinuz", "-initrd", self._kernel / "initrd"),
            # Without it the guest waits for entropy.
            *("-device", "virtio-rng-pci"),
            *_disk("root", work / "root.qcow2", "format=qcow2"),
            *_disk("tree", work / "tree.tar", "format=raw,readonly=on"),
            *_file("console", out / "console.log"),
            *("-serial", "chardev:console"),
            # Ports of virtio-serial rather than more emulated UARTs, of which each byte leaves the guest.
            *("-device", "virtio-serial-pci"),
            *_port("script", Path("/dev/stdout")),
            *_port("journal", out / "journal.log"),
            *_port("status", work / "status"),
            *_port("out", work / "out"),
        ]
        if (self._kernel / "modules.ext4").exists():
            command += _disk("modules", self._kernel / "modules.ext4", "format=raw,readonly=on")
        return command

    def _unpack(self, tar: Path, folder: Path, tell: Tell) -> None:
        folder.mkdir(exist_ok=True)
        try:
            self._children.output(["tar", "--no-same-owner", "-C", folder, "-xf", tar])
        except CommandError as error:
            tell(f"what the guest left in /mnt/out is incomplete: {error}")


def _option(path: Path) -> str:
    return str(path).replace(",", ",,")  # the comma of QEMU's options


def _disk(name: str, path: Path, how: str) -> list[str]:
    # Unsafe: no fsync reaches the host, which is not to keep the disk.
    drive = f"if=none,id={name},file={_option(path)},cache=unsafe,{how}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name},serial={name}"]


def _file(name: str, path: Path) -> list[str]:
    return ["-chardev", f"file,id={name},path={_option(path)},append=on"]


def _port(name: str, path: Path) -> list[str]:
    return [*_file(name, path), "-device", f"virtserialport,chardev={name},name={name}"]


def _pack(tree: Path, target: Path) -> None:
    def owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        return info

    with tarfile.open(target, "w") as tar:
        tar.add(tree, arcname="tree", filter=owned_by_root)


def _lines(child: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """Yield what a program prints, line by line, until it ends or the deadline (of the monotonic clock) is over."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    rest = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            break
        chunk = os.read(descriptor, 65536)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")


def _ended(child: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True
