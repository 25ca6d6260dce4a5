"""The daemon's side of the loader (:mod:`dnsprobe.kernel.loader`) and of the process that starts it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnsprobe.errors import UserError
from dnsprobe.kernel import loader_protocol
from dnsprobe.kernel.hooks import Hook, Rung

#: Lines of the compiler's or verifier's messages that are worth showing. The reason is in the last ones.
_LAST_LINES = 12
#: The time limit of a request. A compilation takes a second on an idle host, and minutes on an emulated processor.
_REQUEST_SECONDS = 900
_KEEPER = Path(__file__).with_name("loader_keeper.py")


@dataclass(frozen=True, slots=True)
class Attached:
    """The result of a request: the attached hooks, and for each other path the reason why it has none.

    ``messages`` are the last lines that compiler and verifier wrote during the request.
    """

    hooks: list[Hook]
    refused: dict[str, str]
    messages: str


class LoaderKeeper:
    """Starts loaders through a child that keeps the capabilities of this process as they are now."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package_folder = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package_folder, os.environ.get("PYTHONPATH"))))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_KEEPER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # BCC cannot compile in a folder that was deleted.
                cwd="/",
                # Ctrl-C at a terminal is for the daemon, which then ends the child.
                process_group=0,
                env={**os.environ, "PYTHONPATH": path},
            )

    def start(self, channel: int, output: int) -> None:
        """Start a loader with these descriptors. If that fails, its channel is closed. OSError if the child is gone."""
        socket.send_fds(self._channel, [b"\0"], [channel, output])

    def close(self) -> None:
        """End the child."""
        self._channel.close()
        self._process.wait()


class LoaderClient:
    """Starts a loader, which loads its modules while the daemon goes on, and sends it requests.

    Raises OSError without free descriptors. All requests raise UserError if the loader reports an error or dies.
    """

    def __init__(self, keeper: LoaderKeeper) -> None:
        # In memory, because /tmp may be full, read-only or missing.
        self._output = os.fdopen(os.memfd_create("dnsprobe-loader"), "w+b")
        try:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self._output.close()
            raise
        self._channel.settimeout(_REQUEST_SECONDS)
        #: Octets of the output that :meth:`_messages` has returned.
        self._output_read = 0
        #: Why the compiled programs could not be cached; empty if there was no problem.
        self.cache_problem = ""
        with theirs, contextlib.suppress(OSError):  # then the first request reports that the loader died
            keeper.start(theirs.fileno(), self._output.fileno())

    def configure(
        self,
        *,
        ports: Sequence[int],
        encrypted_ports: Sequence[int],
        canary_port: int,
        btf: str,
        maps: Mapping[str, int],
        answers: bool = False,
        servers: bool = False,
    ) -> None:
        """Send what to compile for, and the descriptors of the maps by their names. This is the first request.

        ``answers`` is whether the programs track answers, ``servers`` whether they tell servers apart.
        """
        request = {
            "ports": list(ports),
            "encrypted_ports": list(encrypted_ports),
            "canary_port": canary_port,
            "btf": btf,
            "maps": list(maps),
            "answers": answers,
            "servers": servers,
        }
        self._ask(request, maps.values())

    def use_maps(self, maps: Mapping[str, int]) -> None:
        """Load programs with these maps from now on. They have the names of those in :meth:`configure`."""
        self._ask({"maps": list(maps)}, maps.values())

    def attach(self, rung: Rung, paths: Sequence[str], attempt: int) -> Attached:
        """Attach a rung for some paths. ``attempt`` is the number of the way to attach it, from 0."""
        return self._attach({"rung": rung.name, "attach": rung.attach, "paths": list(paths), "attempt": attempt})

    def attach_lineage(self) -> tuple[Hook | None, str]:
        """Attach the programs of lineage tracking. Return their hook, or None and the reason."""
        attached = self._attach({"rung": loader_protocol.LINEAGE})
        if not attached.hooks:
            return None, attached.refused[loader_protocol.LINEAGE]
        return attached.hooks[0], ""

    def attach_answers(self, hooks: Sequence[str]) -> Attached:
        """Attach hooks that see what became of queries, by their names in loader_protocol."""
        return self._attach({"rung": loader_protocol.ANSWERS, "hooks": list(hooks)})

    def _attach(self, request: Mapping[str, Any]) -> Attached:
        answer, fds = self._ask(request)
        self.cache_problem = answer["cache_problem"]
        return Attached(loader_protocol.restore(answer["hooks"], fds), answer["refused"], self._messages())

    def _ask(self, request: Mapping[str, Any], fds: Iterable[int] = ()) -> tuple[dict[str, Any], list[int]]:
        try:
            loader_protocol.send(self._channel, request, fds)
            answer, received = loader_protocol.receive(self._channel)
        except OSError:
            answer, received = None, []
        if answer is None:
            raise UserError(f"the loader process died: {self._messages() or 'it left no message'}")
        if "error" in answer:
            raise UserError(answer["error"], answer["hint"])
        return answer, received

    def _messages(self) -> str:
        """Return the last lines that the child wrote since the last call."""
        self._output.seek(self._output_read)
        text = self._output.read()
        self._output_read += len(text)
        return "\n".join(text.decode("utf-8", "replace").strip().splitlines()[-_LAST_LINES:])

    def interrupt(self) -> None:
        """Let a request that another thread makes fail soon."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the loader, which frees the memory of LLVM."""
        if self._channel.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
            # It closes its end when it ends.
            while self._channel.recv(1):
                pass
        self._channel.close()
        self._output.close()
