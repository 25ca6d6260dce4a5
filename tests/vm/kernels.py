"""The guests: which kernel each one boots, and which userland it boots into. This list is the only one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guest:
    """One virtual machine.

    ``release`` is the Debian release that the kernel is taken from, ``userland`` the release of all other programs.
    ``source`` is empty for Debian's own kernel; otherwise it names the source package from which ``isra/build.sh``
    builds the kernel. ``processors`` is a number of emulated ones: each costs time of the host, so only one guest has
    several. ``systemd`` is true for the one guest of each userland that runs the tests of systemd, journald and dpkg:
    the kernel makes no difference to them. ``preemption`` is true for those that run the tests of processes that
    interrupt each other: the kernel has to be preemptible, and to count all runs that it skips. ``hooks`` is true for a
    kernel that differs from another guest's only in the functions that hooks are attached to: only the tests of hooks
    run there. ``arguments`` are more of the kernel command line.
    """

    name: str
    release: str
    userland: str
    source: str = ""
    processors: int = 1
    systemd: bool = False
    preemption: bool = False
    hooks: bool = False
    arguments: tuple[str, ...] = ()


#: On new kernels, BPF programs allocate the storage of a socket by kmalloc_nolock(). Without cmpxchg16b, which the
#: emulated processor lacks (machine.py), that works only in caches that are checked (F: the cheapest check): mm/slub.c.
#: Real processors that are not 20 years old have the instruction.
_ALLOCATES_WITHOUT_CMPXCHG16B = ("slab_debug=F,kmalloc-*",)

#: In the order in which they run.
GUESTS = (
    Guest("5.10", "bullseye", "bookworm"),
    Guest("6.1", "bookworm", "bookworm", processors=2, systemd=True),
    Guest("6.1-isra", "bookworm", "bookworm", source="linux-source-6.1", hooks=True),
    Guest("6.12", "trixie", "trixie", systemd=True, preemption=True),
    Guest("sid", "sid", "bookworm", preemption=True, arguments=_ALLOCATES_WITHOUT_CMPXCHG16B),
)


def choose(names: list[str]) -> list[Guest]:
    """Return the guests with these names, in the order of the list; without names, all of them.

    Raises ValueError for a name that no guest has.
    """
    known = [guest.name for guest in GUESTS]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no guest {name!r}: choose from {', '.join(known)}")
    return [guest for guest in GUESTS if not names or guest.name in names]
