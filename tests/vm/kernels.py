"""The guests: which kernel each one boots, and which userland it boots into. This list is the only one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guest:
    """One virtual machine.

    ``release`` is the Debian release that the kernel is taken from, ``userland`` the release of all other programs.
    ``processors`` are emulated ones: several take more of the real ones' time, so one guest has them for all.
    ``source`` is empty for Debian's own kernel; else it names the source package out of which ``isra/build.sh`` makes
    the kernel.
    """

    name: str
    release: str
    userland: str
    source: str = ""
    processors: int = 1


#: In the order in which they run.
GUESTS = (
    Guest("5.10", "bullseye", "bookworm"),
    Guest("6.1", "bookworm", "bookworm", processors=2),
    Guest("6.1-isra", "bookworm", "bookworm", source="linux-source-6.1"),
    Guest("6.12", "trixie", "trixie"),
    Guest("sid", "sid", "bookworm"),
)


def choose(names: list[str]) -> list[Guest]:
    """Return the guests of these names in the order of the list, all of them for no name.

    Raises ValueError for a name that no guest has.
    """
    known = [guest.name for guest in GUESTS]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no guest {name!r}: choose from {', '.join(known)}")
    return [guest for guest in GUESTS if not names or guest.name in names]
