"""What the engine keeps between requests, each bounded in bytes, least recently used out first."""

import hashlib

from cachetools import LRUCache

from models.backends import AdapterOutput, Float32, SlotState

PrefixKey = tuple[tuple[int, ...], bool]
"""The token ids before the speech, and whether boundary vectors follow: all that the K/V before the speech depends on."""


def _state_bytes(state: SlotState) -> int:
    return state.nbytes


def _output_bytes(output: AdapterOutput) -> int:
    arrays = (output.frames, output.best_token, output.probability, output.blank_probability)
    return sum(array.nbytes for array in arrays)


class PrefixCache:
    """K/V of `[prefix][instruction]`, what comes before the speech; nothing of the audio. 0 bytes keep nothing."""

    def __init__(self, limit_bytes: int) -> None:
        self.hits = 0
        self.misses = 0
        self._states: LRUCache[PrefixKey, SlotState] = LRUCache(limit_bytes, getsizeof=_state_bytes)

    @property
    def nbytes(self) -> int:
        return int(self._states.currsize)

    def find(self, key: PrefixKey) -> SlotState | None:
        state = self._states.get(key)
        self.hits += state is not None
        self.misses += state is None
        return state

    def keep(self, key: PrefixKey, state: SlotState) -> None:
        """Keep a state, unless it is larger than the whole cache."""
        if state.nbytes <= self._states.maxsize:
            self._states[key] = state


class EncoderCache:
    """What encoder and adapter made of an audio, for further instructions on it from the same client. 0 bytes keep nothing."""

    def __init__(self, limit_bytes: int) -> None:
        self.hits = 0
        self.misses = 0
        self._outputs: LRUCache[tuple[str, bytes], AdapterOutput] = LRUCache(limit_bytes, getsizeof=_output_bytes)

    @property
    def enabled(self) -> bool:
        return self._outputs.maxsize > 0

    @property
    def nbytes(self) -> int:
        return int(self._outputs.currsize)

    def find(self, client: str, audio: Float32) -> AdapterOutput | None:
        output = self._outputs.get(_key(client, audio))
        self.hits += output is not None
        self.misses += output is None
        return output

    def keep(self, client: str, audio: Float32, output: AdapterOutput) -> None:
        """Keep an output, unless it is larger than the whole cache."""
        if _output_bytes(output) <= self._outputs.maxsize:
            self._outputs[_key(client, audio)] = output


def _key(client: str, audio: Float32) -> tuple[str, bytes]:
    return client, hashlib.sha256(audio.tobytes()).digest()
