"""Starts loader children. Runs as a script, without the rest of dnsprobe, so that it starts fast and stays small.

The daemon drops the capabilities that attaching needs, but has to attach again if a hook fails. This process keeps
them, and does nothing else: each request of the daemon has the two descriptors of a new loader, its channel to the
daemon and the file for its output.
"""

import ctypes
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1


def start_loader(channel: int, output: int) -> None:
    """Start a loader as a child of this process. Its end needs no wait: SIGCHLD is ignored."""
    if os.fork():
        return
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.set_inheritable(channel, True)
        # -P: the current folder may belong to another user, who could put a json.py there.
        os.execv(sys.executable, [sys.executable, "-P", "-m", "dnsprobe.kernel.loader", str(channel)])
    finally:
        os._exit(1)


def main() -> None:
    """Serve on the descriptor that the command line names; end when the daemon does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as daemon:
        daemon.set_inheritable(False)
        while True:
            request, descriptors, _flags, _address = socket.recv_fds(daemon, 1, 2)
            if not request:
                return
            channel, output = descriptors
            try:
                start_loader(channel, output)
            except OSError as error:
                os.write(output, f"cannot start a process: {error.strerror}\n".encode())
            for descriptor in descriptors:
                os.close(descriptor)


if __name__ == "__main__":
    main()
