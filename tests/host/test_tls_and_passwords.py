"""The examples of docs/web.md, run as they are written there: a real Prometheus scrapes a real dnsprobe."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from conftest import HERE, PATIENCE, PROGRAM, UNPRIVILEGED, Program
from reference import message, wire
from scraper import Prometheus

PAGE = (HERE.parents[1] / "docs" / "web.md").read_text("utf-8")
SERVER = "dnsprobe.example"
#: The number of shell commands for TLS and a password, and of those with client certificates in addition.
PASSWORD, CERTIFICATE = 3, 5
#: The number of a group that does not exist.
GROUP = 61184


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def renew(folder: Path) -> None:
    """Replace the certificate and the key of the server, made by the command of the page."""
    new = folder / "renewed"
    new.mkdir()
    for name in ("ca.pem", "ca.key"):
        shutil.copy(folder / name, new)
    command = blocks("sh")[0].split("\n\n")[1]
    subprocess.run(["sh", "-ec", command], cwd=new, check=True, capture_output=True)
    for name in ("server.key", "server.pem"):
        os.chown(new / name, -1, (folder / name).stat().st_gid)
        (new / name).chmod(0o640)
        (new / name).rename(folder / name)


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder in which the commands of the page were run; the parameter is their number (default: all)."""
    folder = tmp_path / "example"
    folder.mkdir()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = blocks("sh")
    assert len(commands) == CERTIFICATE
    for command in commands[: getattr(request, "param", None)]:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "good: 0 rules, so all names are watched\n"
    return folder


@pytest.fixture
def start_with(example: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[Program, str]]]:
    """Return a function that starts ``dnsprobe run`` with the example, and returns it with its address."""
    with ExitStack() as stack:

        def run(prefix: Sequence[str] = ()) -> tuple[Program, str]:
            arguments = ["run", "--listen", "127.0.0.1:0", "--log-target", "console"]
            program = Program([*arguments, "--web.config.file", str(example / "web.yml")], tmp_path, prefix)
            stack.callback(program.kill)
            (address,) = re.findall("https://(.*)/metrics", program.wait_for("ready after"))
            return program, address

        yield run


def curl(folder: Path, address: str, *more: str, path: str = "/-/healthy") -> subprocess.CompletedProcess[str]:
    host, port = address.split(":")
    url = f"https://{SERVER}:{port}{path}"
    command = ["curl", "-sS", "--max-time", str(PATIENCE), "--cacert", "ca.pem", "--resolve", f"{SERVER}:{port}:{host}"]
    return subprocess.run([*command, *more, url], cwd=folder, capture_output=True, text=True, check=False)


def credentials(folder: Path) -> list[str]:
    password = (folder / "password").read_text().strip()
    return ["--cert", "client.pem", "--key", "client.key", "-u", f"prometheus:{password}"]


@pytest.mark.parametrize(("example", "number"), [(PASSWORD, 0), (CERTIFICATE, 1)], indirect=["example"])
def test_prometheus_scrapes_with_the_examples_of_the_page(
    example: Path, number: int, start_with: Callable[..., tuple[Program, str]], tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: run scripts/test, which unpacks Debian's")
    service, address = start_with()
    config = yaml.safe_load(blocks("yaml")[number])
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [address]}]
    job["scrape_interval"] = "1s"
    place = tmp_path / "prometheus"
    place.mkdir()
    for name in ("ca.pem", "client.pem", "client.key", "password")[:: 1 if number else 3]:
        shutil.copy(example / name, place)
    prometheus = Prometheus(place, config, "--storage.tsdb.path=data")
    try:
        prometheus.wait_for('up{job="dnsprobe"} == 1')
        prometheus.wait_for("dnsprobe_web_config_last_reload_successful == 1")
        good = (example / "web.yml").read_text()
        (example / "web.yml").write_text("basic_auth_users: {prometheus: x}")
        prometheus.wait_for("dnsprobe_web_config_last_reload_successful == 0")
        service.wait_for("the web configuration is invalid, the previous one stays in force")
        (example / "web.yml").write_text(good)
        renew(example)
        prometheus.wait_for("dnsprobe_web_config_last_reload_successful == 1")
        prometheus.wait_for('up{job="dnsprobe"} == 1')
    finally:
        prometheus.stop()
    assert service.stop() == 0
    assert "Traceback" not in service.err.read_text("utf-8")


@pytest.mark.parametrize("example", [PASSWORD], indirect=True)
def test_requests_without_the_password_are_refused(
    example: Path, start_with: Callable[..., tuple[Program, str]]
) -> None:
    _, address = start_with()
    user = credentials(example)[4:]
    assert curl(example, address, *user).stdout == "healthy\n"
    assert curl(example, address).stdout == "unauthorized\n"


@pytest.mark.parametrize("example", [PASSWORD], indirect=True)
def test_a_password_shows_the_last_queries(example: Path, start_with: Callable[..., tuple[Program, str]]) -> None:
    service, address = start_with()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(message(wire([b"secret", b"fresh", b"test"])), ("127.0.0.1", 53))
    service.wait_for("secret.fresh.test")
    assert "secret.fresh.test" in curl(example, address, *credentials(example)[4:], path="/").stdout


def test_requests_without_certificate_or_password_are_refused(
    example: Path, start_with: Callable[..., tuple[Program, str]]
) -> None:
    service, address = start_with()
    everything = credentials(example)
    assert curl(example, address, *everything).stdout == "healthy\n"
    assert curl(example, address, *everything[:4]).stdout == "unauthorized\n"
    without = curl(example, address, *everything[4:])
    assert (without.stdout, without.returncode != 0) == ("", True)
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("the web configuration was reloaded")
    assert curl(example, address, *everything).stdout == "healthy\n"


def test_the_service_reads_files_of_its_group_and_their_replacements(
    example: Path, start_with: Callable[..., tuple[Program, str]], tmp_path: Path
) -> None:
    """The service has no capability to read the files, at its start and later; only its group allows it."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    for name in ("web.yml", "server.key"):
        os.chown(example / name, -1, GROUP)
        (example / name).chmod(0o640)
    os.chown(example / "server.pem", -1, GROUP)
    one_group = [option.replace("--clear-groups", f"--groups={GROUP}") for option in UNPRIVILEGED]

    command = [*UNPRIVILEGED, str(PROGRAM), "check", "--web.config.file", str(example / "web.yml")]
    denied = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert denied.returncode == 2
    assert "web.yml: cannot be read: Permission denied; make it readable for the user" in denied.stderr

    service, address = start_with(one_group)
    everything = credentials(example)
    assert curl(example, address, *everything).stdout == "healthy\n"
    renew(example)
    assert curl(example, address, *everything).stdout == "healthy\n"
    service.wait_for("the web configuration was reloaded")
    (example / "server.key").chmod(0o600)
    assert curl(example, address, *everything).stdout == "healthy\n"
    log = service.wait_for("the web configuration is invalid, the previous one stays in force")
    assert "tls_server_config.key_file: cannot be read" in log
