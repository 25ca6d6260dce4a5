"""TLS and a password with the shipped unit, which reads the files through a group, or as credentials of systemd."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import Service, entries, run, until

WORK = Path("/root/web")
FILES = Path("/etc/dnsprobe/web")
DROP_IN = Path("/etc/systemd/system/dnsprobe.service.d/web.conf")
GROUP = "dnsprobe-web"
KEY = "/run/credentials/dnsprobe.service/server.key"
URL = "https://dnsprobe.example:10059"

UNIT = f"""\
[Service]
SupplementaryGroups={GROUP}
LoadCredential=server.key:{FILES}/server.key
ExecReload=
ExecReload=/bin/kill -HUP $MAINPID
"""


#: The commands of docs/web.md: certificates of the server, password, file without and with client certificates.
SERVER, PASSWORD, BASIC, CLIENT, MUTUAL = range(5)

CONFIGURED = f"domains: [{{}}]\nmetrics: {{{{web_config: {FILES}/web.yml}}}}"


def follow(*blocks: int) -> None:
    """Run blocks of commands of the installed web.md."""
    page = Path("/usr/share/doc/dnsprobe/web.md").read_text("utf-8")
    commands = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for block in blocks:
        run("bash", "-euc", commands[block], cwd=WORK)


def hand_over(name: str, mode: int, group: str) -> None:
    shutil.copy(WORK / name, FILES / name)
    shutil.chown(FILES / name, "root", group)
    (FILES / name).chmod(mode)


def metrics(password: str) -> str:
    assert ask("/metrics", "-u", password) == "200"
    return (WORK / "answer").read_text()


def hand_over_configuration() -> None:
    text = (WORK / "web.yml").read_text()
    (WORK / "web.yml").write_text(re.sub("key_file: server.key", f"key_file: {KEY}", text))
    hand_over("web.yml", 0o640, GROUP)


def ask(path: str, *options: str) -> str:
    """Return the HTTP status for a client with the certificate."""
    certificate = ["--cacert", "ca.pem", "--cert", "client.pem", "--key", "client.key"]
    to = ["--resolve", "dnsprobe.example:10059:127.0.0.1", "-s", "-o", "answer", "-w", "%{http_code}", URL + path]
    return run("curl", *certificate, *options, *to, cwd=WORK, check=False)


@pytest.fixture(autouse=True)
def protected(service: Service) -> Iterator[str]:
    """Run the service with the web configuration of the document; yield user and password in the form of curl."""
    WORK.mkdir()
    FILES.mkdir()
    DROP_IN.parent.mkdir()
    run("groupadd", "--system", GROUP)
    follow(SERVER, PASSWORD, BASIC, CLIENT, MUTUAL)
    hand_over_configuration()
    hand_over("server.pem", 0o640, GROUP)
    hand_over("ca.pem", 0o644, "root")
    hand_over("server.key", 0o600, "root")
    DROP_IN.write_text(UNIT)
    try:
        run("systemctl", "daemon-reload")
        service.restart(CONFIGURED.format("web.test"))
        yield f"prometheus:{(WORK / 'password').read_text().strip()}"
    finally:
        shutil.rmtree(DROP_IN.parent)
        run("systemctl", "daemon-reload")
        shutil.rmtree(WORK)
        shutil.rmtree(FILES)
        run("groupdel", GROUP)


def test_a_client_needs_certificate_and_password(service: Service, protected: str) -> None:
    assert "dnsprobe_web_config_last_reload_successful 1.0" in metrics(protected)
    assert ask("/-/ready") == "401"
    assert ask("/metrics", "-u", "prometheus:other") == "401"
    assert run("curl", "-sk", "-u", protected, URL.replace("dnsprobe.example", "127.0.0.1"), check=False) == ""
    service.configure(CONFIGURED.format("web.test, other.test"))
    run("systemctl", "reload", service.name)
    until(lambda: "\ndnsprobe_rules 2.0\n" in metrics(protected), "the rules in force")
    # A new password needs no restart.
    follow(PASSWORD, MUTUAL)
    renewed = f"prometheus:{(WORK / 'password').read_text().strip()}"
    hand_over_configuration()
    assert ask("/metrics", "-u", renewed) == "200"
    assert ask("/metrics", "-u", protected) == "401"
    # A bad file, or one that the service may not read, changes nothing.
    for spoil in (lambda: (FILES / "web.yml").write_text("["), lambda: (FILES / "web.yml").chmod(0o600)):
        hand_over_configuration()
        spoil()
        assert "dnsprobe_web_config_last_reload_successful 0.0" in metrics(renewed)
    until(
        lambda: len([e for e in entries() if "the web configuration is invalid" in str(e["MESSAGE"])]) == 2, "reasons"
    )
