"""How much the kernel side may keep with sockets before the control group of dnsprobe has no memory left.

The state of a TCP connection counts for dnsprobe, and anyone can open connections. Near the limit, the kernel would end
the daemon. So once a second, the kernel side gets as much room as is left below three quarters of the limit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from dnsprobe.process.memory import Memory, read_memory

_log = logging.getLogger(__name__)

#: Octets of a state, rounded up: bpf/abi.h, struct connection and struct begun, with what the kernel adds to them.
STATE_SIZE = 512
#: The part of the memory above which nothing more is kept, and the one below which the log says that it is over.
_FULL, _FREE = 0.75, 0.70


class StorageRoom:
    """Sets the room for what is kept with sockets.

    ``put`` sets the number of states, or None for any number. ``read`` returns the memory with its limit, None without
    a limit.
    """

    def __init__(self, put: Callable[[int | None], None], read: Callable[[], Memory | None] = read_memory) -> None:
        self._put, self._read = put, read
        self._was_full = False

    def update(self) -> None:
        """Set the room anew. Call it about once a second. Raises OSError if the kernel refuses it."""
        memory = self._read()
        if memory is None:
            self._put(None)
            return
        self._put(max(int(memory.limit * _FULL) - memory.used, 0) // STATE_SIZE)
        self._report(memory)

    def _report(self, memory: Memory) -> None:
        if not self._was_full and memory.used > memory.limit * _FULL:
            self._was_full = True
            _log.warning(
                "%d of %d MiB of memory are used: dnsprobe keeps no state of new TCP connections. Of these, it reads "
                "queries that are in one segment; others count as unread (busy)",
                memory.used >> 20,
                memory.limit >> 20,
            )
        elif self._was_full and memory.used < memory.limit * _FREE:
            self._was_full = False
            _log.info("there is memory again: dnsprobe keeps the state of new TCP connections")
