"""A wire between two network namespaces that loses, delays, repeats and reorders packets as a test says.

Kernels without sch_netem(8) have no other way, and no other way knows which packets were lost.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from networks import Net

NEAR, FAR, NOBODY = "192.0.2.1", "192.0.2.53", "192.0.2.54"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000  # include/uapi/linux/if_tun.h
_UDP, _TCP = 17, 6


@dataclass(frozen=True)
class Packet:
    """An IPv4 packet of DNS: whether it comes from the server, and its number in this direction, from 0 on."""

    is_answer: bool
    number: int


#: Decides what becomes of a packet: it arrives after each of these delays, in seconds; without any, it is lost.
Plan = Callable[[Packet], Sequence[float]]
AT_ONCE = (0.0,)


def perfect(_packet: Packet) -> Sequence[float]:
    """Pass all packets on."""
    return AT_ONCE


class Wire:
    """The wire: ``near`` has the address NEAR, ``far`` has FAR and NOBODY. It lasts until it is closed.

    Use :meth:`play` to change what it does.
    """

    def __init__(self) -> None:
        self.near, self.far = Net(), Net()
        self._ends = [_device(self.near, NEAR, FAR), _device(self.far, FAR, NEAR)]
        self.far.link("wire", NOBODY, NEAR)
        # Else, the kernel sends six ICMP errors at once, and one in a second after that.
        with self.far.entered():
            Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0", "ascii")
        with self.near.entered():
            subprocess.run(["ip", "route", "add", NOBODY, "dev", "wire"], check=True)
        self._changed = threading.Condition()
        self._wakeup = os.eventfd(0)
        self._is_open = True
        self._queue: list[tuple[float, int, int, bytes]] = []
        self._order = itertools.count()
        self.play(perfect)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def play(self, plan: Plan) -> None:
        """Do from now on what ``plan`` says, and count packets of DNS from 0 on."""
        with self._changed:
            self._plan = plan
            #: How many packets there were, and how many have arrived, by whether they are answers.
            self.came, self.arrived = [0, 0], [0, 0]

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds. It is checked whenever a packet has arrived or was lost."""
        with self._changed:
            if not self._changed.wait_for(condition, 60):
                raise TimeoutError(f"{self.came} came, {self.arrived} arrived")

    def close(self) -> None:
        """End it. Packets that are on their way are lost."""
        self._is_open = False
        os.eventfd_write(self._wakeup, 1)
        self._thread.join()
        for descriptor in (*self._ends, self._wakeup):
            os.close(descriptor)
        self.near.close()
        self.far.close()

    def _run(self) -> None:
        while self._is_open:
            wait = max(0.0, self._queue[0][0] - time.monotonic()) if self._queue else None
            ready, _, _ = select.select([*self._ends, self._wakeup], [], [], wait)
            for side in (0, 1):
                if self._ends[side] in ready:
                    self._take(side, os.read(self._ends[side], 65535))
            while self._queue and self._queue[0][0] <= time.monotonic():
                _, _, side, packet = heapq.heappop(self._queue)
                with self._changed:
                    os.write(self._ends[1 - side], packet)
                    self.arrived[side] += _is_dns(packet)
                    self._changed.notify_all()

    def _take(self, side: int, packet: bytes) -> None:
        with self._changed:
            delays: Sequence[float] = AT_ONCE
            if _is_dns(packet):
                delays = self._plan(Packet(bool(side), self.came[side]))
                self.came[side] += 1
            for delay in delays:
                heapq.heappush(self._queue, (time.monotonic() + delay, next(self._order), side, packet))
            self._changed.notify_all()


def _is_dns(packet: bytes) -> bool:
    return packet[0] == 0x45 and packet[9] in (_UDP, _TCP) and b"\0\x35" in (packet[20:22], packet[22:24])


def _device(net: Net, own: str, peer: str) -> int:
    """Make the device of one end, and return its descriptor."""
    with net.entered():
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN | _IFF_NO_PI))
    net.link("wire", own, peer)
    return descriptor
