"""The probe on this kernel: rules that wait for the proof, the attached programs, and refused programs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import preemptible_btf

from dnsprobe.kernel import abi, libbpf
from dnsprobe.kernel.canary import Canaries, CanaryPort
from dnsprobe.kernel.hooks import Hook, kprobes_available
from dnsprobe.kernel.maps import Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.kernel.prover import Prover
from dnsprobe.names.ruleset import TrieEntry

ALL_NAMES = TrieEntry(b"\0", 0, 1, 1)
QUERY = bytes.fromhex("0001 0100 0001 0000 0000 0000 03 777777 04 74657374 00 0001 0001")
#: Begins as a query does, and has no question: counted as malformed.
MALFORMED = bytes.fromhex("0001 0100 0001 0000 0000 0000 ff")
TLS = bytes.fromhex("16 0301")


def test_rules_wait_for_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    prove = Prover.prove
    port = CanaryPort()
    proofs: list[tuple[int, int]] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def send() -> None:
        with socket.create_connection(listener.getsockname()) as sender:
            sender.send(TLS)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(QUERY, ("127.0.0.1", port.port))
            sender.sendto(MALFORMED, ("127.0.0.1", port.port))

    def proving(prover: Prover, hooks: Sequence[Hook], canaries: Canaries | None = None) -> None:
        send()
        prove(prover, hooks, canaries)
        assert not probe.proved
        proofs.append((probe.statistics()[abi.Statistic.UNPARSED_MALFORMED], len(list(probe.maps.counters.items()))))

    monkeypatch.setattr(Prover, "prove", proving)
    sizes = Sizes(ring=4096, processes=16, counters=16, names=16, recent=16)
    probe = Probe(ProbeOptions([port.port], [listener.getsockname()[1]]), sizes, repeat_ns=0)
    try:
        probe.set_rules([ALL_NAMES])
        assert not probe.proved
        probe.start()
        assert probe.proved
        assert (1, 2) in proofs, "the hooks were there"
        assert list(probe.maps.counters.items()) == []
        assert set(probe.statistics().values()) == {0}
        send()
        # A query, a connection of DNS over TLS, and a message that is not read.
        assert [count for _, count in probe.maps.counters.items()] == [1, 1, 1]
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
def test_tcp_has_two_programs_if_one_can_be_interrupted(
    preemptible: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ProbeOptions([53], tcp_hook="tcp_tracepoint")
    if preemptible:
        options = replace(options, btf=str(preemptible_btf(tmp_path)))
    probe = Probe(options, Sizes(ring=4096, processes=16, counters=16, names=16, recent=16), repeat_ns=0)
    try:
        probe.set_rules([])
        probe.start()
        (hook,) = [hook for hook in probe.prover.hooks if "tcp4" in hook.paths]
        assert (hook.rung, len(hook.programs)) == ("tcp_tracepoint", 1 + preemptible)
        missed = dict(zip(hook.programs, (5, 3), strict=False))
        runs = libbpf.ProgramRuns
        monkeypatch.setattr(libbpf, "program_runs", lambda program: runs(0, 0, missed.get(program, 10), 0))
        # The other program for TCP may have seen a write that one missed. The programs for UDP see different things.
        (other,) = [other for other in probe.prover.hooks if other is not hook]
        assert probe.prover.missed_runs() == (3 if preemptible else 5) + 10 * len(other.programs)
    finally:
        probe.close()
        probe.release()


def test_a_refused_program_comes_with_the_log_of_the_verifier() -> None:
    exit_without_result = struct.pack("=BBhi", 0x95, 0, 0, 0)
    with pytest.raises(libbpf.RefusedError, match="Permission denied") as refused:
        libbpf.load_program(libbpf.ProgramKind(libbpf.RAW_TRACEPOINT), "refused", exit_without_result)
    assert "R0 !read_ok" in refused.value.log
