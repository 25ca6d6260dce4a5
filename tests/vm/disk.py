"""The disk of a userland: a Debian release with systemd and the dependencies of dnsprobe, for any kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

from archive import Archive
from children import Children
from products import LOG, PrintLine, Product, recipe, write_manifest

_HERE = Path(__file__).parent
_AGENT = _HERE / "agent"

#: The dependencies of the package dnsprobe. The guests have no network to install them from.
DEPENDS = (
    "python3",
    "python3-bcrypt",
    "python3-bpfcc",
    "python3-dnspython",
    "python3-idna",
    "python3-prometheus-client",
    "python3-psutil",
    "python3-systemd",
    "python3-tornado",
    "python3-yaml",
)

#: The system, and the programs that the tests in the guest use.
SYSTEM = (
    "bind9-dnsutils",
    "bpftool",
    "cron",
    "curl",
    "dbus",
    "dnsmasq-base",
    "iproute2",
    "iputils-ping",
    "jq",
    "kmod",
    "libnss-systemd",
    "login",
    "netbase",
    "nftables",
    "openssl",
    "procps",
    "python3-pytest",
    "strace",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
    "util-linux",
    "wireguard-tools",
)

#: Units that a guest does not need. Each costs seconds of an emulated processor.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "ldconfig.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-pstore.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp-runlevel.service",
)

#: The only generator (systemd.generator(7)) that a guest needs. The others would run at each boot and each reload
#: of the units, which costs seconds.
_GENERATOR = "systemd-getty-generator"

#: Left out of the disk, but not of packages that tests install in the guest.
_EXCLUDED = ("path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/doc/*")

#: The units of the agent, and the targets that start them.
_WANTED = {"vm-journal.service": "sysinit.target", "vm-script.service": "multi-user.target"}


def disk(release: str, children: Children) -> Product:
    """Return the disk of a release as a product with the sparse file ``disk.ext4``."""

    def build(folder: Path, print_line: PrintLine) -> None:
        log = folder / LOG
        root = folder / "root"
        archive = Archive(release, folder / "apt", children, log)
        print_line(f"installing Debian {release}")
        children.run(_mmdebstrap(release, archive, root), log, env={"LC_ALL": "C", "TMPDIR": str(folder)})
        print_line("making the disk")
        _configure(root)
        write_manifest(folder, _versions(root, children))
        _make(root, folder / "disk.ext4", log, children)
        shutil.rmtree(root)
        shutil.rmtree(folder / "apt")

    return Product(f"disk-{release}", recipe(release, Path(__file__), *sorted(_AGENT.iterdir())), build)


def _mmdebstrap(release: str, archive: Archive, root: Path) -> list[str | Path]:
    options = [f"--aptopt={archive.settings}", '--aptopt=APT::Install-Recommends "false"']
    options += [f"--dpkgopt={line}" for line in _EXCLUDED]
    command: list[str | Path] = [
        # In its own mount namespace: its mounts, such as /dev of the host, end with it even if it is killed.
        *("unshare", "--mount", "--propagation=private"),
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
        f"--include={','.join(sorted(DEPENDS + SYSTEM))}",
        *options,
        release,
        root,
        archive.sources,
    ]
    return command


def _configure(root: Path) -> None:
    etc = root / "etc"
    (etc / "hostname").write_text("vm\n")
    (etc / "hosts").write_text("127.0.0.1 localhost vm\n::1 localhost ip6-localhost\n")
    (etc / "resolv.conf").unlink(missing_ok=True)
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    # Without a machine id, systemd takes each boot for the first, and its presets enable disabled units.
    (etc / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (etc / "fstab").write_text("")
    shadow = (etc / "shadow").read_text()
    (etc / "shadow").write_text("".join(_without_password(line) for line in shadow.splitlines(keepends=True)))
    # With this folder, journald writes to the disk: tests read the journal of the previous boot.
    (root / "var/log/journal").mkdir(parents=True, exist_ok=True)
    for name in ("mnt/out", "mnt/tree", "usr/lib/modules"):
        (root / name).mkdir(parents=True, exist_ok=True)
    _enable_agent(root)
    for path in (etc / "apt/apt.conf.d/99mmdebstrap", etc / "dpkg/dpkg.cfg.d/99mmdebstrap"):
        # The second would leave files out of packages that tests install in the guest.
        path.unlink(missing_ok=True)
    for source in (etc / "apt").rglob("*.sources"):
        source.unlink()
    (etc / "apt/sources.list").unlink(missing_ok=True)
    for pattern in ("var/cache/apt/*.bin", "var/lib/apt/lists/*", "var/log/*.log", "var/log/apt/*"):
        for path in root.glob(pattern):
            if path.is_file():
                path.unlink()


def _without_password(line: str) -> str:
    fields = line.split(":")
    return ":".join([fields[0], "", *fields[2:]]) if fields[0] == "root" else line


def _enable_agent(root: Path) -> None:
    etc = root / "etc"
    units = etc / "systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    generators = etc / "systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for path in (root / "usr/lib/systemd/system-generators").iterdir():
        if path.name != _GENERATOR:
            (generators / path.name).symlink_to("/dev/null")
    for unit, target in _WANTED.items():
        shutil.copy(_AGENT / unit, units / unit)
        wants = units / f"{target}.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit).symlink_to(f"../{unit}")
    # The initrd mounts it, and it is still in use when systemd unmounts it: each reboot would report a failure.
    modules = units / "usr-lib-modules.mount.d"
    modules.mkdir()
    (modules / "lazy.conf").write_text("[Mount]\nLazyUnmount=yes\n")
    shutil.copy(_AGENT / "vm-script", root / "usr/local/sbin/vm-script")
    (root / "usr/local/sbin/vm-script").chmod(0o755)


def _versions(root: Path, children: Children) -> dict[str, str]:
    admin = root / "var/lib/dpkg"
    command: list[str | Path] = ["dpkg-query", f"--admindir={admin}", "-W", "-f", "${Package}=${Version}\n"]
    return dict(line.split("=", 1) for line in children.output(command).splitlines())


def _make(root: Path, image: Path, log: Path, children: Children) -> None:
    # No journal of the file system: it costs time, and a disk that was not unmounted is thrown away.
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", "root"]
    children.run(["mke2fs", *options, "-d", root, image, "4G"], log)
