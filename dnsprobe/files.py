"""Reads whole files that somebody else may have put there: never a pipe or a device, never without a limit.

Whatever dnsprobe reads outside of ``/proc`` and ``/sys`` goes through :func:`read_file`. A path may lead to a FIFO that
nobody writes to, to a device that never ends, or to a socket.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: /dev/null, which is often given in place of an empty file (Documentation/admin-guide/devices.txt).
_NULL = os.makedev(1, 3)
#: Octets of one read.
_CHUNK = 1 << 20

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


class UnsuitableFileError(OSError):
    """What is at a path is no regular file, or is larger than allowed. ``strerror`` says what it is."""


def read_file(path: str | os.PathLike[str], limit: int, *, links: bool = True) -> bytes:
    """Return the content of a regular file of at most ``limit`` octets, without ever waiting for another process.

    Without ``links``, a symbolic link at the end of the path is an error. Raises OSError if the file cannot be read:
    IsADirectoryError for a folder, :class:`UnsuitableFileError` for anything else that is not a regular file, for a
    larger one, and for one that has no content now and waits for more, as ``/proc/kmsg`` does.
    """
    content, _ = read_file_and_status(path, limit, links=links)
    return content


def read_file_and_status(
    path: str | os.PathLike[str], limit: int, *, links: bool = True
) -> tuple[bytes, os.stat_result]:
    """Return the content as :func:`read_file`, and the status of the file that it came from."""
    # Checked before it is opened: to open a device can have an effect, and a socket has an error of its own.
    _require_regular(path, os.stat(path, follow_symlinks=links))
    # Between the check and this, a FIFO can take the place of the file. O_NONBLOCK: opening it must not wait.
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if links else os.O_NOFOLLOW)
    )
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        _require_regular(path, status)
        return _read_all(path, file.read, limit), status


def _read_all(path: str | os.PathLike[str], read: Callable[[int], bytes | None], limit: int) -> bytes:
    content = bytearray()
    while more := read(_CHUNK):
        content += more
        if len(content) > limit:
            raise UnsuitableFileError(errno.EFBIG, f"larger than {limit >> 20} MiB", os.fspath(path))
    if more is None:  # a file of /proc that waits for something
        raise UnsuitableFileError(errno.EAGAIN, "a file that never ends", os.fspath(path))
    return bytes(content)


def _require_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
    raise UnsuitableFileError(errno.EINVAL, f"not a file, but {kind}", os.fspath(path))


@contextmanager
def in_memory(content: bytes, name: str) -> Iterator[str]:
    """Provide data under a path in memory, for libraries that only read files."""
    descriptor = os.memfd_create(name)
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
