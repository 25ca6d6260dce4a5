"""Takes the pictures of the page in this folder: the real program, opened in Chromium.

    scripts/setup test && .venv/bin/python docs/pictures/browser.py

Run it as root. It watches only made-up names, for which only its own processes send queries, so the pictures show
nothing of this host.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Browser, ViewportSize, sync_playwright

FOLDER = Path(__file__).parent
PROGRAM = str(Path(sys.executable).with_name("dnsprobe"))
PATIENCE = 60.0
#: Seconds that a process waits before its first query. By then, pid 1 is its parent.
ADOPTION = 0.5
#: Seconds during which all processes send their queries at the same time, so the last queries come from many processes.
SPREAD = 3.0

CONFIGURATION = """\
domains:
- shop.test
- updates.test
- {pattern: '*.tracker.test', name: trackers}
- {pattern: =wpad.test, name: proxy search}
journal: {repeat: 1ms}
answers: {timeout: 5s}
metrics: {last_queries: always}
"""

#: dnsmasq answers with an address, and with NXDOMAIN below tracker.test. It refuses what it does not know: wpad.test.
RESOLVER = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=root", "--no-hosts"]
RESOLVER += ["--no-resolv", "--bind-interfaces", "--listen-address=127.0.0.1", "--local=/tracker.test/"]
for domain in ("shop.test", "updates.test"):
    RESOLVER += [f"--local=/{domain}/", f"--address=/{domain}/192.0.2.7"]

#: A chain of process names, the domains that the last process asks for, and its number of queries.
ASKERS: list[tuple[str, Sequence[str], int]] = [
    ("nightly;check-updates;curl", ["updates.test", "mirror.updates.test"], 38),
    ("nightly;check-updates;apt", ["security.updates.test"], 64),
    ("nightly;backup;rsync", ["store.shop.test"], 21),
    ("cron;sh;report;sendmail", ["mail.shop.test"], 12),
    ("cron;sh;report;psql", ["db.shop.test"], 17),
    ("shopd;worker;python3", ["api.shop.test", "db.shop.test", "cache.shop.test"], 140),
    ("shopd;worker;python3;curl", ["pay.shop.test"], 45),
    ("shopd;metrics", ["push.shop.test"], 52),
    ("runner;make;npm;node", ["registry.shop.test", "cdn.tracker.test"], 88),
    ("runner;make;cc", ["cache.shop.test"], 9),
    ("runner;make;go;git", ["git.shop.test"], 31),
    ("desktop;browser", ["www.shop.test", "a.tracker.test", "b.tracker.test"], 76),
    ("desktop;browser;renderer", ["pixel.tracker.test"], 27),
    ("desktop;panel;weather", ["wpad.test"], 14),
]


def message(name: str, qtype: int) -> bytes:
    """Return a DNS query (RFC 1035, section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return bytes.fromhex("1234 0100 0001 0000 0000 0000") + labels + b"\0" + struct.pack("!HH", qtype, 1)


def become(chain: Sequence[str], names: Sequence[str], count: int) -> None:
    """Become the first of a chain of processes, whose last one sends the queries; return when all have ended."""
    ctypes.CDLL(None).prctl(15, chain[0].encode(), 0, 0, 0)  # PR_SET_NAME
    if chain[1:]:
        child = os.fork()
        if child == 0:
            become(chain[1:], names, count)
            os._exit(0)
        os.waitpid(child, 0)
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", 53))
        for number in range(count):
            name = names[number % len(names)]
            sender.send(message(name, (1, 28, 65)[number // len(names) % 3]))
            sender.recv(512)
            time.sleep(SPREAD / count)


def ask() -> None:
    """Start a resolver, and all chains as children of pid 1, so that each tree begins with its own chain."""
    with subprocess.Popen(RESOLVER, stderr=subprocess.DEVNULL) as resolver:
        wait_for_resolver()
        reader, writer = os.pipe()
        start_chains(reader)
        os.close(writer)
        os.read(reader, 1)  # the pipe ends when the last process that inherited it has ended
        resolver.kill()


def wait_for_resolver() -> None:
    """Wait until the resolver answers. It is asked for a name that nobody watches."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", 53))
        sender.settimeout(0.1)
        while True:
            try:
                sender.send(message("ready.invalid", 1))
                sender.recv(512)
            except OSError:
                time.sleep(0.01)
            else:
                return


def start_chains(reader: int) -> None:
    """Start all chains, without the end of a pipe that only the caller reads."""
    random.seed(1)
    askers = random.sample(ASKERS, len(ASKERS))
    for chain, names, count in askers:
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                os.close(reader)
                os.setsid()
                time.sleep(ADOPTION)
                become(chain.split(";"), names, count)
            os._exit(0)
        os.waitpid(child, 0)


def take(browser: Browser, url: str) -> None:
    """Take the pictures."""
    size = ViewportSize(width=1100, height=860)
    light = browser.new_page(color_scheme="light", viewport=size, reduced_motion="reduce")
    light.goto(url)
    light.get_by_role("treeitem", name="shopd").first.hover()
    light.screenshot(path=FOLDER / "page-light.png")
    dark = browser.new_page(color_scheme="dark", viewport=size, reduced_motion="reduce")
    dark.goto(url)
    dark.get_by_role("treeitem", name="nightly").first.click()
    dark.get_by_label("Search").fill("curl")
    dark.get_by_role("treeitem", name="curl").first.hover()
    dark.screenshot(path=FOLDER / "page-dark.png")


def main() -> None:
    """Start dnsprobe, send the queries, and take the pictures."""
    expected = sum(count for _, _, count in ASKERS)
    with tempfile.TemporaryDirectory() as folder:
        configuration, log = Path(folder, "dnsprobe.yaml"), Path(folder, "log")
        configuration.write_text(CONFIGURATION)
        command = [PROGRAM, "run", "--config", str(configuration), "--listen", "127.0.0.1:0", "--log-target", "console"]
        with log.open("wb") as output:
            service = subprocess.Popen(command, stderr=output)
        try:
            ready = wait_for(log, service, "ready after", 1)
            url = ready.split("ready after")[1].split(": ", 1)[1].split("/metrics")[0]
            prefix = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]
            subprocess.run([*prefix, sys.executable, __file__, "ask"], check=True)
            wait_for(log, service, " asked for ", expected)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                take(browser, f"{url}/")
                browser.close()
        finally:
            service.terminate()
            service.wait(PATIENCE)


def wait_for(log: Path, service: subprocess.Popen[bytes], text: str, times: int) -> str:
    """Wait until a log contains a text this many times, and return the log."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and service.poll() is None:
        content = log.read_text("utf-8")
        if content.count(text) >= times:
            return content
        time.sleep(0.05)
    raise SystemExit(f"no {text!r}, {times} times:\n{log.read_text('utf-8')}")


if __name__ == "__main__":
    if sys.argv[1:] == ["ask"]:
        ask()
    else:
        main()
