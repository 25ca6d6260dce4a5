"""The time namespace of dnsprobe itself (time_namespaces(7)).

The kernel side has start times of processes without an offset, and ``/proc`` shows them with that of the reader. With
an offset, every process would look like another one that has its pid, and its counters would be taken for final.
Offsets of other processes do no harm: nobody else reads ``/proc`` for dnsprobe.
"""

from __future__ import annotations

from pathlib import Path

from dnsprobe.errors import UserError


def require_no_offset(path: str = "/proc/self/timens_offsets") -> None:
    """Raise UserError if the clock since boot has another zero here than on the host."""
    try:
        text = Path(path).read_text("ascii")
    except OSError:  # a kernel without CONFIG_TIME_NS
        return
    # Each line has the name of a clock, seconds and nanoseconds.
    offsets = {name: (int(seconds), int(ns)) for name, seconds, ns in map(str.split, text.splitlines())}
    seconds, ns = offsets.get("boottime", (0, 0))
    if seconds or ns:
        raise UserError(
            f"dnsprobe is in a time namespace whose clock since boot is {seconds + ns / 1e9:+g} s off: it could not "
            "tell processes apart",
            "start it in the time namespace of the host: nsenter --time=/proc/1/ns/time",
        )
