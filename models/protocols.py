"""What a model backend must offer: the contracts between the engine and whatever runs the models.

The chain of one request is `Encoder` -> `Adapter` -> `LLM.prefill` -> `LLM.decode`; in audio that is not one request, a
`VoiceDetector` finds the utterances first. Everything that crosses is numpy, but for what only the next model reads
(`EncoderStates`). A backend raises `BackendError` for a failure that is its own; any other exception is a bug.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def collapse(best_token: Int64) -> tuple[int, ...]:
    """CTC's greedy transcript: runs of one token are one, blanks (negative) are none. best_token [frames]."""
    previous = -1
    tokens = []
    for token in best_token.tolist():
        if token >= 0 and token != previous:
            tokens.append(token)
        previous = token
    return tuple(tokens)


EncoderStates = Any
"""One utterance as the encoder gives it to the adapter of the same chain: float32 [states, width] on a CPU; what is computed on a
GPU stays in its memory."""


class BackendError(RuntimeError):
    """The backend could not run what it was given."""


class BackendLostError(BackendError):
    """The backend will run nothing any more in this process, which has to be replaced."""


@dataclass(frozen=True)
class AdapterOutput:
    """One utterance in the LLM's embedding space.

    `frames` [kept, embedding_size] float32 goes into the prompt between the adapter's boundary vectors.
    The CTC draft is given per adapter frame, before any frame was dropped: `best_token` [T] int64 (-1 where the blank
    wins) with its `probability` [T] float32, and `blank_probability` [T] float32. Of the frames that were not dropped,
    whose numbers are `kept` [n] int64, it holds the best `top_tokens` [n, K] int64, best first, with `top_probabilities`
    [n, K] float32, given that the frame is not blank. An adapter without a draft leaves all of these empty.
    """

    frames: Float32
    best_token: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    probability: Float32 = field(default_factory=lambda: np.empty(0, np.float32))
    blank_probability: Float32 = field(default_factory=lambda: np.empty(0, np.float32))
    kept: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    top_tokens: Int64 = field(default_factory=lambda: np.empty((0, 0), np.int64))
    top_probabilities: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))


@dataclass(frozen=True)
class PrefillRow:
    """Embeddings [tokens, embedding_size] to append to `slot` from `position` on; logits are wanted of the last `wanted`."""

    slot: int
    position: int
    embeddings: Float32
    wanted: int = 1


@dataclass(frozen=True)
class DecodeRow:
    """The newest token of the request in `slot`, and after it any draft of what follows; their K/V goes to `position` on."""

    slot: int
    position: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class SlotState:
    """A copy of the first `length` positions of a slot's K/V; only the LLM that made it can read `content`."""

    length: int
    nbytes: int
    content: Any


@dataclass(frozen=True)
class VoiceState:
    """What a voice detector has heard so far; only the one that made it can read `content`, and nobody changes it."""

    content: Any


class Features(Protocol):
    """The front end of an encoder."""

    sample_rate_hz: int
    frames_per_s: float

    def __call__(self, audio: Float32) -> Float32:
        """Turn mono audio into features [bins, frames]."""
        ...


class VoiceDetector(Protocol):
    """Tells speech from everything else, window by window."""

    window_samples: int

    def detect(self, audio: Float32, state: VoiceState | None) -> tuple[Float32, VoiceState]:
        """The probability of speech in each window of `audio`, which is whole windows, and the state to go on with.

        `state` is None at the beginning. How the audio is cut into calls changes no bit of the result.
        """
        ...


class Encoder(Protocol):
    """The frozen speech encoder."""

    def encode(self, features: Sequence[Float32]) -> list[EncoderStates]:
        """Log-mel features [mel_bins, mel_frames] per utterance -> states [mel_frames // 2 (rounded up), width] each."""
        ...


class Adapter(Protocol):
    """4x subsampling, transformer layers and projection, with the CTC draft."""

    boundary_before: Float32
    boundary_after: Float32

    def adapt(self, states: Sequence[EncoderStates]) -> list[AdapterOutput]: ...


class LLM(Protocol):
    """The frozen LLM over dense K/V slots: row i of a decode batch is slot i, so running requests keep to the first slots.

    The logits of a position depend on nothing but what its slot holds up to it, bit for bit: not on how the positions were cut
    into calls, nor on the other rows. Speculation, prefix reuse and preemption rely on it.
    """

    slots: int
    max_positions: int
    embedding_size: int
    vocabulary_size: int

    def embed(self, tokens: Sequence[int]) -> Float32:
        """Embeddings [tokens, embedding_size] of token ids."""
        ...

    def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        """Append each row's embeddings to its slot; per row, logits [wanted, vocabulary_size] of its last positions."""
        ...

    def decode(self, rows: Sequence[DecodeRow]) -> list[Float32]:
        """Append each row's tokens to slots 0..n-1, which `rows` must cover in that order.

        Per row, logits [tokens, vocabulary_size] after each of its tokens. What a rejected draft left in a slot is
        overwritten by the next call that writes there.
        """
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of K/V from one slot to another."""
        ...

    def read_slot(self, slot: int, length: int) -> SlotState:
        """A copy of the first `length` positions of a slot's K/V."""
        ...

    def write_slot(self, slot: int, state: SlotState) -> None:
        """Put a copy back, from the slot's position 0 on."""
        ...
