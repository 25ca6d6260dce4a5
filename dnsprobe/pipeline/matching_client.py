"""The daemon's side of the process that matches names (:mod:`dnsprobe.pipeline.matching_process`)."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from dnsprobe.config.source import Source
from dnsprobe.errors import UserError
from dnsprobe.model import Rule
from dnsprobe.names.ruleset import RuleTable, Spec, TrieEntry
from dnsprobe.pipeline.matching_protocol import (
    Channel,
    in_parts,
    read_rules,
    rule_rows,
    spec_rows,
    trie_entries,
)


@dataclass(slots=True)
class Reload:
    """Rules that are being read and built by a new process.

    ``source`` and ``needs_restart`` are those of the configuration that was read. ``table`` is None until all is there.
    """

    channel: Channel
    source: Source | None = None
    needs_restart: str = ""
    table: RuleTable | None = None
    next_id: int = 1
    _rules: list[Rule] = field(default_factory=list)
    _trie: list[TrieEntry] = field(default_factory=list)

    def read(self, *, wait: bool = False) -> None:
        """Take over what has arrived. Raises UserError if the configuration is wrong or the process has died."""
        try:
            messages = self.channel.read(wait=wait)
        except (EOFError, OSError) as error:
            raise UserError("the process that builds the rules has died", "see the log for its last message") from error
        for message in messages:
            for what, value in message.items():
                self._take(what, value)

    def _take(self, what: str, value: Any) -> None:
        match what:
            case "failed":
                raise UserError(*value)
            case "read":
                self.source, self.needs_restart = Source(*value[0]), value[1]
            case "rules":
                self._rules += read_rules(value)
            case "trie":
                self._trie += trie_entries(value)
            case "built":
                self.next_id = value
                self.table = RuleTable(tuple(self._rules), self._trie)


class MatchingClient:
    """Takes care that the process runs and has the rules, and exchanges messages with it."""

    def __init__(self) -> None:
        self._rules: tuple[Rule, ...] = ()
        self._next_id, self._generation = 1, 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._restoring: threading.Thread | None = None
        self._epoll = select.epoll()
        self._channel: Channel | None = None
        self._start()

    def _start(self) -> None:
        channel, process = _start_process()
        self._processes.append(process)
        self._use(channel)

    def _use(self, channel: Channel) -> None:
        self._channel = channel
        self._epoll.register(channel.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Return a descriptor that is readable while there may be answers."""
        return self._epoll.fileno()

    def wait(self, seconds: float) -> None:
        """Wait until there may be answers, or for some seconds."""
        self._epoll.poll(seconds)

    # Rules

    def build(self, specs: Iterable[Spec]) -> RuleTable:
        """Return the first rules. Waits. Raises UserError for invalid ones."""
        assert self._channel is not None, "the process has just been started"
        built = Reload(self._channel)
        try:
            for part in in_parts(spec_rows(specs)):
                self._channel.send({"rules": part})
            self._channel.send({"build": True})
        except OSError:
            pass  # read() reports it
        while built.table is None:
            built.read(wait=True)
        self._rules, self._next_id = built.table.rules, built.next_id
        return built.table

    def reload(self, source: Source, reserved: Iterable[int]) -> Reload:
        """Begin to read a configuration and to build its rules, in a new process. OSError if that cannot be started.

        Unchanged rules keep their ids. Others get none of the ``reserved`` ids.
        """
        if self._channel is None or self._is_restoring():
            self.maintain()
            raise OSError("the process that matches names is being started")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            request = {"source": astuple(source), "reserved": list(reserved)}
            self._channel.send({"reload": request}, [theirs.fileno()])
        return Reload(Channel(ours))

    def adopt(self, reload: Reload) -> None:
        """Use the process of a reload whose rules come into force, in place of the present one."""
        assert reload.table is not None, "the rules are not there yet"
        self._rules, self._next_id = reload.table.rules, reload.next_id
        self.end_process()
        self._use(reload.channel)

    def end_unused(self, reload: Reload) -> None:
        """End the process of a reload whose rules have not come into force."""
        if reload.channel is not self._channel:
            reload.channel.close()

    def in_force(self, generation: int) -> None:
        """Note that the rules that were built last are those of a generation."""
        self._generation = generation
        self.send({"in_force": generation})

    def forget(self, kept: Iterable[int]) -> None:
        """Forget the rules of all generations but some."""
        self.send({"forget": list(kept)})

    # The process

    @property
    def is_available(self) -> bool:
        """Whether the process runs and has the rules."""
        return self._channel is not None and not self._is_restoring()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, unless the process has died or does not have its rules yet."""
        if self._channel is None or self._is_restoring():
            return
        try:
            self._channel.send(message)
        except OSError:
            return  # receive() finds that the process has died

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have come, without waiting. EOFError or OSError if the process has died."""
        return [] if self._channel is None else self._channel.read(wait=False)

    def _is_restoring(self) -> bool:
        return self._restoring is not None and self._restoring.is_alive()

    def end_process(self) -> None:
        """Close the connection to the process, which then ends."""
        if self._channel is not None:
            self._epoll.unregister(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def maintain(self) -> None:
        """Start another process if the last one has ended, but no more often than this is called."""
        self._processes = [process for process in self._processes if process.poll() is None]
        if self._channel is None:
            self._start()
            # The process reads as it starts: nothing else may wait for that.
            self._restoring = threading.Thread(target=self._restore, name="rules", daemon=True)
            self._restoring.start()

    def _restore(self) -> None:
        channel = self._channel
        assert channel is not None, "the process has just been started"
        try:
            for part in in_parts(self._rules):
                channel.send({"rules": rule_rows(part)})
            channel.send({"restore": self._next_id})
            channel.send({"in_force": self._generation})
        except OSError:
            pass  # answers() finds that the process has died

    def close(self) -> None:
        """End the process."""
        self.end_process()
        for process in self._processes:
            process.kill()
            process.wait()
        self._epoll.close()


def _start_process() -> tuple[Channel, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    package_folder = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package_folder, os.environ.get("PYTHONPATH"))))
    with theirs:
        process = subprocess.Popen(
            # -P: the current folder may belong to another user, who could put a json.py there.
            [sys.executable, "-P", "-m", "dnsprobe.pipeline.matching_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Ctrl-C at a terminal is for the daemon, which then ends the child.
            process_group=0,
            env={**os.environ, "PYTHONPATH": path},
        )
    return Channel(ours), process
