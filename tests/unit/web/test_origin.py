"""Requests that a web site could have made through the browser of a user of this host."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dnsprobe.web.origin import Origin, of_other_site

HOSTS = """\
127.0.0.1 localhost
127.0.1.1\tDesk.office.example desk # not.example
# 127.0.0.1 commented.example
::1 ip6-localhost
"""


@pytest.fixture
def hosts_file(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    return path


GOOD = [
    None,
    "localhost",
    "LOCALHOST:10059",
    "localhost.",
    "a.localhost:1",
    "127.0.0.1",
    "127.0.0.1:10059",
    "127.9.9.9:8080",
    "[::1]:10059",
    "[::1]",
    "192.0.2.1:80",
    "desk",
    "desk.office.example:10059",
    "DESK.office.example.",
    "ip6-localhost",
    "proxy.example",
    "Proxy.Example:443",
]
BAD = [
    "",
    "attacker.example",
    "attacker.example:10059",
    "localhost.attacker.example",
    "127.0.0.1.attacker.example",
    "attackerlocalhost",
    "desk.attacker.example",
    "not.example",
    "commented.example",
    "x.proxy.example",
    "attacker.example,localhost",
    "localhost, attacker.example",
    "localhost@attacker.example",
    "localhost/attacker.example",
    "[::1].attacker.example",
    "[::1",
    "[attacker.example]",
    "localhost:x",
    "localhost attacker.example",
    "0x7f.1.attacker.example",
]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"])
def test_only_names_that_no_web_site_has_are_good(hosts_file: Path, address: str) -> None:
    origin = Origin(["proxy.EXAMPLE."], hosts_file)
    assert [host for host in GOOD if not origin.good_host(host, address)] == []
    assert [host for host in BAD if origin.good_host(host, address)] == []


def test_the_name_of_this_host_is_good(hosts_file: Path) -> None:
    assert Origin((), hosts_file).good_host(f"{socket.gethostname()}:10059", "127.0.0.1")


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "fe80::1%eth0", "::ffff:192.0.2.1"])
def test_on_another_address_any_name_is_good_unless_names_are_configured(hosts_file: Path, address: str) -> None:
    for host in ("metrics.example:10059", "anything", ""):
        assert Origin((), hosts_file).good_host(host, address)
        assert not Origin(["proxy.example"], hosts_file).good_host(host, address)
    assert Origin(["proxy.example"], hosts_file).good_host("proxy.example:80", address)


def test_a_change_of_the_hosts_file_counts(hosts_file: Path) -> None:
    origin = Origin((), hosts_file)
    assert not origin.good_host("new.example", "127.0.0.1")
    hosts_file.write_text("127.0.0.1 new.example\n")
    os.utime(hosts_file, (1, 1))
    assert origin.good_host("new.example", "127.0.0.1")
    hosts_file.unlink()
    assert not origin.good_host("new.example", "127.0.0.1")
    assert origin.good_host("localhost", "127.0.0.1")


def test_a_hosts_file_that_is_no_file_names_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        origin = Origin((), path)
        assert not origin.good_host("desk", "127.0.0.1")
        assert origin.good_host(socket.gethostname(), "127.0.0.1")


def test_the_first_names_of_a_long_hosts_file_are_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsprobe.web.origin._READ_OF_HOSTS_FILE", len("127.0.0.1 desk\n127.0.0.1 cut"))
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 desk\n127.0.0.1 cut.example\n")
    assert Origin((), path).good_host("desk", "127.0.0.1")
    assert not Origin((), path).good_host("cut", "127.0.0.1")


@pytest.mark.parametrize(
    ("site", "mode", "other"),
    [
        ("cross-site", "cors", True),
        ("cross-site", "no-cors", True),
        ("cross-site", "", True),
        ("cross-site", "navigate", False),
        ("same-origin", "cors", False),
        ("same-site", "cors", False),
        ("none", "navigate", False),
        ("", "", False),
    ],
)
def test_requests_of_other_sites_are_recognized(site: str, mode: str, other: bool) -> None:
    assert of_other_site({"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}) is other


@pytest.mark.parametrize(
    ("origin", "other"),
    [
        ("http://attacker.example", True),
        ("null", True),
        ("", True),
        ("http://localhost", True),
        ("http://localhost:10059", False),
    ],
)
def test_an_origin_is_that_of_this_server(origin: str, other: bool) -> None:
    assert of_other_site({"Origin": origin, "Host": "localhost:10059"}) is other
    assert not of_other_site({"Host": "localhost:10059"})
