"""A small host for the commands of docs/cookbook.md: its network, resolver, journal, units and programs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from conftest import HERE, PATIENCE, Program, Service
from journal_file import Fields, Journal
from networks import Net
from scraper import Prometheus

CONTAINER = "7a1c" * 16
BACKUP, RESOLVER, IN_CONTAINER = "backup.service", "stubby.service", f"docker-{CONTAINER}.scope"

#: Mounts that replace files of the real host for a command.
_MOUNTS = f"""\
for name in resolv.conf nsswitch.conf hosts; do mount --bind "$1/etc/$name" "/etc/$name"; done
if ! [ -d /run/systemd/journal ]; then mount -t tmpfs none /run; mkdir -p /run/systemd/journal; fi
mount --bind "$1/journald" /run/systemd/journal
mount -t tmpfs none /var/lib
mkdir -p /var/lib/docker/containers/{CONTAINER}
echo '{{"Name": "/web"}}' >/var/lib/docker/containers/{CONTAINER}/config.v2.json
shift
exec "$@"
"""

_ETC = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1\n",
    "nsswitch.conf": "hosts: files dns\n",
    "hosts": "127.0.0.1 localhost web1.example\n127.0.0.2 web2.example\n",
}

#: Programs by their name, which is their comm, too.
_PROGRAMS = {
    "nightly": "#!/bin/sh\ncheck-updates\nexit\n",
    "check-updates": "#!/bin/sh\nfor name in www updates updates; do dig +tries=1 $name.example.test; done\nexit\n",
    "miner": "#!/bin/sh\ndig +tries=1 pool.miners.test\nexit\n",
    "stubby": """\
import pathlib, socket
pathlib.Path("/proc/self/comm").write_text("stubby")
with socket.create_server(("127.0.0.1", 853)), socket.create_connection(("127.0.0.1", 853)) as sender:
    sender.sendall(bytes([22, 3, 1]) + bytes(300))  # the beginning of a TLS ClientHello
""",
}

_SERVER = "from scenes import Server; server = Server(); print('ready', flush=True); server.run()"


class Stage:
    """The host. Its daemon, web1.example, runs once ``start`` was called; it ends with ``close``."""

    def __init__(self, folder: Path, rules: str) -> None:
        self._folder, self._rules, self._stack = folder, rules, ExitStack()
        for name in ("etc", "journald", "journal", "bin", "cwd", "web1", "web2", "prometheus"):
            (folder / name).mkdir()
        for name, text in _ETC.items():
            (folder / "etc" / name).write_text(text)
        for name, text in _PROGRAMS.items():
            path = folder / "bin" / name
            path.write_text(f"#!{sys.executable}\n{text}" if text.startswith("import") else text)
            path.chmod(0o755)
        search = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._prefix = ["unshare", "--mount", "sh", "-ec", _MOUNTS, "sh", str(folder), "env", f"PATH={search}"]
        self._journal = Journal(folder / "journal")
        self._journald = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._journald.bind(str(folder / "journald" / "socket"))
        self._journald.settimeout(PATIENCE)
        # The entries are of the last night, at whatever time the tests run.
        self._midnight = time.time() // 86400 * 86400
        self.net = Net()
        self._stack.callback(self.net.close)
        with self.net.entered():
            server = subprocess.Popen([sys.executable, "-c", _SERVER], cwd=HERE, stdout=subprocess.PIPE)
        self._stack.callback(server.wait, PATIENCE)
        self._stack.callback(server.kill)
        assert server.stdout is not None
        self._stack.enter_context(server.stdout)
        server.stdout.readline()

    def start(self) -> None:
        """Start the daemon that writes to the journal."""
        configuration = self._folder / "web1" / "dnsprobe.yaml"
        configuration.write_text(self._rules)
        arguments = ["run", "--config", str(configuration), "--log-target", "journal"]
        with self.net.entered():
            daemon = Program(arguments, self._folder / "web1", self._prefix)
        self._stack.callback(daemon.kill)
        daemon.wait_for("ready after")

    def start_second_host(self) -> None:
        """Start web2.example, which counts from now on, and tracks answers."""
        rules = f"{self._rules}answers: {{timeout: 1s}}\n"
        with self.net.entered():
            daemon = Service(rules, self._folder / "web2", self._prefix, listen="127.0.0.2:10059")
        self._stack.callback(daemon.kill)

    def start_prometheus(self) -> None:
        """Start a Prometheus at its usual address that scrapes both, and wait for its second scrape."""
        targets = [
            {"targets": [f"127.0.0.{number}:10059"], "labels": {"instance": f"web{number}.example"}}
            for number in (1, 2)
        ]
        job = {"job_name": "dnsprobe", "static_configs": targets}
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
        folder = self._folder / "prometheus"
        with self.net.entered():
            server = Prometheus(folder, config, "--storage.tsdb.path=data", port=9090)
            self._stack.callback(server.stop)
            server.wait_for('count(count_over_time(up{job="dnsprobe"}[1m]) > 1) == 2')

    def play(self, program: str, unit: str) -> None:
        """Run one of the programs in a unit to its end, as a child of pid 1."""
        command = [*self._prefix, sys.executable, str(HERE / "orphan.py"), f"system.slice/{unit}", program]
        with self.net.entered():
            # The output ends when the orphan has ended.
            subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=PATIENCE)

    def keep_entries(self, count: int) -> None:
        """Wait for ``count`` journal entries of the daemon, and put them into the journal."""
        entries: list[tuple[float, Fields]] = []
        while len(entries) < count:
            sent = self._journald.recv(65536).decode()
            fields = [(name, value) for name, _, value in (line.partition("=") for line in sent.splitlines())]
            assert all(value for _, value in fields), sent  # a value with a line break has another form
            added = [("_PID", "11802"), ("_UID", "64997"), ("_SYSTEMD_UNIT", "dnsprobe.service")]
            # At 02:13:07.
            entries.append((self._midnight + 7987 + len(entries) / 1000, [*fields, *added]))
        self._journal.write(entries)

    def command(self, script: str) -> list[str]:
        """Return the command that runs a script of bash on this host, in the time zone UTC."""
        return [
            *self._prefix,
            *self._journal.command("env", "--chdir", str(self._folder / "cwd"), "bash", "-uc", script),
        ]

    def close(self) -> None:
        self._stack.close()
