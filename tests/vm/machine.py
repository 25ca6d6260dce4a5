"""Run one guest in QEMU, from the first boot to its results. README.md explains the ports and the kernel arguments."""

from __future__ import annotations

import os
import re
import select
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from children import Children, Command, CommandError, Stopped
from products import PrintLine

#: Exit status by which a script asks for a reboot.
REBOOT = 85

#: The kernel prints it before a proper restart (kernel/reboot.c), but not after a panic or a reset.
_PROPER_END = re.compile(r"\] reboot: Restarting system")

#: Lines of the console to show for a guest that did not end properly.
_SHOWN = 25

_KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "quiet loglevel=4",
    # An oops or a panic ends the guest at once, because QEMU runs with -no-reboot.
    "panic=-1 oops=panic",
    # Mitigations would protect the guests on one processor from each other, and cost time.
    "mitigations=off init_on_alloc=0",
    # An emulated processor can stand still for seconds while the host is busy.
    "nowatchdog rcupdate.rcu_cpu_stall_timeout=120",
    # QEMU translates code for its address in memory. Without random addresses, it translates a library once for all
    # processes.
    "norandmaps",
)


#: What happened to a guest that returned no status.
Fate = Literal["", "deadline", "died"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a guest ended: the exit status of its script; or None, and what happened instead."""

    status: int | None
    fate: Fate
    boots: int
    seconds: float


class Machine:
    """A guest with a kernel (a folder with vmlinuz, initrd and perhaps modules.ext4) and a disk, which stays unchanged.

    ``memory`` is in MiB; ``arguments`` are appended to the kernel command line. With ``counts_instructions``, the
    clocks of the guest advance by a nanosecond with each instruction, so durations repeat; it needs one processor.
    """

    def __init__(
        self,
        kernel: Path,
        disk: Path,
        children: Children,
        *,
        processors: int,
        arguments: Sequence[str] = (),
        memory: int = 2048,
        counts_instructions: bool = False,
    ) -> None:
        self._kernel = kernel
        self._disk = disk
        self._children = children
        self._memory = memory
        self._processors = processors
        self._arguments = arguments
        self._counts_instructions = counts_instructions

    def run(self, tree: Path, script: str, deadline: float, out: Path, print_line: PrintLine) -> Ending:
        """Run ``script``, a path below ``tree``, as root in /mnt/tree of the guest, and again after each reboot.

        ``deadline`` is in seconds, for all boots together. ``print_line`` gets each line that the script prints. The
        folder ``out`` gets console.log, journal.log and output.log, written while the guest runs, and in its folder
        ``out`` the contents of /mnt/out of the guest.
        """
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="dnsprobe-vm-") as name:
            work = Path(name)
            _pack(tree, work / "tree.tar")
            overlay = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]
            self._children.output(["qemu-img", *overlay, self._disk.resolve(), work / "root.qcow2"])
            boot = 0
            while True:
                status, fate = self._boot(work, script, boot, started + deadline, out, print_line)
                boot += 1
                if status != REBOOT:
                    return Ending(status, fate, boot, time.monotonic() - started)
                print_line(f"the script asked for a reboot, after {time.monotonic() - started:.0f} s")

    def _boot(
        self, work: Path, script: str, boot: int, deadline: float, out: Path, print_line: PrintLine
    ) -> tuple[int | None, Fate]:
        for name in ("status", "out"):
            (work / name).write_bytes(b"")
        for name in ("console.log", "journal.log"):
            with (out / name).open("a") as file:
                file.write(f"---- boot {boot} ----\n")
        console_before = (out / "console.log").stat().st_size
        arguments = " ".join((*_KERNEL_ARGUMENTS, f"vm.boot={boot} vm.script={script}", *self._arguments))
        in_time = self._run_qemu(
            [*self._qemu_command(work, out), "-append", arguments], work, out, deadline, print_line
        )
        if (work / "out").stat().st_size:
            self._unpack(work / "out", out / "out", print_line)
        console = (out / "console.log").read_bytes()[console_before:].decode(errors="replace")
        status = (work / "status").read_text().strip()
        # A guest can still crash or hang after its script, while services and the kernel stop.
        if in_time and status.isdigit() and _PROPER_END.search(console):
            return int(status), ""
        for line in console.splitlines()[-_SHOWN:]:
            print_line(f"console: {line}")
        return None, "died" if in_time else "deadline"

    def _run_qemu(self, qemu: Command, work: Path, out: Path, deadline: float, print_line: PrintLine) -> bool:
        """Run QEMU until it ends or the deadline passes; return whether it ended in time."""
        with (work / "qemu.log").open("w+b") as complaints, (out / "output.log").open("a") as output:
            child = self._children.start(qemu, stdout=subprocess.PIPE, stderr=complaints)
            try:
                for line in _lines(child, deadline):
                    output.write(line + "\n")
                    output.flush()
                    print_line(line)
                # QEMU closes its output a moment before it exits.
                in_time = _ended(child, deadline)
            finally:
                self._children.end(child)
            if self._children.stopping:
                raise Stopped
            if in_time:  # otherwise it complains about the signal that ended it
                complaints.seek(0)
                for line in complaints.read().decode(errors="replace").splitlines():
                    print_line(f"qemu: {line}")
        return in_time

    def _qemu_command(self, work: Path, out: Path) -> list[str | Path]:
        command: list[str | Path] = [
            *("qemu-system-x86_64", "-machine", "pc"),
            # sleep=off: while the guest waits, its clocks jump to the next timer.
            *(
                ("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off")
                if self._counts_instructions
                else ("-accel", "tcg,thread=multi")
            ),
            # An old processor: emulating newer features (wide vectors whose state is saved, SMAP, five levels of page
            # tables) costs time. With cmpxchg16b, QEMU 7.2 corrupts the slab of 6.12 guests in about half of all boots.
            *("-cpu", "Nehalem,cx16=off"),
            *("-smp", str(self._processors), "-m", str(self._memory)),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none", "-nic", "none"),
            *("-kernel", self._kernel / "vmlinuz", "-initrd", self._kernel / "initrd"),
            # Without it, the guest waits for entropy.
            *("-device", "virtio-rng-pci"),
            *_disk("root", work / "root.qcow2", "format=qcow2"),
            *_disk("tree", work / "tree.tar", "format=raw,readonly=on"),
            *_file("console", out / "console.log"),
            *("-serial", "chardev:console"),
            # Ports of virtio-serial instead of more emulated UARTs, where each byte costs an exit from the guest.
            *("-device", "virtio-serial-pci"),
            *_port("script", Path("/dev/stdout")),
            *_port("journal", out / "journal.log"),
            *_port("status", work / "status"),
            *_port("out", work / "out"),
        ]
        if (self._kernel / "modules.ext4").exists():
            command += _disk("modules", self._kernel / "modules.ext4", "format=raw,readonly=on")
        return command

    def _unpack(self, tar: Path, folder: Path, print_line: PrintLine) -> None:
        folder.mkdir(exist_ok=True)
        try:
            self._children.output(["tar", "--no-same-owner", "-C", folder, "-xf", tar])
        except CommandError as error:
            print_line(f"cannot unpack all of /mnt/out of the guest: {error}")


def _option(path: Path) -> str:
    return str(path).replace(",", ",,")  # a comma separates the options of QEMU


def _disk(name: str, path: Path, how: str) -> list[str]:
    # cache=unsafe ignores fsync: this disk is deleted after the run.
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
    """Yield the lines that a program prints, until it ends or the deadline (of the monotonic clock) passes."""
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
