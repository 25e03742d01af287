"""The contracts between the engine and the runtimes of the models.

One request runs `Features` -> `Encoder` -> `Projector` -> `LLM.prefill` -> `LLM.decode`; a `VoiceDetector` first finds the
utterances in longer audio. All arrays are numpy except `EncoderStates`, which only the projector reads. A runtime raises
`BackendError` for a failure of its own; any other exception is a bug.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


EncoderStates = Any
"""The encoder's states of one utterance, for the projector of the same chain: float32 [states, width], on a GPU in its memory."""


class BackendError(RuntimeError):
    """A runtime could not run its input."""


class EncodingInterrupted(BackendError):
    """The encoder stopped before its end, because it was told to."""


class BackendLostError(BackendError):
    """The runtime can run nothing any more in this process, which has to be replaced."""


@dataclass(frozen=True)
class CtcDraft:
    """The CTC transcript of one utterance by the projector's T frames, n of which are `kept` as not blank.

    best_token [T] int64 (-1 where the blank wins), probability [T] float32 of it, blank_probability [T] float32; kept [n] int64,
    the numbers of the kept frames; top_tokens [n, K] int64, best first, with top_probabilities [n, K] float32, given that the
    frame is not blank.
    """

    best_token: Int64
    probability: Float32
    blank_probability: Float32
    kept: Int64
    top_tokens: Int64
    top_probabilities: Float32


@dataclass(frozen=True)
class ProjectorOutput:
    """One utterance in the projector's embedding space.

    `embeddings` [frames, embedding_size] float32 goes into the prompt between the boundary vectors. A projector without a CTC
    head gives no `draft`. `states` are all of the encoder's, kept where a speech decoder attends to them.
    """

    embeddings: Float32
    draft: CtcDraft | None = None
    states: EncoderStates | None = None

    def require_draft(self) -> CtcDraft:
        """Return the draft. Raises `ValueError` if there is none."""
        if self.draft is None:
            raise ValueError("the projector gives no CTC draft")
        return self.draft


@dataclass(frozen=True)
class PrefillRow:
    """Embeddings [tokens, embedding_size] to append to `slot` from `position` on; logits are wanted of the last `wanted`."""

    slot: int
    position: int
    embeddings: Float32
    wanted: int = 1


@dataclass(frozen=True)
class DecodeRow:
    """The newest token of the request in `slot`, then any drafted tokens; their K/V is written from `position` on."""

    slot: int
    position: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class SlotState:
    """A copy of the first `length` positions of a slot; only the cache that made it can read `content`."""

    length: int
    nbytes: int
    content: Any


@dataclass(frozen=True)
class VoiceState:
    """A voice detector's state after some audio; only the detector that made it can read `content`, which never changes."""

    content: Any


class Features(Protocol):
    """The front end of an encoder."""

    sample_rate_hz: int
    frames_per_s: float

    def __call__(self, audio: Float32) -> Float32:
        """Turn mono audio into features [bins, frames]."""
        ...


class VoiceDetector(Protocol):
    """Tells speech from other sounds, window by window."""

    window_samples: int

    def detect(self, audio: Float32, state: VoiceState | None) -> tuple[Float32, VoiceState]:
        """Return the probability of speech in each window of `audio`, which is whole windows, and the state for the next call.

        `state` is None at the beginning. The result has the same bits however the audio is cut into calls.
        """
        ...


class Encoder(Protocol):
    """The frozen speech encoder."""

    def encode(self, features: Sequence[Float32]) -> list[EncoderStates]:
        """Turn features [bins, frames] per utterance into states [states, width] each."""
        ...


class Projector(Protocol):
    """The trained projector from encoder states to the LLM's embedding space, with a CTC draft if it has one."""

    boundary_before: Float32
    boundary_after: Float32

    def project(self, states: Sequence[EncoderStates]) -> list[ProjectorOutput]:
        """Return one output per utterance."""
        ...


class KVCache(Protocol):
    """The LLM's K/V slots, each `max_positions` long."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions from one slot to another."""
        ...

    def read(self, slot: int, length: int) -> SlotState:
        """Return a copy of the first `length` positions of a slot."""
        ...

    def write(self, slot: int, state: SlotState) -> None:
        """Put a copy back, from the slot's position 0 on."""
        ...


class Decoder(Protocol):
    """A frozen decoder over the dense slots of `cache`: row i of a decode batch is slot i, so running requests keep to the first.

    The logits of a position depend only on what its slot holds up to it, bit for bit: neither on how the positions were cut
    into calls nor on the other rows. Speculation, prefix reuse and preemption rely on it.
    """

    slots: int
    max_positions: int
    embedding_size: int
    vocabulary_size: int

    @property
    def cache(self) -> KVCache:
        """The slots that `prefill` and `decode` write."""
        ...

    def embed(self, tokens: Sequence[int]) -> Float32:
        """Return the embeddings [tokens, embedding_size] of token ids."""
        ...

    def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        """Append each row's embeddings to its slot; return per row the logits [wanted, vocabulary_size] of its last positions."""
        ...

    def decode(self, rows: Sequence[DecodeRow]) -> list[Float32]:
        """Append each row's tokens to slots 0..n-1, which `rows` must cover in that order.

        Return per row the logits [tokens, vocabulary_size] after each of its tokens. Positions of a rejected draft are
        overwritten by the next call that writes there.
        """
        ...


class LLM(Decoder, Protocol):
    """The frozen LLM, which reads instruction and speech: as the first positions of a slot, or as an `EncoderDecoder`."""


class MemoryDecoder(Decoder, Protocol):
    """A decoder that attends to states beside its own tokens: its memory, the whole of which every position sees."""

    def write_memory(self, slot: int, states: EncoderStates) -> None:
        """Write the keys and values of states [states, width] to a slot; `cache.move` takes them along.

        Call it before the slot's first `prefill`. It forgets the memories of later slots: write several in the order of slots.
        """
        ...


class SpeechDecoder(MemoryDecoder, Protocol):
    """The decoder of the speech foundation model, whose memory is the encoder's states of an utterance.

    `embed` gives the embeddings of tokens alone; positions are added by `prefill` and `decode`.
    """


@runtime_checkable
class EncoderDecoder(MemoryDecoder, Protocol):
    """A frozen LLM of T5's kind: an encoder of its own reads the prompt, whose embeddings [positions, width] are its memory.

    The prompt has at most `max_states` positions. An answer begins behind `start_token`, at position 0 of its slot.
    """

    max_states: int
    start_token: int
