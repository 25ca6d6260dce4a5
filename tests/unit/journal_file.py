"""A journal of made-up entries: a real file, and a place where journalctl takes it for the host's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

REMOTE = "/usr/lib/systemd/systemd-journal-remote"
# Entries have the id of this boot, because journalctl --follow shows only this boot (journalctl(1)).
_BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
_MACHINE = Path("/etc/machine-id")

# In this mount namespace, programs see the journal of the test instead of that of the host, which they cannot change.
_ENTER = """\
mount -t tmpfs none /var/log
mkdir /var/log/journal
mount --bind "$1" /var/log/journal
if [ -d /run/log ]; then mount -t tmpfs none /run/log; fi
shift
exec "$@"
"""

Fields = Sequence[tuple[str, str]]


class Journal:
    """A journal of this host below ``folder``. Skips the test if the tools for it are missing."""

    def __init__(self, folder: Path) -> None:
        missing = [
            f"apt-get install {name}"
            for tool, name in ((REMOTE, "systemd-journal-remote"), ("jq", "jq"))
            if shutil.which(tool) is None
        ]
        if missing:
            pytest.skip(f"a journal of its own takes: {' and '.join(missing)}")
        if os.geteuid() != 0:
            pytest.skip("a journal of its own takes a mount namespace: run as root")
        if not _MACHINE.exists() or not _MACHINE.read_text().strip():
            pytest.skip("journalctl takes a machine id: systemd-machine-id-setup makes one")
        self._folder = folder
        self._machine = _MACHINE.read_text().strip()
        (folder / self._machine).mkdir()
        self._entries = 0

    def write(self, entries: Iterable[tuple[float, Fields]]) -> None:
        """Append entries, each with its seconds since the epoch, in their order; no value has a line break."""
        text = ""
        for seconds, fields in entries:
            self._entries += 1
            own = [
                ("__REALTIME_TIMESTAMP", str(int(seconds * 1e6))),
                ("__MONOTONIC_TIMESTAMP", str(self._entries * 1000)),
                ("_BOOT_ID", _BOOT),
                ("_MACHINE_ID", self._machine),
                ("_HOSTNAME", "host"),
            ]
            text += "".join(f"{name}={value}\n" for name, value in (*own, *fields)) + "\n"
        file = self._folder / self._machine / "system.journal"
        subprocess.run([REMOTE, f"--output={file}", "-"], input=text.encode(), capture_output=True, check=True)

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs a program for which this is the journal of the host."""
        enter = ["unshare", "--mount", "--propagation=private", "sh", "-ec", _ENTER, "sh", str(self._folder)]
        return [*enter, "env", "TZ=UTC", "LC_ALL=C.UTF-8", *arguments]

    def run(self, *arguments: str) -> str:
        """Run a program and return what it printed. Raises AssertionError if it fails."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
        return done.stdout
