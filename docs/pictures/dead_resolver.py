"""Takes the pictures of a host whose resolver dies: the page, ``watch``, ``tree``, and the alerts of Prometheus.

    scripts/setup test && .venv/bin/python docs/pictures/dead_resolver.py

Run it as root. Two real resolvers (dnsmasq) run in a network namespace of their own, and made-up processes ask them all
the time. One of the resolvers is killed. All pictures are taken within ten seconds. For that, Prometheus scrapes each
second, and looks ten seconds back instead of two minutes.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from browser import message, wait_for
from playwright.sync_api import Page, ViewportSize, sync_playwright
from terminal import HERE, PROGRAM, Terminal, draw

# terminal.py makes it importable.
from scenes import set_comm, set_title  # isort: skip

RULES = HERE.parents[1] / "packaging" / "prometheus"
PROMETHEUS = Path(sys.prefix, "prometheus/usr/bin")
IN_NET = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]
#: Seconds between the death of the resolver and the last picture, and those that everything runs before.
LIMIT, BEFORE = 10.0, 25.0
#: Seconds between two queries of a process, and until it stops waiting for an answer.
PAUSE, PATIENCE = 0.15, 1.0

#: The resolvers: their address, and the domain of their names.
DYING, LIVING = ("127.0.0.1", "shop.test"), ("127.0.0.2", "updates.test")
#: Chains of processes, the resolver that the last one asks, and the first labels of the names. dnsmasq has no "gone".
ASKERS: list[tuple[str, tuple[str, str], Sequence[str]]] = [
    ("shopd;worker;python3", DYING, ["api", "db", "cache"]),
    ("shopd;worker;python3;curl", DYING, ["pay"]),
    ("shopd;metrics", DYING, ["push", "gone"]),
    ("cron;sh;report;psql", DYING, ["db"]),
    ("nightly;check-updates;apt", LIVING, ["security", "gone"]),
    ("nightly;check-updates;curl", LIVING, ["mirror"]),
]
FIRING = 'sum by (alertname, domain) (ALERTS{alertstate="firing",domain!=""})'
CONFIGURATION = """\
domains: [shop.test, updates.test]
answers: {timeout: 5s}
probe: {lineage: 0, dot_ports: []}
journal: {repeat: 1s}
metrics: {last_queries: always}
"""


def ask(chain: Sequence[str], server: str, names: Sequence[str]) -> None:
    """Become the first of a chain of processes, whose last one asks until it is killed."""
    set_comm(chain[0].encode())
    if chain[1:]:
        if not os.fork():
            ask(chain[1:], server, names)
        os.wait()
        os._exit(0)
    set_title(f"{chain[0]}\0--domain\0{names[0].partition('.')[2]}".encode())
    number = 0
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(PATIENCE)
            asker.connect((server, 53))
            try:
                asker.send(message(names[number % len(names)], 1))
                asker.recv(512)
            except OSError:  # refused, or no answer
                pass
        number += 1
        time.sleep(PAUSE)


def run_askers() -> None:
    """Start resolvers and processes, print the pid of the resolver that will die, and wait for the end of input."""
    own = ["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=root", "--no-hosts", "--no-resolv"]
    resolvers = []
    for address, domain in (DYING, LIVING):
        names = {label for _, at, labels in ASKERS for label in labels if at == (address, domain)} - {"gone"}
        records = [f"--host-record={label}.{domain},192.0.2.7" for label in sorted(names)]
        listen = ["--bind-interfaces", f"--listen-address={address}", f"--local=/{domain}/"]
        resolvers.append(subprocess.Popen(["dnsmasq", *own, *listen, *records], stderr=subprocess.DEVNULL))
    wait_for_resolvers()
    os.setpgid(0, 0)
    for chain, (server, domain), labels in ASKERS:
        middle = os.fork()
        if not middle:
            parent = os.getpid()
            if not os.fork():
                while os.getppid() == parent:  # until it has ended
                    time.sleep(0.001)
                ask(chain.split(";"), server, [f"{label}.{domain}" for label in labels])
            os._exit(0)
        os.waitpid(middle, 0)
    print(resolvers[0].pid, flush=True)
    sys.stdin.read()
    for resolver in resolvers:
        resolver.kill()
    # All processes that ask are in this group, and nothing else is.
    os.killpg(0, signal.SIGKILL)


def wait_for_resolvers() -> None:
    """Wait until both answer. They are asked for names that nobody watches."""
    for address, _ in (DYING, LIVING):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(0.1)
            asker.connect((address, 53))
            while True:
                try:
                    asker.send(message("ready.invalid", 1))
                    asker.recv(512)
                    break
                except OSError:
                    time.sleep(0.01)


def with_short_windows(path: Path) -> str:
    """Return a file of rules that looks back ten seconds in place of two minutes."""
    return re.sub(r"for: 15s", "for: 1s", path.read_text("utf-8").replace("[2m]", "[10s]"))


@contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """Run dnsprobe, and yield its address."""
    configuration, log = folder / "dnsprobe.yaml", folder / "log"
    configuration.write_text(CONFIGURATION)
    command = [
        str(PROGRAM),
        "run",
        "--config",
        str(configuration),
        "--listen",
        "127.0.0.1:0",
        "--log-target",
        "console",
    ]
    with log.open("wb") as output:
        service = subprocess.Popen(command, stderr=output)
    try:
        ready = wait_for(log, service, "ready after", 1)
        yield ready.split("ready after")[1].split(": ", 1)[1].split("/metrics")[0].removeprefix("http://")
    finally:
        service.terminate()
        service.wait(60)


@contextmanager
def prometheus(folder: Path, address: str) -> Iterator[str]:
    """Run Prometheus with the shipped alerts, and yield its URL."""
    (folder / "alerts.yaml").write_text(with_short_windows(RULES / "dnsprobe-alerts.yaml"))
    (folder / "prometheus.yaml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [alerts.yaml]\nscrape_configs:\n"
        f"- {{job_name: dnsprobe, static_configs: [{{targets: ['{address}'], labels: {{instance: web1}}}}]}}\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--config.file=prometheus.yaml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
    command = [str(PROMETHEUS / "prometheus"), *options]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def alerts(url: str) -> str:
    """Return the alerts that fire, one a line."""
    command = [str(PROMETHEUS / "promtool"), "query", "instant", url, FIRING]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def last_queries(text: str, count: int) -> str:
    """Return the last queries in the output of ``watch``, each with its tree."""
    # The first part says what is watched, the last one may not be whole.
    return "\n\n".join(re.split(r"\n\n", text)[1:-1][-count:])


def read_for(terminal: Terminal, seconds: float) -> str:
    """Return all that a program prints within this time, with what it has printed before."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and select.select([terminal.fd], [], [], left)[0]:
        terminal.octets += os.read(terminal.fd, 65536)
    return terminal.octets.decode("utf-8", "ignore").replace("\r\n", "\n")


class Host:
    """All that runs: the daemon at ``address``, Prometheus at ``url``, the resolvers and those that ask them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.address = stack.enter_context(daemon(folder))
        self.url = stack.enter_context(prometheus(folder, self.address))
        command = [*IN_NET, sys.executable, __file__, "askers"]
        askers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert askers.stdin is not None
        assert askers.stdout is not None
        stack.callback(askers.wait, 60)
        stack.callback(askers.stdin.close)
        self._resolver = int(askers.stdout.readline())
        self.watch = Terminal("watch", "--config", str(folder / "dnsprobe.yaml"), "shop.test")
        stack.callback(os.kill, self.watch.pid, signal.SIGKILL)
        self.watch.read_until(b"Ctrl-C")

    def kill_resolver(self) -> None:
        """Kill the resolver that dies."""
        os.kill(self._resolver, signal.SIGKILL)


def take(host: Host, pages: dict[str, Page]) -> None:
    """Kill the resolver, and take the pictures of everything."""
    read_for(host.watch, BEFORE)
    assert not (early := alerts(host.url)), early
    before = last_queries(read_for(host.watch, 0.0), 1)
    died = time.monotonic()
    host.kill_resolver()
    watched = last_queries(read_for(host.watch, 3.0), 2)
    # The numbers that the page shows are at most five seconds old.
    read_for(host.watch, 4.0)
    for theme, page in pages.items():
        page.get_by_role("treeitem", name="shopd").first.hover()
        page.screenshot(path=HERE / f"dead-page-{theme}.png")
    firing = alerts(host.url)
    tree = Terminal("tree", "--url", host.address, "--watch", "0.5")
    tree.read_until(b"per second")
    seconds = time.monotonic() - died
    os.kill(tree.pid, signal.SIGINT)
    drawn = tree.end().rpartition("\x1b[?25h\x1b[?1049l")[2]
    assert firing, "no alert fires"
    assert seconds < LIMIT, f"it took {seconds:.1f} s"
    print(f"All pictures were taken within {seconds:.1f} s.")
    draw("dead-watch", "dnsprobe watch shop.test", f"{before}\n\n{watched}")
    draw("dead-tree", "dnsprobe tree --watch 0.5", drawn)
    draw("dead-alerts", f"promtool query instant http://127.0.0.1:9090 '{FIRING}'", firing)


def main() -> None:
    """Run everything, kill a resolver, and take the pictures."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = Host(folder, stack)
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        stack.callback(browser.close)
        size = ViewportSize(width=1100, height=860)
        pages: dict[str, Page] = {}
        for theme in ("light", "dark"):
            pages[theme] = browser.new_page(color_scheme=theme, viewport=size, reduced_motion="reduce")
            pages[theme].goto(f"http://{host.address}/")
        take(host, pages)


if __name__ == "__main__":
    if sys.argv[1:] == ["askers"]:
        run_askers()
    else:
        main()
