"""Network namespaces that several processes of a test share. The tests in tests/host use them, too."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8913, 0x8914, 1, 0x40  # netdevice(7)


class Net:
    """A network namespace with loopback up. It lasts until it is closed, and longer while a process is in it.

    ``path`` names it for ip(8), as long as it is not closed: ``ip link add ... netns PATH``.
    """

    def __init__(self) -> None:
        with open("/proc/thread-self/ns/net", "rb") as outside:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "unshare")
            try:
                self._inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                _set_up("lo")
            finally:
                _enter(outside.fileno())
        self.path = f"/proc/{os.getpid()}/fd/{self._inside}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread into the namespace: its new sockets, and the processes that it starts, belong to it."""
        with open("/proc/thread-self/ns/net", "rb") as outside:
            _enter(self._inside)
            try:
                yield
            finally:
                _enter(outside.fileno())

    def link(self, device: str, own: str, peer: str) -> None:
        """Configure one end of a point-to-point link: its own address and the address of the other end."""
        with self.entered():
            subprocess.run(["ip", "address", "add", own, "peer", peer, "dev", device], check=True)
            subprocess.run(["ip", "link", "set", device, "up"], check=True)

    def wait_until_running(self, device: str) -> None:
        """Wait until the kernel has noticed that a device is connected. Until then, it drops packets."""
        until = time.monotonic() + 60
        with self.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            while not _flags(asked, device) & _IFF_RUNNING:
                if time.monotonic() > until:
                    raise TimeoutError(f"{device} is not connected")
                time.sleep(0.005)

    def close(self) -> None:
        os.close(self._inside)


def _flags(asked: socket.socket, device: str) -> int:
    # struct ifreq: the name of the device, then its flags.
    request = struct.pack("16sh14x", device.encode(), 0)
    return int(struct.unpack_from("H", fcntl.ioctl(asked, _SIOCGIFFLAGS, request), 16)[0])


def _set_up(device: str) -> None:
    """Set a device up. ip(8) would do the same, but starting it takes an emulated processor long."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        flags = _flags(asked, device) | _IFF_UP
        fcntl.ioctl(asked, _SIOCSIFFLAGS, struct.pack("16sH14x", device.encode(), flags))


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "setns")
