"""The probe's start: what an attached hook sees before it is proved does not count."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import pytest

from dnsprobe.kernel import abi
from dnsprobe.kernel.canary import Canaries, CanaryPort
from dnsprobe.kernel.probe import Probe, Sizes

ALL_NAMES = abi.TrieEntry(b"\0", 0, 1, 1)
QUERY = bytes.fromhex("0001 0100 0001 0000 0000 0000 03 777777 04 74657374 00 0001 0001")
#: Begins as a query does, and has no question: counted as malformed.
MALFORMED = bytes.fromhex("0001 0100 0001 0000 0000 0000 ff")


def test_rules_wait_for_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    prove = Probe._prove
    port = CanaryPort()
    proofs = []

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(QUERY, ("127.0.0.1", port.port))
            sender.sendto(MALFORMED, ("127.0.0.1", port.port))

    def proving(probe: Probe, canaries: Canaries, paths: Sequence[str]) -> Mapping[str, str]:
        send()
        verdicts = prove(probe, canaries, paths)
        proofs.append(probe.statistics()[abi.Statistic.UNPARSED_MALFORMED])
        return verdicts

    monkeypatch.setattr(Probe, "_prove", proving)
    sizes = Sizes(ring=4096, processes=16, counters=16, names=16, recent=16)
    probe = Probe([port.port], sizes, repeat_ns=0)
    try:
        probe.set_rules([ALL_NAMES])
        probe.start()
        assert 1 in proofs, "the hook was there"
        assert list(probe.counts()) == []
        assert set(probe.statistics().values()) == {0}
        send()
        assert [queries for _, queries in probe.counts()] == [1]
        assert probe.statistics()[abi.Statistic.UNPARSED_MALFORMED] == 1
    finally:
        probe.close()
        probe.release()
        port.close()
