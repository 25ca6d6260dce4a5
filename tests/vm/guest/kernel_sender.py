"""Sends a query over TCP in which the kernel itself writes the first label.

Data that Linux sends by itself lies in kernel memory (ITER_KVEC of include/linux/uio.h). A mount of 9P over a socket
(Documentation/filesystems/9p.rst, trans=fd) begins with such a write. Its octets are valid as a label.
"""

from __future__ import annotations

import ctypes
import socket
import sys
import threading

#: The size of the first message: length, Tversion, no tag, maximum message size, version.
VERSION = "9P2000.L"
SIZE = 4 + 1 + 2 + 4 + 2 + len(VERSION)


def main(suffix: str, folder: str) -> None:
    """Send the query for the label below ``suffix``. The mount at ``folder`` fails when the connection ends."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in suffix.split(".")) + b"\0"
    header = bytes.fromhex("4242 0100 0001 0000 0000 0000")
    rest = labels + bytes.fromhex("0001 0001")
    with socket.create_server(("127.0.0.1", 53)) as listener, socket.socket() as sender:
        sender.connect(listener.getsockname())
        receiver = listener.accept()[0]
        front = (len(header) + 1 + SIZE + len(rest)).to_bytes(2, "big") + header + bytes([SIZE])
        sender.sendall(front)
        options = f"trans=fd,rfdno={sender.fileno()},wfdno={sender.fileno()},version=9p2000.L"
        arguments = (b"kernel", folder.encode(), b"9p", 0, options.encode())
        mount = threading.Thread(target=ctypes.CDLL(None).mount, args=arguments)
        mount.start()
        take(receiver, len(front) + SIZE)
        sender.sendall(rest)
        take(receiver, len(rest))
        receiver.close()
        sender.shutdown(socket.SHUT_RDWR)
        mount.join()


def take(receiver: socket.socket, size: int) -> None:
    """Receive ``size`` octets; OSError if there are fewer."""
    while size:
        taken = len(receiver.recv(size))
        if not taken:
            raise OSError(f"{size} octets are missing")
        size -= taken


if __name__ == "__main__":
    main(*sys.argv[1:])
