"""Caches that outlive a request: K/V of prompt prefixes, encoder outputs by audio, and speech of an utterance that goes on."""

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import fields
from typing import Generic, TypeVar

from cachetools import LRUCache

from models.encoders.windows import KeptWindows
from models.protocols import Float32, ProjectorOutput, SlotState

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


class KeptSpeech:
    """The states of an utterance's finished windows, and the LLM's keys and values of the prompt up to the last of these.

    They are kept for an utterance that goes on, by encoders whose windows do not see each other (Qwen3-ASR).

    Both are found again only for an input with the same bits, so that nothing is ever computed from anything outdated.
    """

    def __init__(self) -> None:
        self.windows: KeptWindows = {}
        self._prompt = b""
        self._state: SlotState | None = None

    def find(self, prompt: Float32) -> SlotState | None:
        """Return the keys and values of the beginning of a prompt [positions, embedding_size], if they are there."""
        state = self._state
        return state if state and prompt[: state.length].tobytes() == self._prompt else None

    def store(self, prompt: Float32, state: SlotState) -> None:
        """Keep the keys and values of the beginning of a prompt, in place of those that were kept before."""
        self._prompt, self._state = prompt[: state.length].tobytes(), state
