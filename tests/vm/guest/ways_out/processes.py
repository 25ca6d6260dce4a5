"""Situations: what is special is the process that asks, not the way of the packet."""

from __future__ import annotations

import os
import socket

from networks import Net

from ways_out.place import FAR4, NotPlayed, Place, message, sender_to, set_comm


def gone_at_once(place: Place) -> None:
    """Twenty processes that send one query each and exit without closing their socket."""
    far = place.receiver(place.cable())
    askers = []
    for number, name in enumerate(place.names(20)):
        place.right(name, comm=f"gone{number}")

        def ask(name: str = name) -> None:
            sender_to(FAR4).send(message(name))
            os._exit(0)

        askers.append(place.start(ask, f"gone{number}"))
    for asker in askers:
        place.wait(asker)
    far.over_udp(20)


def real_time(place: Place) -> None:
    far = place.receiver(place.cable())
    (name,) = place.names(1)
    place.right(name, count=100)

    def ask() -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
        with sender_to(FAR4) as sender:
            for _ in range(100):
                sender.send(message(name))

    place.ask(ask)
    far.over_udp(100)


class Early:
    """A process with sockets that it opens at once, and uses when it is asked to: over UDP and TCP, on loopback."""

    NAME = "opened_before"

    def __init__(self) -> None:
        self.net = Net()
        with self.net.entered():
            self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._receiver.bind(("127.0.0.1", 53))
            self._receiver.settimeout(60)
            listener = socket.create_server(("127.0.0.1", 53))
            reader, self._go = os.pipe()
            self._pid = os.fork()
            if self._pid == 0:
                os.close(self._go)
                self._wait_and_send(reader)
            self._stream, _ = listener.accept()
            self._stream.settimeout(60)

    def _wait_and_send(self, reader: int) -> None:
        try:
            set_comm("early")
            datagrams = sender_to("127.0.0.1")
            stream = socket.create_connection(("127.0.0.1", 53))
            if os.read(reader, 1):
                for number in range(3):
                    datagrams.send(message(f"q{number:02}.{self.NAME}.ways.test"))
                query = message(f"tcp00.{self.NAME}.ways.test")
                stream.sendall(len(query).to_bytes(2, "big") + query)
        finally:
            os._exit(0)

    def situation(self, place: Place) -> None:
        """Send, and note what was sent."""
        os.write(self._go, b"1")
        os.waitpid(self._pid, 0)
        for number in range(3):
            self._receiver.recv(4096)
            place.right(f"q{number:02}.{place.domain}", server="127.0.0.1", comm="early")
        if not self._stream.recv(4096):
            raise NotPlayed("nothing arrived over TCP")
        place.right(f"tcp00.{place.domain}", server="127.0.0.1", transport="tcp", comm="early")
