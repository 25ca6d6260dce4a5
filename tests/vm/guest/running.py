"""dnsprobe as a user runs it from a shell. The tests in tests/host use it, too."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from scraped import add_up, samples_of

PROGRAM = Path(sys.executable).with_name("dnsprobe")
#: Seconds. No step takes as long, even on a slow machine; a test that waits as long has failed.
PATIENCE = 60.0


class Program:
    """A running dnsprobe. Its output goes to files."""

    #: Seconds, as PATIENCE. A guest needs more.
    patience = PATIENCE

    def __init__(self, arguments: Sequence[str], folder: Path, prefix: Sequence[str] = ()) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen([*prefix, str(PROGRAM), *arguments], stdout=out, stderr=err)

    def wait_for(self, text: str, where: Path | None = None) -> str:
        """Wait for a line with ``text``, and return it."""
        path = where or self.err
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            for line in path.read_text(encoding="utf-8").splitlines():
                if text in line:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(
            f"no line with {text!r} in:\n{path.read_text(encoding='utf-8')}{self.err.read_text('utf-8')}"
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(self.patience)

    def kill(self) -> None:
        """End it in any case."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(self.patience)


class Service(Program):
    """``dnsprobe run``, after it is ready."""

    def __init__(
        self, configuration: str, folder: Path, prefix: Sequence[str] = (), listen: str = "127.0.0.1:0"
    ) -> None:
        self.configuration = folder / "dnsprobe.yaml"
        self.configuration.write_text(configuration, encoding="utf-8")
        arguments = ["run", "--config", str(self.configuration), "--listen", listen, "--log-target", "console"]
        super().__init__(arguments, folder, prefix)
        try:
            self.url = self.wait_for("ready after").split("http://", 1)[1].split("/metrics", 1)[0]
        except BaseException:
            self.kill()
            raise

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.url}{path}", timeout=self.patience) as answer:
            return str(answer.read().decode())

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Scrape now, and return labels and value of each sample of a metric."""
        return samples_of(name, self.get("/metrics"))

    def by(self, metric: str, label: str) -> dict[str, int]:
        """Return the values of a metric, added up by one label."""
        return add_up(self.samples(metric), label)

    def value(self, metric: str) -> float:
        """Return the value of a metric without labels."""
        ((_, value),) = self.samples(metric)
        return value

    def entries(self) -> list[str]:
        """Return the lines of the log about queries."""
        return [line for line in self.err.read_text("utf-8").splitlines() if " asked for " in line]
