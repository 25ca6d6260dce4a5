"""Fair shares of the maps and of the ring of events: what user space does for ``bpf/process/share.h``.

Each entry of a shared map, and each event, has the share of who takes its room. The kernel side counts what a share
takes; user space counts what it gives back, in maps of its own. So neither overwrites a number of the other.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from dnsprobe.kernel import libbpf
from dnsprobe.kernel.abi import SHARE_OF_NOBODY, SHARE_OF_OTHERS, SHARES, Resource
from dnsprobe.kernel.typed_map import ArrayMap, Codec, TypedMap

_K = TypeVar("_K")
_V = TypeVar("_V")

_SHARE = struct.Struct("=Q")
#: Shares that are never forgotten.
_FIXED = (SHARE_OF_NOBODY, SHARE_OF_OTHERS)
#: Shares that use nothing are forgotten once their map is that full.
_FILL = 0.5


class Share(NamedTuple):
    """What one user or control group takes (``struct share``): a number for each :class:`Resource`.

    ``used`` has the units that it took, including those that user space gave back; ``refused`` how often there was no
    room for more.
    """

    used: tuple[int, ...]
    refused: tuple[int, ...]


_NOTHING = (0,) * len(Resource)


class Shares:
    """The shares of all users and control groups.

    ``shares`` is written by the kernel side, ``returned`` and ``room`` by user space only. ``sizes`` are the units of
    each resource.
    """

    def __init__(
        self,
        shares: TypedMap[int, Share],
        returned: TypedMap[int, tuple[int, ...]],
        room: ArrayMap[int],
        sizes: Mapping[Resource, int],
    ) -> None:
        self._shares, self._returned_map, self._room_map = shares, returned, room
        self._room = dict(sizes)
        self._returned: dict[int, list[int]] = {}
        #: What was reported of each share, and what was not reported of shares that are forgotten.
        self._reported: dict[int, tuple[int, ...]] = {}
        self._unreported: dict[int, tuple[int, ...]] = {}
        self._idle: dict[int, Share] = {}
        room.set_many((int(resource), size) for resource, size in sizes.items())
        shares.set_many((share, Share(_NOTHING, _NOTHING)) for share in _FIXED)

    def give_back(self, resource: Resource, units: Mapping[int, int]) -> None:
        """Give back units of a resource, by share. A negative number takes them."""
        for share, number in units.items():
            returned = self._returned.setdefault(share, list(_NOTHING))
            returned[resource] += number
            self._room[resource] += number
            self._returned_map.put(share, tuple(returned))
        if units:
            self._room_map.put(resource, self._room[resource])

    def newly_refused(self) -> dict[int, tuple[int, ...]]:
        """Return how often there was no room in each share since the last call, by :class:`Resource`."""
        present = dict(self._shares.items())
        refused, self._unreported = self._unreported, {}
        for share, found in present.items():
            before = self._reported.get(share, _NOTHING)
            if found.refused != before:
                new = (now - old for now, old in zip(found.refused, before, strict=True))
                refused[share] = _sum(refused.get(share, _NOTHING), new)
        self._reported = {share: found.refused for share, found in present.items() if any(found.refused)}
        return refused

    def sweep(self) -> None:
        """Forget shares that use nothing, if there are many: control groups come and go."""
        present = dict(self._shares.items())
        # What a BPF program took for a share that was forgotten at that moment came back.
        self._forget_returned(self._returned.keys() - present.keys())
        if len(present) < SHARES * _FILL:
            self._idle = {}
            return
        idle = {
            share: found for share, found in present.items() if share not in _FIXED and not self._uses(share, found)
        }
        # A BPF program that has just found a share takes room a moment later.
        forgotten = [share for share, found in idle.items() if self._idle.get(share) == found]
        for share, last in self._shares.take_many(forgotten):
            before = self._reported.pop(share, _NOTHING)
            if last.refused != before:
                new = (now - old for now, old in zip(last.refused, before, strict=True))
                self._unreported[share] = _sum(self._unreported.get(share, _NOTHING), new)
        self._forget_returned(forgotten)
        self._idle = idle

    def _forget_returned(self, shares: Iterable[int]) -> None:
        for share in list(shares):
            self._returned.pop(share, None)
            self._returned_map.delete_many([share])

    def _uses(self, share: int, found: Share) -> bool:
        returned = self._returned.get(share, _NOTHING)
        return any(used > back for used, back in zip(found.used, returned, strict=True))


def _sum(first: Iterable[int], second: Iterable[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(first, second, strict=True))


class SharedMap(TypedMap[_K, _V]):
    """A map whose entries take room in shares. ``share_at`` is the offset of the share in a value.

    It gives back the room of the entries that it deletes. An entry that it changes keeps its share.
    """

    def __init__(
        self,
        raw: libbpf.Map,
        key: Codec[_K],
        value: Codec[_V],
        share_at: int,
        resource: Resource,
        shares: Shares,
    ) -> None:
        super().__init__(raw, key, value)
        self._share_at, self._resource, self._shares = share_at, resource, shares

    def _share_in(self, value: bytes) -> int:
        (share,) = _SHARE.unpack_from(value, self._share_at)
        return int(share)

    def take_many(self, keys: Iterable[_K]) -> Iterator[tuple[_K, _V]]:
        """Delete entries as :meth:`TypedMap.take_many`, and give back their room when all are deleted."""
        taken: Counter[int] = Counter()
        try:
            for key, value in self._raw.take_many(map(self._key.encode, keys)):
                if value is not None:
                    taken[self._share_in(value)] += 1
                    yield self._key.decode(key), self._value.decode(value)
        finally:
            self._shares.give_back(self._resource, taken)

    def delete_many(self, keys: Iterable[_K]) -> None:
        """Delete entries and give back their room; keys that are not in the map are ignored."""
        deleted = self._raw.take_many(map(self._key.encode, keys))
        taken = Counter(self._share_in(value) for _, value in deleted if value is not None)
        self._shares.give_back(self._resource, taken)

    def take_own(self, keys: Iterable[_K]) -> Iterator[tuple[_K, _V]]:
        """Delete entries and give back their room; yield those that no BPF program deleted before.

        The value is that of the entry that was deleted: a BPF program may have put another one in the place of one that
        was read before. The caller consumes all results.
        """
        taken: Counter[int] = Counter()
        try:
            for key, value in self._raw.take_own(map(self._key.encode, keys)):
                taken[self._share_in(value)] += 1
                yield self._key.decode(key), self._value.decode(value)
        finally:
            self._shares.give_back(self._resource, taken)

    def insert_many(self, items: Iterable[tuple[_K, _V]]) -> int:
        """Add entries as :meth:`TypedMap.insert_many`; they take room that is in no share."""
        items = list(items)
        encoded = [(self._key.encode(key), self._value.encode(value)) for key, value in items]
        refused = self._raw.set_many(encoded, libbpf.NOEXIST)
        self._shares.give_back(self._resource, {SHARE_OF_NOBODY: len(refused) - len({key for key, _ in encoded})})
        return self._without_room(refused)

    def _refused(self, items: Iterable[tuple[_K, _V]], flags: int) -> dict[bytes, int]:
        encoded = {self._key.encode(key): self._value.encode(value) for key, value in items}
        present = dict(self._raw.get_many(encoded))
        kept = ((key, self._with_share(value, present.get(key))) for key, value in encoded.items())
        return self._raw.set_many(kept, flags)

    def _with_share(self, value: bytes, present: bytes | None) -> bytes:
        if present is None:
            return value
        at, end = self._share_at, self._share_at + _SHARE.size
        return value[:at] + present[at:end] + value[end:]
