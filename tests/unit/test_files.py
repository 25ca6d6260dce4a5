"""Files that are read whole: what is no regular file, or has no end, is an error at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dnsprobe.files import UnsuitableFileError, in_memory, read_file, read_file_and_status

LIMIT = 1 << 20


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (make_fifo, "not a file, but a FIFO"),
        (make_socket, "not a file, but a socket"),
        (link_to("/dev/zero"), "not a file, but a device"),
        (link_to("/dev/tty"), "not a file, but a device"),
        (lambda path: path.write_bytes(bytes(LIMIT + 1)), "larger than 1 MiB"),
        # A regular file whose size is 0, and which has as many octets as the address space has pages, times eight.
        (link_to("/proc/self/pagemap"), "larger than 1 MiB"),
    ],
)
def test_what_is_no_file_with_an_end_is_an_error(tmp_path: Path, make: Callable[[Path], None], what: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(UnsuitableFileError) as caught:
        read_file(tmp_path / "x", LIMIT)
    assert caught.value.strerror == what
    assert caught.value.filename == str(tmp_path / "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can open the kernel's log")
def test_a_file_of_proc_that_waits_for_more_is_an_error() -> None:
    # The log may be empty up to now, full, or refused in a container. In no case is there a wait for its next line.
    with pytest.raises(OSError, match=r"never ends|larger than|Operation not permitted"):
        read_file("/proc/kmsg", 1)


def test_a_fifo_that_takes_the_place_of_a_file_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.touch()
    before = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: before)
    with pytest.raises(UnsuitableFileError, match="a FIFO"):
        read_file(path, LIMIT)


@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    (tmp_path / "link").symlink_to("x")
    assert read_file(tmp_path / "link", LIMIT) == content
    read, status = read_file_and_status(str(tmp_path / "x"), LIMIT, links=False)
    assert (read, status.st_size) == (content, size)


def test_the_null_device_is_an_empty_file() -> None:
    assert read_file("/dev/null", LIMIT) == b""


def test_a_link_can_be_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    (tmp_path / "link").symlink_to("x")
    with pytest.raises(UnsuitableFileError, match="a symbolic link"):
        read_file(tmp_path / "link", LIMIT, links=False)


def test_a_folder_and_nothing_have_errors_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, LIMIT)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "nothing", LIMIT)


def test_data_in_memory_has_a_path() -> None:
    with in_memory(b"content", "made-up") as path:
        assert Path(path).read_bytes() == b"content"
    assert not Path(path).exists()
