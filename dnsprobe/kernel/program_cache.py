"""A folder that caches compiled programs and the layout of kernel structs from one start to the next."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from dnsprobe.files import read_file_and_status

#: Files in the folder at most. Each kernel has one for its layout, and for each set of ports one for each hook that was
#: tried: two if the first ones serve.
_FILES = 32
#: Octets of a file. Programs have about 100 KB.
_MAX_FILE = 16 << 20


def digest(*parts: bytes) -> str:
    """Return 32 hexadecimal digits that change whenever one of the parts does."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(b"%d:" % len(part))
        made.update(part)
    return made.hexdigest()


class ProgramCache:
    """JSON values by key, each in a file of ``folder``. With an empty ``folder``, nothing is cached.

    The cached programs go into the kernel. So a file that anyone but root and this user could have written is ignored.
    A damaged file is ignored too.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None
        #: Why a value could not be cached; empty if there was no problem.
        self.problem = ""

    def get(self, key: str) -> Any:
        """Return the value of a key, None if there is none that can be trusted."""
        if self._folder is None:
            return None
        try:
            content, status = read_file_and_status(self._folder / key, _MAX_FILE, links=False)
            if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            checksum, _, text = content.partition(b"\n")
            return json.loads(text) if checksum == digest(text).encode() else None
        except (OSError, ValueError, RecursionError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Cache a value. The oldest files make room. If that fails, :attr:`problem` has the reason."""
        if self._folder is None:
            return
        try:
            _write(self._folder / key, json.dumps(value).encode())
            files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for path in files[_FILES:]:
                path.unlink()
        except OSError as error:
            self.problem = str(error)


def _write(path: Path, text: bytes) -> None:
    """Write a whole file or none."""
    new = path.with_name(f".new-{os.getpid()}")
    try:
        # Whatever has this name is not ours: a FIFO there would block.
        new.unlink(missing_ok=True)
        with open(new, "xb", opener=_open_private) as file:
            file.write(digest(text).encode() + b"\n" + text)
        new.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
