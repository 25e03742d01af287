"""What the engine keeps between requests: prefixes of prompts, and what an audio became."""

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
"""The token ids before the speech, and whether boundary vectors follow: all that the K/V before the speech depends on."""
AudioKey = tuple[str, bytes]
"""A client and the digest of an audio: nobody meets what another client sent."""


class ByteCache(Generic[Key, Value]):
    """Bounded in bytes, least recently used out first; counts its hits and misses. 0 bytes keep nothing."""

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
        value = self._values.get(key)
        self.hits += value is not None
        self.misses += value is None
        return value

    def keep(self, key: Key, value: Value) -> None:
        """Keep a value, unless it is larger than the whole cache."""
        if self._size(value) <= self._values.maxsize:
            self._values[key] = value


def output_bytes(output: ProjectorOutput) -> int:
    """Return the memory of an output's arrays."""
    arrays = [output.embeddings]
    if output.draft is not None:
        arrays += [getattr(output.draft, field.name) for field in fields(output.draft)]
    return sum(array.nbytes for array in arrays)


def audio_key(client: str, audio: Float32) -> AudioKey:
    return client, hashlib.sha256(audio.tobytes()).digest()
