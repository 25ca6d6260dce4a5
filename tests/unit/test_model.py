"""Trees of processes, and names of processes that must not look like marks."""

from dataclasses import replace

import pytest
from made_up import ORPHANED

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
def test_a_tree_begins_below_pid_1(ancestry: Ancestry, tree: str, pids: str) -> None:
    assert ancestry.tree == tree
    assert ancestry.tree_pids == pids


def test_without_a_lineage_it_is_the_chain() -> None:
    for complete in (True, False):
        ancestry = Ancestry(chain(b"dig", b"bash", b"init"), complete)
        assert (ancestry.lineage, ancestry.lineage_complete) == (ancestry.chain, complete)
        assert not ancestry.differs


@pytest.mark.parametrize(
    ("ancestry", "tree", "pids", "lineage_tree"),
    [
        (ORPHANED, "dig", "4242", "sshd;bash;make;dig"),
        (replace(ORPHANED, by_lineage=True), "sshd;bash;make;dig", "4100;4200;4210;4242", "sshd;bash;make;dig"),
        (replace(ORPHANED, lineage=ORPHANED.lineage[:2], lineage_complete=False), "dig", "4242", "...;make;dig"),
        (
            Ancestry(ORPHANED.chain, lineage=ORPHANED.chain[:1], lineage_complete=False, by_lineage=True),
            "...;dig",
            "...;4242",
            "...;dig",
        ),
    ],
)
def test_a_lineage_has_a_tree_of_its_own(ancestry: Ancestry, tree: str, pids: str, lineage_tree: str) -> None:
    assert ancestry.differs
    assert (ancestry.tree, ancestry.tree_pids, ancestry.lineage_tree) == (tree, pids, lineage_tree)
