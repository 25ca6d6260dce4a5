"""Maps whose keys and values are Python objects."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from dnsprobe.kernel import libbpf

_T = TypeVar("_T")
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Codec(Generic[_T]):
    """The representation of a type in a map: its size in octets, and the conversion in both directions."""

    size: int
    encode: Callable[[_T], bytes]
    decode: Callable[[bytes], _T]


def raise_refusal(refused: Mapping[bytes, int], ignored: int = 0) -> None:
    """Raise OSError if the kernel refused an entry for another reason than the ignored errno."""
    for code in refused.values():
        if code != ignored:
            raise OSError(code, os.strerror(code))


class TypedMap(Generic[_K, _V]):
    """A map whose keys and values are encoded and decoded. All methods raise OSError with the kernel's errno."""

    def __init__(self, raw: libbpf.Map, key: Codec[_K], value: Codec[_V]) -> None:
        self._raw, self._key, self._value = raw, key, value

    def put(self, key: _K, value: _V) -> None:
        """Store a value."""
        self._raw.set(self._key.encode(key), self._value.encode(value))

    def items(self) -> Iterator[tuple[_K, _V]]:
        """Yield all entries. Entries that are added or deleted meanwhile may be among them; no other is missed."""
        decode_key, decode_value = self._key.decode, self._value.decode
        for key, value in self._raw.items():
            yield decode_key(key), decode_value(value)

    def keys(self) -> Iterator[_K]:
        """Yield the keys of all entries."""
        for key, _value in self._raw.items():
            yield self._key.decode(key)

    def get_many(self, keys: Iterable[_K]) -> Iterator[tuple[_K, _V | None]]:
        """Yield each key with its value, None if there is none."""
        for key, value in self._raw.get_many(map(self._key.encode, keys)):
            yield self._key.decode(key), None if value is None else self._value.decode(value)

    def take_many(self, keys: Iterable[_K]) -> Iterator[tuple[_K, _V]]:
        """Delete entries; yield each with its last value. Keys that are not in the map are left out.

        The caller consumes all results, because deletion runs ahead of them.
        """
        for key, value in self._raw.take_many(map(self._key.encode, keys)):
            if value is not None:
                yield self._key.decode(key), self._value.decode(value)

    def set_many(self, items: Iterable[tuple[_K, _V]]) -> None:
        """Store values."""
        raise_refusal(self._refused(items, libbpf.ANY))

    def insert_many(self, items: Iterable[tuple[_K, _V]]) -> int:
        """Add entries whose keys are not in the map. Return how many found no room."""
        return self._without_room(self._refused(items, libbpf.NOEXIST))

    @staticmethod
    def _without_room(refused: Mapping[bytes, int]) -> int:
        return sum(code != errno.EEXIST for code in refused.values())

    def update_many(self, items: Iterable[tuple[_K, _V]]) -> set[_K]:
        """Change entries whose keys are in the map. Return the keys that are not."""
        refused = self._refused(items, libbpf.EXIST)
        raise_refusal(refused, ignored=errno.ENOENT)
        return {self._key.decode(key) for key in refused}

    def _refused(self, items: Iterable[tuple[_K, _V]], flags: int) -> dict[bytes, int]:
        encoded = ((self._key.encode(key), self._value.encode(value)) for key, value in items)
        return self._raw.set_many(encoded, flags)

    def delete_many(self, keys: Iterable[_K]) -> None:
        """Delete entries; keys that are not in the map are ignored."""
        self._raw.delete_many(map(self._key.encode, keys))


class ArrayMap(TypedMap[int, _V]):
    """A map that has a value for each index from the start."""

    def read(self, indexes: Iterable[int]) -> Iterator[tuple[int, _V]]:
        """Yield each index with its value. IndexError if the array is shorter."""
        for index, value in self.get_many(indexes):
            if value is None:
                raise IndexError(f"the map has no index {index}")
            yield index, value
