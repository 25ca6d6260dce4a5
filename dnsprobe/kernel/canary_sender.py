"""Sends canaries: run by itself, without the rest of dnsprobe, so that it starts fast.

Each line of standard input is a way to send, an address, a port and the datagram in hexadecimal. For each there is a
line of standard output: empty, or why it could not be sent.
"""

import socket
import sys


def send(way: str, address: str, port: int, message: bytes) -> None:
    """Send one datagram in one of the ways that programs use."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        if way == "connected":
            sender.connect((address, port))
            sender.send(message)
        else:
            sender.sendto(message, (address, port))


if __name__ == "__main__":
    for line in sys.stdin:
        what, where, number, octets = line.split()
        try:
            send(what, where, int(number), bytes.fromhex(octets))
        except OSError as error:
            print(error.strerror)
        else:
            print()
