"""Programs that the harness starts. It can end each of them, and none outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

#: Lines of output that the error of a failed command shows.
SHOWN = 20

Command = Sequence[str | Path]


class CommandError(Exception):
    """A command failed; the text has its arguments and the end of its output."""


class Stopped(Exception):
    """The run is being ended: no program can be started any more."""


class Children:
    """The running children of the harness. A child gets SIGTERM, and SIGKILL after ``patience`` seconds.

    Safe to use from any thread.
    """

    def __init__(self, patience: float = 5.0) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._live: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """True after :meth:`stop`."""
        return self._stopping

    def start(
        self,
        command: Command,
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program without input. The caller has to :meth:`end` it."""
        with self._lock:
            if self._stopping:
                raise Stopped
            # A session of its own: Ctrl-C reaches only the harness, which then ends the children as groups, in order.
            child = subprocess.Popen(
                # The child gets SIGTERM when the thread that waits for it ends, even if the harness was killed.
                ["setpriv", "--pdeathsig=TERM", *(str(word) for word in command)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )
            self._live.add(child)
        return child

    def end(self, child: subprocess.Popen[bytes]) -> int:
        """End a program and all processes of its group that still run; return its exit status."""
        _signal_group(child, signal.SIGTERM)
        try:
            child.wait(self._patience)
        except subprocess.TimeoutExpired:
            _signal_group(child, signal.SIGKILL)
            child.wait()
        with suppress(ProcessLookupError):  # the group is empty
            os.killpg(child.pid, signal.SIGKILL)
        with self._lock:
            self._live.discard(child)
        return child.returncode

    def run(
        self, command: Command, log: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Run a program to its end, and append its output to ``log``. Raises CommandError if it fails."""
        self.follow(command, log, lambda _: None, cwd=cwd, env=env)

    def follow(
        self,
        command: Command,
        log: Path,
        print_line: Callable[[str], None],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run a program as :meth:`run` does, and call ``print_line`` with each line of its output."""
        end: deque[str] = deque(maxlen=SHOWN)
        child = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd, env=env)
        assert child.stdout is not None
        try:
            with log.open("ab") as file:
                for line in child.stdout:
                    file.write(line)
                    file.flush()
                    end.append(line.decode(errors="replace").rstrip())
                    print_line(end[-1])
            status = child.wait()
        finally:
            self.end(child)
        if status:
            raise self._failed(command, status, end)

    def output(self, command: Command, *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run a program to its end and return what it printed. Raises CommandError if it fails."""
        child = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, env=env)
        try:
            printed, complaint = child.communicate()
        finally:
            self.end(child)
        if child.returncode:
            lines = (complaint or printed).decode(errors="replace").strip().splitlines()
            raise self._failed(command, child.returncode, lines[-SHOWN:])
        return printed.decode(errors="replace")

    def stop(self) -> None:
        """End all programs, and refuse to start others."""
        with self._lock:
            self._stopping = True
            live = list(self._live)
        for child in live:
            _signal_group(child, signal.SIGTERM)
        for child in live:
            with suppress(subprocess.TimeoutExpired):
                child.wait(self._patience)
            _signal_group(child, signal.SIGKILL)

    def _failed(self, command: Command, status: int, end: Iterable[str]) -> Exception:
        if self._stopping:
            return Stopped()
        output = "".join(f"\n    {line}" for line in end)
        return CommandError(f"{' '.join(str(word) for word in command)} failed with status {status}:{output}")


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
