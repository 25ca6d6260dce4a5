"""Trees: who is in them, and that a name cannot pass for something else."""

import pytest

from dnsprobe.model import Ancestry, Process


def chain(*comms: bytes) -> tuple[Process, ...]:
    """Return processes from the asker up; the last one has pid 1."""
    return tuple(Process(len(comms) - index, 1000, comm) for index, comm in enumerate(comms))


@pytest.mark.parametrize(
    ("ancestry", "tree", "pids"),
    [
        (Ancestry(chain(b"dig", b"bash", b"systemd")), "bash;dig", "2;3"),
        (Ancestry(chain(b"systemd")), "systemd", "1"),
        (Ancestry(chain(b"dig", b"bash", b"login", b"x")[:2], complete=False), "...;bash;dig", "...;3;4"),
        (Ancestry(chain(b"a;b", b"c\\", b"init")), r"c\\;a\x3bb", "2;3"),
        (Ancestry(chain(b"(other)", b"(unknown)", b"...", b"init")), r"\x2e..;\x28unknown);\x28other)", "2;3;4"),
        (Ancestry(chain(b"(sd-pam)", b"init")), "(sd-pam)", "2"),
        (Ancestry(chain(b"\xff\n\x1b[31m", b"init")), r"\xff\x0a\x1b[31m", "2"),
    ],
)
def test_tree(ancestry: Ancestry, tree: str, pids: str) -> None:
    assert ancestry.tree == tree
    assert ancestry.tree_pids == pids
