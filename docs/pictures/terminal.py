"""Takes the pictures of ``watch``, ``tree`` and ``doctor`` in this folder.

    scripts/setup test && .venv/bin/python docs/pictures/terminal.py

Run it as root. Each picture shows the output of the real program on a terminal of 80 columns. Made-up processes send
real queries in a network namespace of their own. Two facts about this host are replaced: the name of pid 1 becomes
``init``, and only the first two numbers of the kernel release stay.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
PROGRAM = Path(sys.executable).with_name("dnsprobe")
sys.path.insert(0, str(HERE.parents[1] / "tests" / "host"))

from scenes import Server, send, set_comm, set_title  # noqa: E402 - the line above makes it importable

COLUMNS = 80
#: A user that exists on every Debian system.
WWW_DATA = 33

#: The names of a chain of processes, the command line of the last one, and the number of its queries for each name.
ASKERS: list[tuple[str, str, dict[str, int]]] = [
    ("nightly make sh dig", "dig +short db.example.test", {"db.example.test": 12}),
    ("nightly make curl", "curl -s https://updates.example.test/", {"updates.example.test": 84}),
    ("apache2 php-fpm", "php-fpm: pool www", {"db.example.test": 412, "mail.example.test": 37}),
    ("apache2 php-fpm sendmail", "sendmail -t", {"mail.example.test": 21}),
    ("crawler worker-1", "crawler --site a.test", {"a.test": 230}),
    ("crawler worker-2", "crawler --site b.test", {"b.test": 171}),
    ("crawler worker-2 fetch", "fetch --site b.test", {"b.test": 9}),
]


def ask(names: Sequence[str], title: str, queries: dict[str, int]) -> None:
    """Send queries from the last of a chain of processes. The first one becomes a child of pid 1."""

    def descend(left: Sequence[str]) -> None:
        if len(left) < len(names):
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                os._exit(0)
        set_comm(left[0].encode())
        if left[1:]:
            descend(left[1:])
        os.setgid(WWW_DATA)
        os.setuid(WWW_DATA)
        set_title("\0".join(title.split(" ")).encode())
        for name, count in queries.items():
            send(name, str(count))
        os._exit(0)

    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os.close(reader)
            while os.getppid() != 1:  # until its parent has ended
                time.sleep(0.001)
            descend(names)
        os._exit(0)
    os.waitpid(middle, 0)
    os.close(writer)
    os.read(reader, 1)  # the pipe ends when the last process that inherited it has ended
    os.close(reader)


def ask_all() -> None:
    """Send the queries of all chains."""
    for names, title, queries in ASKERS:
        ask(names.split(), title, queries)


class Terminal:
    """A program on a new terminal."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
            environment = {"PATH": "/usr/bin:/bin", "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
            os.execve(PROGRAM, ["dnsprobe", *arguments], environment)
        self.octets = b""

    def read_until(self, what: bytes | None) -> None:
        """Read until the output contains this; None: until the program ends."""
        while what is None or what not in self.octets:
            try:
                more = os.read(self.fd, 65536)
            except OSError:  # EIO: the program has ended
                more = b""
            if not more:
                break
            self.octets += more

    def end(self) -> str:
        """Wait for the end of the program, and return all of its output."""
        self.read_until(None)
        os.close(self.fd)
        os.waitpid(self.pid, 0)
        return self.octets.decode().replace("\r\n", "\n")


def watch(configuration: str) -> str:
    """Return the output of ``watch`` for three processes."""
    terminal = Terminal("watch", "--config", configuration, "example.test")
    terminal.read_until(b"Ctrl-C")
    for names, title, queries in ASKERS[:3]:
        ask(names.split(), title, queries)
    terminal.read_until(b"mail.example.test")
    os.kill(terminal.pid, signal.SIGINT)
    return terminal.end()


def draw(name: str, command: str, text: str) -> None:
    """Write a picture of a command and its output."""
    own = {
        rf"\b{re.escape(Path('/proc/1/comm').read_text().strip())}\[1\]": "init[1]",
        re.escape(os.uname().release): ".".join(os.uname().release.split(".")[:2]),
    }
    for pattern, other in own.items():
        text = re.sub(pattern, other, text)
    assert "started by" not in text
    assert os.uname().nodename not in text.split()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.assemble(("# ", "dim"), (command, "bold")))
    # The program has already broken the lines.
    console.print(Text.from_ansi(text.strip("\n")), no_wrap=False, soft_wrap=False)
    # The template of rich loads fonts from servers on the internet.
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    form = re.sub(r"<!--.*?-->\s*", "", form.replace("font-family: Fira Code,", "font-family:"), flags=re.DOTALL)
    drawn = console.export_svg(title="dnsprobe", code_format=form, unique_id=name)
    assert not re.search(r"url\((?!#)|(href|src)=|@import", drawn)
    (HERE / f"{name}.svg").write_text("\n".join(map(str.rstrip, drawn.splitlines())) + "\n", encoding="utf-8")


def main() -> None:
    """Take all pictures."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Server().start()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write("domains: [example.test, a.test, b.test]\nprobe: {lineage: 0}\n")
        file.flush()
        draw_all(file.name)


def draw_all(configuration: str) -> None:
    """Draw each command. Lineage tracking is off, because it would show the processes that started this script."""
    draw("watch", "dnsprobe watch example.test", watch(configuration))
    arguments = [str(PROGRAM), "run", "--config", configuration, "--log-target", "console"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stderr is not None
            while "ready after" not in daemon.stderr.readline():
                assert daemon.poll() is None
            # The rest of the log fits into the pipe, so nothing has to read it.
            ask_all()
            draw("tree", "dnsprobe tree", Terminal("tree", "--url", "127.0.0.1:10059").end())
        finally:
            daemon.terminate()
    draw("doctor", "dnsprobe doctor", Terminal("doctor").end())


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        main()
    else:
        os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, "--inside"])
