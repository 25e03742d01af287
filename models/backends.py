"""What a model backend must offer: the contracts between the engine and whatever runs the models.

The chain of one request is `Encoder` -> `Adapter` -> `LLM.prefill` -> `LLM.decode`. Everything that crosses
is numpy. A backend raises `BackendError` for a failure that is its own; any other exception is a bug.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class BackendError(RuntimeError):
    """The backend could not run what it was given."""


@dataclass(frozen=True)
class AdapterOutput:
    """One utterance in the LLM's embedding space.

    `frames` [kept, embedding_size] float32 goes into the prompt between the adapter's boundary vectors.
    The CTC draft is given per adapter frame, before any frame was dropped: `best_token` [T] int64 (-1 where the blank
    wins) with its `probability` [T] float32, and `blank_probability` [T] float32.
    """

    frames: Float32
    best_token: Int64
    probability: Float32
    blank_probability: Float32


@dataclass(frozen=True)
class PrefillRow:
    """Embeddings [tokens, embedding_size] to append to `slot` from `position` on; logits are wanted of the last one."""

    slot: int
    position: int
    embeddings: Float32


@dataclass(frozen=True)
class DecodeRow:
    """The newest token of the request in `slot`; its K/V goes to `position`."""

    slot: int
    position: int
    token: int


class Encoder(Protocol):
    """The frozen speech encoder."""

    def encode(self, features: Sequence[Float32]) -> list[Float32]:
        """Log-mel features [mel_bins, mel_frames] per utterance -> states [mel_frames // 2 (rounded up), width] each."""
        ...


class Adapter(Protocol):
    """4x subsampling, transformer layers and projection, with the CTC draft."""

    boundary_before: Float32
    boundary_after: Float32

    def adapt(self, states: Sequence[Float32]) -> list[AdapterOutput]: ...


class LLM(Protocol):
    """The frozen LLM over dense K/V slots: row i of a decode batch is slot i, so running requests keep to the first slots."""

    slots: int
    max_positions: int
    embedding_size: int
    vocabulary_size: int

    def embed(self, tokens: Sequence[int]) -> Float32:
        """Embeddings [tokens, embedding_size] of token ids."""
        ...

    def prefill(self, rows: Sequence[PrefillRow]) -> Float32:
        """Append each row's embeddings to its slot; logits [rows, vocabulary_size] of each row's last position."""
        ...

    def decode(self, rows: Sequence[DecodeRow]) -> Float32:
        """One token for slots 0..n-1, which `rows` must cover in that order; logits [n, vocabulary_size]."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of K/V from one slot to another."""
        ...
