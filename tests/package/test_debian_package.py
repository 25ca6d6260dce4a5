"""The Debian package in minimal Debian 12 and 13: built here, installed with apt only, used, and removed.

The tests of one release use one tree, in the order of this file. All but the last leave the package installed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from debian_tree import DebianTree, build_deb, debian_tree, progress_printer
from products import PrintLine

from dnsprobe import __version__

REPOSITORY = Path(__file__).parents[2]
#: Seconds. No step takes as long, even on a slow machine.
PATIENCE = 60.0
DEB = f"/root/dnsprobe_{__version__}_all.deb"
CONFIGURATION = "/etc/dnsprobe/dnsprobe.yaml"
UNITS = ("dnsprobe.service", "dnsprobe.socket")

#: Paths that apt and the dependencies write in addition to the files of packages. The dependencies stay installed.
OF_OTHERS = re.compile(
    r"/var/(cache|log)/.*|/var/lib/(apt|dpkg|python)(/.*)?|/run/systemd(/.*)?|/etc/ld\.so\.cache"
    r"|/(usr|etc)/.*/__pycache__(/.*)?|/etc/python3(/.*)?|/usr/local/lib/python3[^/]*(/dist-packages)?|/etc/inputrc"
    r"|/etc/ca-certificates\.conf|/etc/ssl/certs/.*|/usr/local/share/ca-certificates"
    r"|/etc/rc.\.d/...procps|/etc/(hosts|networks|localtime)"
)

# Replaces systemctl, as systemd does not run here: records its arguments.
RECORDER = """\
#!/bin/sh
echo "$*" >>/run/asked
"""
RECORDER_FOLDER = "/usr/local/recorder"

# Modules that must never be imported from the environment of the user.
TRAP = 'open("/run/trapped", "a").write(__file__ + "\\n")\nraise SystemExit("imported " + __file__)\n'
TRAPPED = ("argparse", "bcc", "ctypes", "dnsprobe", "json", "sitecustomize", "socket", "usercustomize", "yaml")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for chroot and BPF: run scripts/test as root")


@pytest.fixture(scope="module")
def print_line(pytestconfig: pytest.Config) -> PrintLine:
    return progress_printer(pytestconfig)


@pytest.fixture(scope="module")
def deb(print_line: PrintLine) -> Path:
    """Return the package, built from the working tree and checked by lintian."""
    print_line("building")
    return build_deb()


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def tree(request: pytest.FixtureRequest, deb: Path, print_line: PrintLine) -> Iterator[DebianTree]:
    """Return a tree with the package installed."""
    release: str = request.param
    with debian_tree(release, lambda text: print_line(f"{release}: {text}")) as tree:
        shutil.copy(deb, tree.root / DEB.lstrip("/"))
        print_line(f"{release}: installing")
        tree.apt("update")
        tree.remember()
        tree.apt("install", DEB)
        yield tree


@contextmanager
def recorded(tree: DebianTree) -> Iterator[dict[str, str]]:
    """Make the maintainer scripts believe that systemd runs; yield the environment with the recorder."""
    tree.write(f"{RECORDER_FOLDER}/systemctl", RECORDER, 0o755)
    (tree.root / "run/systemd/system").mkdir(parents=True)
    try:
        yield {"PATH": f"{RECORDER_FOLDER}:/usr/sbin:/usr/bin:/sbin:/bin"}
    finally:
        shutil.rmtree(tree.root / "run/systemd/system")
        shutil.rmtree(tree.root / RECORDER_FOLDER.lstrip("/"))


def asked(tree: DebianTree) -> list[str]:
    """Return the recorded calls of systemctl about dnsprobe since the last call, and forget them."""
    path = tree.root / "run/asked"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line for line in lines if "daemon-reload" in line or "dnsprobe" in line]


def test_program_and_documents_are_installed(tree: DebianTree) -> None:
    assert tree.run("dnsprobe", "--version") == f"dnsprobe {__version__}\n"
    assert tree.run("dnsprobe", "check").startswith("good: ")
    for page in ("man1/dnsprobe.1", "man5/dnsprobe.yaml.5", "man7/dnsprobe-journal.7"):
        assert (tree.root / f"usr/share/man/{page}.gz").exists()
    documents = tree.root / "usr/share/doc/dnsprobe"
    links = [link for path in documents.glob("*.md") for link in re.findall(r"\]\(([^#)]+)", path.read_text())]
    places = [os.path.join("/usr/share/doc/dnsprobe", link) for link in links if "://" not in link]
    assert places
    # Documents for developers are in the source only.
    assert not (documents / "architecture.md").exists()
    assert [place for place in places if not (tree.root / place.lstrip("/")).exists()] == []


def test_examples_are_installed(tree: DebianTree) -> None:
    examples = tree.root / "usr/share/doc/dnsprobe/examples"
    shipped = {str(path.relative_to(examples)): path.read_text() for path in examples.rglob("*") if path.is_file()}
    names = (
        "prometheus/dnsprobe-alerts.yaml",
        "prometheus/dnsprobe-recording.yaml",
        "grafana/dnsprobe.json",
        "alert/dnsprobe-alerts.service",
        "alert/dnsprobe-alert@.service",
        "alert/dnsprobe-alerts",
        "alert/dnsprobe-alert",
        "ansible/dnsprobe.yaml",
    )
    assert shipped == {name: (REPOSITORY / "packaging" / name).read_text() for name in names}


def test_completions_are_installed(tree: DebianTree) -> None:
    for place in (
        "bash-completion/completions/dnsprobe",
        "fish/vendor_completions.d/dnsprobe.fish",
        "zsh/vendor-completions/_dnsprobe",
    ):
        assert (tree.root / "usr/share" / place).is_file()


def test_units_are_valid_and_disabled(tree: DebianTree) -> None:
    assert tree.run("systemctl", "is-enabled", *UNITS, status=1) == "disabled\n" * 2
    assert tree.run("systemd-analyze", "verify", "--man=no", *UNITS) == ""
    known = tree.run("journalctl", "--list-catalog")
    ids = re.findall(r"^-- ([0-9a-f]{32})$", (REPOSITORY / "packaging/systemd/dnsprobe.catalog").read_text(), re.M)
    assert ids
    assert [number for number in ids if number not in known] == []


def test_the_program_counts_and_imports_nothing_from_the_environment(tree: DebianTree, tmp_path: Path) -> None:
    version = tree.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    for folder in ("/root/trap", f"/root/.local/lib/python{version}/site-packages"):
        for name in TRAPPED:
            tree.write(f"{folder}/{name}.py", TRAP)
    environment = {"PYTHONPATH": "/root/trap", "PYTHONSTARTUP": "/root/trap/json.py", "PYTHONINSPECT": "1"}
    domain = f"{secrets.token_hex(8)}.test"
    tree.write("/root/dnsprobe.yaml", f"domains: [{domain}]\n")
    command = ["dnsprobe", "run", "--config", "dnsprobe.yaml", "--listen", "127.0.0.1:0", "--log-target", "console"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        service = subprocess.Popen(
            tree.command(*command, folder="/root/trap/..", environment=environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        url = _ready(service, log)
        for _ in range(7):
            _query(domain)
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            sample = rf'^dnsprobe_queries_total{{.*domain="{domain}".*}} (.*)$'
            counted = re.findall(sample, answer.read().decode(), re.MULTILINE)
        assert [float(value) for value in counted] == [7.0]
        with urllib.request.urlopen(url.removesuffix("metrics"), timeout=PATIENCE) as answer:
            assert domain in answer.read().decode()
    finally:
        service.terminate()
        try:
            status = service.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            service.kill()
            raise
    assert status == 0
    assert "7 queries counted" in log.read_text()
    assert not (tree.root / "run/trapped").exists()
    for path in ("root/trap", "root/.local"):
        shutil.rmtree(tree.root / path)
    (tree.root / "root/dnsprobe.yaml").unlink()


def _ready(service: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the service is ready, and return the address of its metrics."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and service.poll() is None:
        found = re.search(r"ready after .*(http://\S+/metrics)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"not ready:\n{log.read_text()}")


def _query(name: str) -> None:
    """Send a query for the A record of a name to loopback. No answer is needed."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    message = secrets.token_bytes(2) + bytes.fromhex("0100 0001 0000 0000 0000") + labels + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(message, ("127.0.0.1", 53))


def test_a_changed_configuration_stays(tree: DebianTree) -> None:
    path = tree.root / CONFIGURATION.lstrip("/")
    shipped = path.read_text()
    assert shipped == (REPOSITORY / "config/dnsprobe.yaml").read_text()
    changed = shipped.replace("domains: []", "domains: [changed.test]")
    path.write_text(changed)
    tree.apt("install", "--reinstall", DEB)
    assert path.read_text() == changed
    assert tree.run("dnsprobe", "check") == "good: 1 rule\n"
    tree.run("dpkg", "-r", "dnsprobe")
    assert path.read_text() == changed
    tree.run("dpkg", "-i", DEB)
    assert path.read_text() == changed
    path.write_text(shipped)


def test_an_upgrade_restarts_the_service_and_a_removal_stops_it(tree: DebianTree) -> None:
    with recorded(tree) as environment:
        tree.run("dpkg", "-i", DEB, environment=environment)
        assert asked(tree) == ["--system daemon-reload", "try-restart dnsprobe.service"]
        tree.run("dpkg", "-r", "dnsprobe", environment=environment)
        assert asked(tree)[0] == "stop dnsprobe.socket dnsprobe.service"
        tree.run("dpkg", "-P", "dnsprobe", environment=environment)
        asked(tree)
        tree.run("dpkg", "-i", DEB, environment=environment)
        assert asked(tree) == ["--system daemon-reload"]


def test_a_purge_leaves_nothing(tree: DebianTree) -> None:
    tree.run("systemctl", "enable", *UNITS)
    assert tree.run("systemctl", "is-enabled", *UNITS) == "enabled\n" * 2
    tree.run("dpkg", "-i", DEB)
    assert tree.run("systemctl", "is-enabled", *UNITS) == "enabled\n" * 2
    tree.apt("remove", "dnsprobe")
    tree.apt("purge", "dnsprobe")
    assert {path for path in tree.changes() if "dnsprobe" in path or not OF_OTHERS.fullmatch(path)} == set()
