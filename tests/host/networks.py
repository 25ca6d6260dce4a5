"""Network namespaces that several processes of a test share."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import PATIENCE

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h


class Net:
    """A network namespace with loopback up. It lasts until it is closed."""

    def __init__(self) -> None:
        hold = ["unshare", "--net", "sh", "-ec", "ip link set lo up; echo; exec cat"]
        # cat ends at the end of its input, so it ends with us even if we are killed.
        self._holder = subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.pid = self._holder.pid

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread into the namespace: its new sockets, and the processes that it starts, belong to it."""
        with open("/proc/thread-self/ns/net", "rb") as outside, open(f"/proc/{self.pid}/ns/net", "rb") as inside:
            _enter(inside.fileno())
            try:
                yield
            finally:
                _enter(outside.fileno())

    def link(self, device: str, own: str, peer: str) -> None:
        """Configure one end of a point-to-point link: its own address and the address of the other end."""
        with self.entered():
            subprocess.run(["ip", "address", "add", own, "peer", peer, "dev", device], check=True)
            subprocess.run(["ip", "link", "set", device, "up"], check=True)

    def close(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait(PATIENCE)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "setns")
