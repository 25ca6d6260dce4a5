"""Journal entries of several hosts in one place, collected as docs/fleet.md describes."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import ANCESTRY, IDENTITY, hostile, query

from dnsprobe.model import Identity, Query
from dnsprobe.sinks.journal import fields

REMOTE = "/usr/lib/systemd/systemd-journal-remote"


def exported(host: str, number: int, entries: list[tuple[Query, Identity]]) -> bytes:
    """Return the journal of a host as systemd-journal-upload sends it, in the export format of systemd."""
    text = b""
    for at, entry in enumerate(entries, 1):
        added = [
            ("__REALTIME_TIMESTAMP", str(1_767_323_045_000_000 + at)),
            ("__MONOTONIC_TIMESTAMP", str(at)),
            ("_BOOT_ID", f"{number:032x}"),
            ("_MACHINE_ID", f"{number:032x}"),
            ("_HOSTNAME", host),
            ("_SYSTEMD_UNIT", "dnsprobe.service"),
        ]
        text += "".join(f"{name}={value}\n" for name, value in added).encode()
        for name, value in fields(*entry):
            data = value.encode()
            text += b"%b\n%b%b\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
        text += b"\n"
    return text


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """Return a folder with the journals of two hosts."""
    if shutil.which(REMOTE) is None or shutil.which("journalctl") is None:
        pytest.skip("systemd-journal-remote is not installed: apt-get install systemd-journal-remote")
    journals = tmp_path / "remote"
    journals.mkdir()
    for number, host in enumerate(("web1", "web2"), 1):
        same = (query(), IDENTITY)
        own = (query(qname=b"\4" + host.encode() + b"\7example\4test\0"), replace(IDENTITY, user=f"user-of-{host}"))
        text = exported(host, number, [same, own, hostile(b"a\nMESSAGE=b")])
        output = journals / f"remote-{host}.journal"
        subprocess.run([REMOTE, f"--output={output}", "-"], input=text, capture_output=True, check=True)
    return journals


def ask(journals: Path, *matches: str) -> list[dict[str, Any]]:
    command = ["journalctl", f"--directory={journals}", "--quiet", "--all", "--output=json", *matches]
    found = subprocess.run(command, capture_output=True, check=True).stdout
    return [json.loads(line) for line in found.splitlines()]


def test_a_search_finds_entries_of_all_hosts(remote: Path) -> None:
    found = ask(remote, "--identifier=dnsprobe", "DNSPROBE_QNAME=www.example.test")
    assert {entry["_HOSTNAME"] for entry in found} == {"web1", "web2"}
    for entry in found:
        # Fields that occur several times arrive in full.
        assert entry["DNSPROBE_ANCESTOR"] == [f"{each.tgid} {each.comm.decode()}" for each in ANCESTRY.chain[1:]]
        assert entry["DNSPROBE_TREE"] == "bash;make;dig"


def test_a_search_finds_entries_of_one_host(remote: Path) -> None:
    (entry,) = ask(remote, "_HOSTNAME=web2", "DNSPROBE_USER=user-of-web2")
    assert entry["DNSPROBE_QNAME"] == "web2.example.test"
    assert ask(remote, "_HOSTNAME=web1", "DNSPROBE_USER=user-of-web2") == []


def test_a_hostile_name_adds_no_field_in_transfer(remote: Path) -> None:
    assert ask(remote, "MESSAGE=b") == []
    assert len(ask(remote, "_SYSTEMD_UNIT=dnsprobe.service")) == 6
