"""Caches that outlive a request: K/V of prompt prefixes, and encoder outputs by audio."""

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import fields
from typing import Generic, TypeVar

from cachetools import LRUCache

from models.protocols import Float32, ProjectorOutput

PREFIX_CACHE_BYTES = 64 * 2**20

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

PrefixKey = tuple[tuple[int, ...], bool]
"""The token ids before the speech, and whether boundary vectors follow: the K/V before the speech depends on nothing else."""
AudioKey = tuple[str, bytes]
"""A client and the digest of an audio: clients never find the audio of others."""


class ByteCache(Generic[Key, Value]):
    """A cache limited in bytes, least recently used out first, that counts hits and misses. 0 bytes store nothing."""

    def __init__(self, limit_bytes: int, size: Callable[[Value], int]) -> None:
        self.hits = 0
        self.misses = 0
        self._size = size
        self._values: LRUCache[Key, Value] = LRUCache(limit_bytes, getsizeof=size)

    @property
    def enabled(self) -> bool:
        return self._values.maxsize > 0

    @property
    def nbytes(self) -> int:
        return int(self._values.currsize)

    def find(self, key: Key) -> Value | None:
        """Return a value, and count whether there is one."""
        value = self._values.get(key)
        self.hits += value is not None
        self.misses += value is None
        return value

    def store(self, key: Key, value: Value) -> None:
        """Store a value, unless it is larger than the whole cache."""
        if self._size(value) <= self._values.maxsize:
            self._values[key] = value


def output_bytes(output: ProjectorOutput) -> int:
    """Return the memory of an output's arrays."""
    arrays = [output.embeddings]
    if output.draft is not None:
        arrays += [getattr(output.draft, field.name) for field in fields(output.draft)]
    if output.states is not None:
        arrays.append(output.states)
    return sum(array.nbytes for array in arrays)


def audio_key(client: str, audio: Float32) -> AudioKey:
    """Return the key of a client's audio."""
    return client, hashlib.sha256(audio.tobytes()).digest()
