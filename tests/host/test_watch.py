"""``dnsprobe watch`` prints queries with their trees."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from conftest import PATIENCE, PROGRAM, Program

Scene = Callable[..., Any]


def test_watch_prints_the_tree_of_a_query(start_watch: Callable[..., Program], scene: Scene) -> None:
    watch = start_watch("watched.test")
    truth = scene("send", "www.watched.test", 3)
    assert watch.stop(signal.SIGINT) == 0
    text = watch.out.read_text("utf-8")
    assert "www.watched.test A udp 127.0.0.1#53" in text
    assert f"[{truth['pid']}]" in text
    assert "└─" in text
    assert "\x1b" not in text
    assert "3 queries from 1 process tree, 1 shown, 0 lost" in watch.err.read_text("utf-8")


#: Two questions: no server answers such a message, so it is not read.
TWO_QUESTIONS = """
import socket
query = bytes.fromhex("0001 0100 0002 0000 0000 0000 0377 7777 0777 6174 6368 6564 0474 6573 7400 0001 0001")
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(query, ("127.0.0.1", 53))
"""


def test_the_summary_has_the_number_of_queries_that_were_printed(
    start_watch: Callable[..., Program], scene: Scene, in_namespace: list[str]
) -> None:
    watch = start_watch("watched.test")
    # It has an event, which belongs to no name.
    subprocess.run([*in_namespace, sys.executable, "-c", TWO_QUESTIONS], check=True)
    scene("send", "www.watched.test", 3)
    assert watch.stop(signal.SIGINT) == 0
    assert watch.out.read_text("utf-8").count("watched.test A udp") == 1
    assert "3 queries from 1 process tree, 1 shown, " in watch.err.read_text("utf-8")


def test_watch_uses_colors_on_a_terminal(scene: Scene) -> None:
    main, terminal = pty.openpty()
    with subprocess.Popen(
        [str(PROGRAM), "watch", "watched.test"],
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"} | {"NO_COLOR": ""},
    ) as watch:
        os.close(terminal)
        text = b""
        while b"watching" not in text:
            text += os.read(main, 4096)
        scene("send", "www.watched.test", 1)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(PATIENCE) == 0
        try:
            while more := os.read(main, 4096):
                text += more
        except OSError:  # Linux reports EIO after the other end of a terminal was closed
            pass
    os.close(main)
    assert b"\x1b[1mwww.watched.test\x1b[0m" in text


def test_watch_ends_without_an_error_when_its_reader_does(scene: Scene) -> None:
    with subprocess.Popen(
        [str(PROGRAM), "watch", "oneshot.test"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as watch:
        assert watch.stderr is not None
        assert watch.stdout is not None
        assert b"watching" in watch.stderr.readline()
        watch.stdout.close()
        scene("oneshots", 50, 4)
        assert watch.wait(PATIENCE) == 0
        assert b"Traceback" not in watch.stderr.read()
