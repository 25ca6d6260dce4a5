"""The rules of a probe before and after the proof of its hooks, without the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace

import pytest

from dnsprobe.errors import UserError
from dnsprobe.kernel import abi
from dnsprobe.kernel import probe as probe_module
from dnsprobe.kernel.maps import Settings, Sizes
from dnsprobe.kernel.probe import Probe, ProbeOptions
from dnsprobe.names.ruleset import TrieEntry

RULE = TrieEntry(b"\4test\0", 1, 5, 6)
OTHER = TrieEntry(b"\5other\0", 1, 7, 8)


class FakeMaps:
    """Records the rules and settings that are put in force."""

    tracks_answers = tells_servers = False

    def __init__(self, _sizes: Sizes) -> None:
        self.rules: list[list[TrieEntry]] = []
        self.settings = SimpleNamespace(put=lambda _, settings: self.written.append(settings))
        self.written: list[Settings] = []
        self.counters = SimpleNamespace(keys=lambda: iter([(1, 2, abi.ENCRYPTED, 0, 4)]), take_many=self._take)
        self.reset: dict[abi.Statistic, int] = {}
        self.statistics = SimpleNamespace(set_many=self.reset.update)
        self.taken: list[object] = []
        self.ancestors = self.canaries = None
        self.descriptors: dict[str, int] = {}

    def putting_rules(self, entries: Sequence[TrieEntry]) -> Iterator[Callable[[], None]]:
        yield lambda: self.rules.append(list(entries))

    def _take(self, keys: Sequence[object]) -> Iterator[tuple[object, int]]:
        for key in keys:
            self.taken.append(key)
            yield key, 1


class FakeKeeper:
    def close(self) -> None:
        pass


class FakeLoader:
    cache_problem = ""

    def __init__(self, _keeper: FakeKeeper) -> None:
        pass

    def configure(self, **_: object) -> None:
        pass

    def close(self) -> None:
        pass


class FakeProver:
    """Calls ``during`` in place of a climb."""

    during: Callable[[], None]

    unserved: Mapping[str, str] = {}

    def __init__(self, *_: object) -> None:
        self.closed = False

    def climb(self, *_: object) -> None:
        type(self).during()

    def serve_parts(self, *_: object) -> None:
        pass

    def close(self) -> None:
        self.closed = True


FAKES = (("Maps", FakeMaps), ("LoaderKeeper", FakeKeeper), ("LoaderClient", FakeLoader), ("Prover", FakeProver))


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Probe]:
    """Yield a probe that has attached nothing yet."""
    for name, fake in FAKES:
        monkeypatch.setattr(probe_module, name, fake)
    monkeypatch.setattr(FakeProver, "during", lambda: None, raising=False)
    made = Probe(ProbeOptions([53]), Sizes(4096, 1, 1, 1, 1), repeat_ns=60)
    yield made
    made._canary_port.close()


def maps_of(probe: Probe) -> FakeMaps:
    assert isinstance(probe.maps, FakeMaps)
    return probe.maps


def canary(probe: Probe) -> TrieEntry:
    return TrieEntry(probe._suffix, 3, abi.CANARY, abi.CANARY)


def test_the_canary_has_as_many_labels_as_its_suffix(probe: Probe) -> None:
    probe.set_rules([])
    ((entry,),) = maps_of(probe).rules
    labels = 0
    while entry.suffix[0]:
        entry = TrieEntry(entry.suffix[1 + entry.suffix[0] :], entry.labels, 0, 0)
        labels += 1
    assert entry.labels == labels


def test_before_the_proof_rules_wait_and_only_canaries_match(probe: Probe) -> None:
    probe.set_rules([OTHER])
    probe.set_rules([RULE])
    assert not probe.proved
    assert maps_of(probe).rules == [[canary(probe)], [canary(probe)]]
    # What the kernel caches about names before the proof is no outcome of these rules.
    assert [settings.generation for settings in maps_of(probe).written] == [0, 0]
    probe.start()
    assert maps_of(probe).written[-1].generation == 2


def test_the_proof_puts_the_last_rules_in_force(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    probe.set_rules([RULE])
    states: list[tuple[bool, int]] = []
    monkeypatch.setattr(FakeProver, "during", lambda: states.append((probe.proved, len(maps_of(probe).rules))))
    probe.start()
    assert states == [(False, 1)]
    assert probe.proved
    assert maps_of(probe).rules[1:] == [[RULE, canary(probe)]]
    assert probe.generation == 1


def test_what_was_counted_before_the_proof_is_forgotten(probe: Probe) -> None:
    probe.start()
    assert maps_of(probe).taken == [(1, 2, abi.ENCRYPTED, 0, 4)]
    assert set(maps_of(probe).reset.values()) == {0}
    kept = set(abi.Statistic) - maps_of(probe).reset.keys()
    assert kept == {abi.Statistic.LINEAGE_ADDED, abi.Statistic.LINEAGE_LEFT, abi.Statistic.LINEAGE_FULL}


def test_after_the_proof_rules_are_in_force_at_once(probe: Probe) -> None:
    probe.start()
    probe.set_rules([OTHER])
    assert maps_of(probe).rules[-1] == [OTHER, canary(probe)]
    assert (probe.generation, maps_of(probe).written[-1].generation) == (1, 1)


def test_without_a_proof_the_rules_keep_waiting(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UserError("no hook could be verified")

    monkeypatch.setattr(FakeProver, "during", fail)
    probe.set_rules([RULE])
    with pytest.raises(UserError):
        probe.start()
    assert not probe.proved
    assert probe.prover.closed  # type: ignore[attr-defined]
    assert maps_of(probe).rules == [[canary(probe)]]
