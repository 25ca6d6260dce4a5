"""The daemon's side of the loader child (:mod:`dnsprobe.kernel.loader`)."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Attached:
    """The result of a request: the attached hooks, and for each other path the reason why it has none.

    ``messages`` are the last lines that compiler and verifier wrote during the request.
    """

    hooks: list[Hook]
    refused: dict[str, str]
    messages: str


class LoaderClient:
    """Starts the child, which loads its modules while the daemon goes on, and sends it requests.

    All requests raise UserError if the child reports an error or dies.
    """

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # In memory, because /tmp may be full, read-only or missing.
        self._output = os.fdopen(os.memfd_create("dnsprobe-loader"), "w+b")
        #: Octets of the output that :meth:`_messages` has returned.
        self._output_read = 0
        #: Why the compiled programs could not be cached; empty if there was no problem.
        self.cache_problem = ""
        self._process = _start(theirs.fileno(), self._output.fileno())
        theirs.close()

    def configure(
        self,
        *,
        ports: Sequence[int],
        encrypted_ports: Sequence[int],
        canary_port: int,
        btf: str,
        maps: Mapping[str, int],
        fentry: bool,
    ) -> None:
        """Send what to compile for, and the descriptors of the maps by their names. This is the first request.

        ``fentry`` is whether functions may be attached to by fentry.
        """
        request = {
            "ports": list(ports),
            "encrypted_ports": list(encrypted_ports),
            "canary_port": canary_port,
            "btf": btf,
            "maps": list(maps),
            "fentry": fentry,
        }
        self._ask(request, maps.values())

    def attach(self, rung: Rung, paths: Sequence[str], attempt: int) -> Attached:
        """Attach a rung for some paths. ``attempt`` is the number of the way to attach it, from 0."""
        return self._attach({"rung": rung.name, "attach": rung.attach, "paths": list(paths), "attempt": attempt})

    def attach_lineage(self) -> tuple[Hook | None, str]:
        """Attach the programs of lineage tracking. Return their hook, or None and the reason."""
        attached = self._attach({"rung": loader_protocol.LINEAGE})
        if not attached.hooks:
            return None, attached.refused[loader_protocol.LINEAGE]
        return attached.hooks[0], ""

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

    def close(self) -> None:
        """End the child, which frees the memory of LLVM."""
        self._channel.close()
        self._process.wait()
        self._output.close()


def _start(channel: int, output: int) -> subprocess.Popen[bytes]:
    package_folder = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package_folder, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        # -P: the current folder may belong to another user, who could put a json.py there.
        [sys.executable, "-P", "-m", "dnsprobe.kernel.loader", str(channel)],
        pass_fds=[channel],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        # BCC cannot compile in a folder that was deleted.
        cwd="/",
        # Ctrl-C at a terminal is for the daemon, which then ends the child.
        process_group=0,
        env={**os.environ, "PYTHONPATH": path},
    )
