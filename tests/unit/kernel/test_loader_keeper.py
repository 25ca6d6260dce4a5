"""The process that starts loaders, and the end of a loader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel.loader_client import LoaderClient, LoaderKeeper


@pytest.fixture
def keeper() -> Iterator[LoaderKeeper]:
    """Yield a process that starts loaders."""
    made = LoaderKeeper()
    yield made
    made.close()


def configure(loader: LoaderClient) -> None:
    loader.configure(ports=[53], encrypted_ports=[], canary_port=1, btf="/nonexistent/btf", maps={})


def children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")


def test_loaders_are_started_one_after_another(keeper: LoaderKeeper) -> None:
    for _ in range(2):
        loader = LoaderClient(keeper)
        with pytest.raises(UserError, match="/nonexistent/btf"):
            configure(loader)
        loader.close()
        loader.close()


def test_a_request_that_is_interrupted_fails(keeper: LoaderKeeper) -> None:
    loader = LoaderClient(keeper)
    loader.interrupt()
    with pytest.raises(UserError, match="died"):
        configure(loader)
    loader.close()
    loader.interrupt()


def test_without_the_process_that_starts_it_a_loader_is_dead() -> None:
    keeper = LoaderKeeper()
    keeper._process.kill()
    keeper._process.wait()
    loader = LoaderClient(keeper)
    with pytest.raises(UserError, match="the loader process died"):
        configure(loader)
    loader.close()
    keeper.close()


def test_a_loader_leaves_no_descriptor_behind(keeper: LoaderKeeper) -> None:
    def descriptors() -> tuple[int, int]:
        folders = (Path("/proc/self/fd"), Path(f"/proc/{keeper._process.pid}/fd"))
        counts = [len(os.listdir(folder)) for folder in folders]
        return counts[0], counts[1]

    seen = set()
    for _ in range(3):
        loader = LoaderClient(keeper)
        with pytest.raises(UserError):
            configure(loader)
        loader.close()
        seen.add(descriptors())
    assert len(seen) == 1
