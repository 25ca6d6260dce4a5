"""A running dnsprobe of any version, for benchmarks. Guests use this, too, so it needs only the standard library."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import programs
from programs import Loaded, Runs


class NotStartedError(Exception):
    """dnsprobe ended before it was ready; the text is what it has logged."""


class Daemon:
    """A running dnsprobe. ``command`` starts the program; ``cache`` is a folder for compiled programs.

    The configuration is written to a file in ``cache``. Raises NotStartedError.
    """

    def __init__(self, command: Sequence[str | Path], configuration: str, cache: Path) -> None:
        cache.mkdir(exist_ok=True)
        path = cache / "dnsprobe.yaml"
        path.write_text(configuration, encoding="utf-8")
        self._page = f"127.0.0.1:{free_port()}"
        # As in the unit: otherwise the certificates of all authorities are read for nothing.
        environment = {"CACHE_DIRECTORY": str(cache), "SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
        self._process = subprocess.Popen(
            [*command, "run", "--listen", self._page, "--log-target", "console", "--config", path],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        assert self._process.stderr is not None
        lines = []
        for line in self._process.stderr:
            lines.append(line)
            if "ready after" in line:
                break
        else:
            self._process.wait()
            raise NotStartedError("".join(lines))
        # Nobody reads what it logs from here on.
        self._drain = subprocess.Popen(["cat"], stdin=self._process.stderr, stdout=subprocess.DEVNULL)

    @property
    def programs(self) -> list[tuple[Loaded, Runs]]:
        """Its BPF programs with the kernel's measurements so far."""
        return list(programs.programs_of(self._process.pid).values())

    @property
    def address(self) -> str:
        """The address and port of its HTTP server."""
        return self._page

    @property
    def memory(self) -> int:
        """Its memory: kilobytes of RSS."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0])

    def metrics(self) -> str:
        """Return a scrape."""
        with urllib.request.urlopen(f"http://{self._page}/metrics", timeout=60) as answer:
            return str(answer.read().decode())

    @property
    def counted(self) -> int:
        """How many queries it has counted."""
        counts = re.findall(r"^dnsprobe_queries_total\{.*\} (\S+)$", self.metrics(), re.MULTILINE)
        return sum(int(float(count)) for count in counts)

    def close(self) -> None:
        """Stop it. ChildProcessError if it does not end properly."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait()
        self._drain.wait()
        if status:
            raise ChildProcessError(f"dnsprobe ended with status {status}")


def free_port() -> int:
    """Return a port that nobody uses, neither over UDP nor over TCP."""
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        stream.bind(("127.0.0.1", 0))
        datagram.bind(stream.getsockname())
        return int(stream.getsockname()[1])
