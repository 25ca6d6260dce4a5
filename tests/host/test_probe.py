"""The probe's start: what an attached hook sees before it is proved does not count."""

from __future__ import annotations

import gc
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from conftest import IN_OWN_NET, preemptible_btf

from dnsprobe.kernel import abi, libbpf
from dnsprobe.kernel.canary import Canaries, CanaryPort
from dnsprobe.kernel.hooks import kprobes_available
from dnsprobe.kernel.probe import Probe, Sizes, Where
from dnsprobe.names.ruleset import TrieEntry

ALL_NAMES = TrieEntry(b"\0", 0, 1, 1)
QUERY = bytes.fromhex("0001 0100 0001 0000 0000 0000 03 777777 04 74657374 00 0001 0001")
#: Begins as a query does, and has no question: counted as malformed.
MALFORMED = bytes.fromhex("0001 0100 0001 0000 0000 0000 ff")
TLS = bytes.fromhex("16 0301")


def test_rules_wait_for_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    prove = Probe._prove
    port = CanaryPort()
    proofs = []
    listener = socket.create_server(("127.0.0.1", 0))

    def send() -> None:
        with socket.create_connection(listener.getsockname()) as sender:
            sender.send(TLS)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(QUERY, ("127.0.0.1", port.port))
            sender.sendto(MALFORMED, ("127.0.0.1", port.port))

    def proving(probe: Probe, canaries: Canaries, paths: Sequence[str]) -> Mapping[str, str]:
        send()
        verdicts = prove(probe, canaries, paths)
        proofs.append((probe.statistics()[abi.Statistic.UNPARSED_MALFORMED], len(list(probe.counts()))))
        return verdicts

    monkeypatch.setattr(Probe, "_prove", proving)
    sizes = Sizes(ring=4096, processes=16, counters=16, names=16, recent=16)
    probe = Probe(Where([port.port], [listener.getsockname()[1]]), sizes, repeat_ns=0)
    try:
        probe.set_rules([ALL_NAMES])
        probe.start()
        assert (1, 1) in proofs, "the hooks were there"
        assert list(probe.counts()) == []
        assert set(probe.statistics().values()) == {0}
        send()
        assert [count for _, count in probe.counts()] == [1, 1]
        assert probe.statistics()[abi.Statistic.UNPARSED_MALFORMED] == 1
    finally:
        probe.close()
        probe.release()
        port.close()
        listener.close()


@pytest.mark.skipif(
    kprobes_available(), reason="no tracepoint is needed where there are kprobes: run on a kernel without"
)
@pytest.mark.parametrize("preemptible", [False, True])
def test_two_programs_where_one_can_be_interrupted(
    preemptible: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Where([53], btf=str(preemptible_btf(tmp_path))) if preemptible else Where([53])
    probe = Probe(where, Sizes(ring=4096, processes=16, counters=16, names=16, recent=16), repeat_ns=0)
    try:
        probe.set_rules([])
        probe.start()
        (hook,) = [hook for hook in probe.hooks if "tcp4" in hook.paths]
        assert (hook.rung, len(hook.programs)) == ("tcp_tracepoint", 1 + preemptible)
        missed = dict(zip(hook.programs, (5, 3), strict=False))
        runs = libbpf.ProgramRuns
        monkeypatch.setattr(libbpf, "program_runs", lambda program: runs(0, 0, missed.get(program, 10), 0))
        # What one missed, the other may have seen; at net_dev_queue each sees something else.
        (other,) = [other for other in probe.hooks if other is not hook]
        assert probe.missed_runs() == (3 if preemptible else 5) + 10 * len(other.programs)
    finally:
        probe.close()
        probe.release()


def test_nobody_takes_the_processor_while_maps_are_worked_on() -> None:
    def policy() -> int:
        return os.sched_getscheduler(0)

    seen = [(policy(), item) for item in libbpf.undisturbed.slices(range(100))]
    assert seen == [(os.SCHED_FIFO, item) for item in range(100)]
    assert policy() == os.SCHED_OTHER
    for _ in libbpf.undisturbed.slices(range(100)):
        for _ in libbpf.undisturbed.slices(range(100)):
            break
        assert policy() == os.SCHED_FIFO
        break
    assert policy() == os.SCHED_OTHER
    with pytest.raises(ZeroDivisionError):
        sum(1 // item for item in libbpf.undisturbed.slices(range(100)))
    gc.collect()
    assert policy() == os.SCHED_OTHER


def test_others_get_the_processor_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    change = os.sched_setscheduler

    def changing(pid: int, policy: int, param: os.sched_param) -> None:
        changes.append(policy)
        change(pid, policy, param)

    monkeypatch.setattr(os, "sched_setscheduler", changing)
    assert sum(1 for _ in libbpf.undisturbed.slices(range(1000))) == 1000
    assert changes == [os.SCHED_FIFO, os.SCHED_OTHER] * 32


IN_FEW_PORTS = """\
import sys
from dnsprobe.kernel.canary import CanaryPort
for _ in range(60):
    port = CanaryPort()
    print(port.port)
    port.close()
"""


def test_the_canaries_port_does_not_look_like_an_address() -> None:
    setting = 'sysctl -qw net.ipv4.ip_local_port_range="32510 32515"; exec "$@"'
    command = [*IN_OWN_NET, "sh", "-ec", setting, "sh", sys.executable, "-c", IN_FEW_PORTS]
    used = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "32511" in used
    assert str(0x7F00) not in used


def test_a_refused_program_comes_with_what_the_verifier_says() -> None:
    exit_without_result = struct.pack("=BBhi", 0x95, 0, 0, 0)
    with pytest.raises(libbpf.RefusedError, match="Permission denied") as refused:
        libbpf.load_program(libbpf.RAW_TRACEPOINT, "refused", exit_without_result)
    assert "R0 !read_ok" in refused.value.log
