"""Whether programs can be attached to functions by fentry."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from dnsprobe.kernel import fentry, libbpf
from dnsprobe.kernel.fentry import Fentry

VOLUNTARY = "#1 SMP Debian 5.10.251-1 (2026-02-12)"
REAL_TIME = "#1 SMP PREEMPT_RT Debian 5.10.251-1 (2026-02-12)"
DYNAMIC = "#1 SMP PREEMPT_DYNAMIC Debian 6.12.118-1 (2026-10-30)"


@pytest.mark.parametrize(
    ("version", "guarded", "attaches"),
    [(VOLUNTARY, False, True), (REAL_TIME, False, False), (REAL_TIME, True, True), (DYNAMIC, True, True)],
)
def test_no_program_is_attached_that_could_interrupt_itself(
    version: str, guarded: bool, attaches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> int:
        return os.open("/dev/null", os.O_RDONLY)

    attached = []

    def attach(program: int) -> int:
        attached.append(program)
        return opened()

    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(version=version))
    monkeypatch.setattr(libbpf, "load_program", opened)
    monkeypatch.setattr(libbpf, "guards_fentry", lambda _: guarded)
    monkeypatch.setattr(fentry, "attach_fentry", attach)
    problem = Fentry({"ip_send_skb": 7}).problem("ip_send_skb")
    assert (problem == "", attached != []) == (attaches, attaches)
    assert attaches or "preemptible" in problem
