"""Tiny numpy models: the text depends on every value that really reached the slot's K/V, so any mix-up changes it.

Samples travel unchanged from the audio to the K/V. A sample equal to one of the `Trouble` values makes its stage fail.
"""

import json
import threading
import zlib
from collections.abc import Sequence
from enum import Enum
from functools import cache
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.chain import Models
from models.protocols import (
    LLM,
    BackendError,
    CtcDraft,
    DecodeRow,
    Float32,
    Int64,
    PrefillRow,
    ProjectorOutput,
    SlotState,
    VoiceState,
)
from models.text.tokeniser import PromptTemplate, Tokeniser
from models.text.word_times import WordTimer

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
]
SAMPLE_RATE_HZ = 800
WIDTH = 8
USUAL_TOKENS = (40, 41)
VOICE_TROUBLE = 109.0
END_TOKEN = SPECIAL_TOKENS.index("<|im_end|>")


class Trouble(Enum):
    """Sample values at which a stage fails."""

    FEATURES_RAISE = 101.0
    ENCODE_RAISES = 102.0
    ADAPT_RAISES = 103.0
    PREFILL_RAISES = 104.0
    PREFILL_NAN = 105.0
    DECODE_RAISES = 106.0
    DECODE_NAN = 107.0
    MOVE_RAISES = 108.0

    def is_in(self, values: Float32) -> bool:
        return bool((values == self.value).any())

    def check(self, values: Float32) -> None:
        if self.is_in(values):
            raise BackendError(self.name)


@cache
def tokeniser_definition() -> dict[str, Any]:
    """A byte-level BPE vocabulary with SmolLM2's special tokens and pre-tokeniser, as in `tokenizer.json`."""
    tokenizer: Any = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    sentences = ["Transcribe the speech to text.", "the end of the empty output file name", "Wie viele Wörter? Zwölf!"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return cast(dict[str, Any], json.loads(tokenizer.to_str()))


@cache
def tiny_tokeniser() -> Tokeniser:
    return Tokeniser(tokeniser_definition())


@cache
def tiny_word_timer() -> WordTimer:
    return WordTimer(tiny_tokeniser(), len(tokeniser_definition()["model"]["vocab"]), SAMPLE_RATE_HZ, frame_s=0.08)


def tiny_template() -> PromptTemplate:
    encode = tiny_tokeniser().encode_template
    return PromptTemplate(
        prefix=tuple(encode("<|im_start|>user\n")),
        after_instruction=tuple(encode("\n")),
        suffix=tuple(encode("<|im_end|>\n<|im_start|>assistant\n")),
        end_tokens=(END_TOKEN, 0),
    )


def speech(seed: int, duration_s: float = 1.0, trouble: Trouble | None = None) -> Float32:
    audio = np.random.default_rng(seed).normal(size=int(duration_s * SAMPLE_RATE_HZ)).astype(np.float32)
    if trouble is not None:
        audio[0] = trouble.value
    return audio


def silence(duration_s: float = 1.0) -> Float32:
    return np.zeros(int(duration_s * SAMPLE_RATE_HZ), np.float32)


def fake_features(audio: Float32) -> Float32:
    """The samples themselves, eight to a mel frame [8, mel_frames]."""
    Trouble.FEATURES_RAISE.check(audio)
    return np.pad(audio, (0, -len(audio) % WIDTH)).reshape(-1, WIDTH).T


class FakeVoiceDetector:
    """Speech is any window of 50 ms that is not all zeros. The state is how many windows there were.

    `VOICE_TROUBLE` among the samples makes it fail; it is no `Trouble`, as it does no harm to audio that is one request.
    """

    window_samples = 40

    def detect(self, audio: Float32, state: VoiceState | None) -> tuple[Float32, VoiceState]:
        if (audio == VOICE_TROUBLE).any():
            raise BackendError("VOICE_TROUBLE")
        windows = audio.reshape(-1, self.window_samples)
        heard = 0 if state is None else state.content
        return (windows != 0).any(axis=1).astype(np.float32), VoiceState(heard + len(windows))


class FakeEncoder:
    """Every second mel frame. It waits for `gate`, so a test can hold the engine within a step."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def encode(self, features: Sequence[Float32]) -> list[Float32]:
        self.batches.append(len(features))
        self.gate.wait()
        for item in features:
            Trouble.ENCODE_RAISES.check(item)
        return [np.ascontiguousarray(item.T[::2]) for item in features]


class FakeProjector:
    """Every fourth state; frames of nothing but zeros are blank and dropped. The draft is right about every second token."""

    boundary_before = np.full((2, WIDTH), 0.25, np.float32)
    boundary_after = np.full((2, WIDTH), 0.75, np.float32)

    def project(self, states: Sequence[Float32]) -> list[ProjectorOutput]:
        return [self._project(item) for item in states]

    def _project(self, states: Float32) -> ProjectorOutput:
        Trouble.ADAPT_RAISES.check(states)
        frames = states[::4]
        blank = (frames == 0).all(axis=1)
        words = np.array([USUAL_TOKENS[zlib.crc32(frame.tobytes()) % len(USUAL_TOKENS)] for frame in frames])
        return sure_output(frames[~blank], np.where(blank, -1, words))


def sure_output(frames: Float32, best_token: Int64) -> ProjectorOutput:
    """An adapter's output that is sure of each frame's token, or that it is blank (-1)."""
    kept = np.flatnonzero(best_token >= 0)
    certain = np.ones(len(best_token), np.float32)
    blank = (best_token < 0).astype(np.float32)
    return ProjectorOutput(frames, CtcDraft(best_token, certain, blank, kept, best_token[kept, None], certain[kept, None]))


class FakeLLM:
    """An LLM whose logits are drawn from a seed, the checksum of the slot's K/V; positions that were not written are NaN.

    Answers end by themselves after about `mean_tokens`, most of which are `USUAL_TOKENS`.
    """

    embedding_size = WIDTH

    def __init__(self, slots: int = 3, max_positions: int = 300, mean_tokens: int = 16) -> None:
        self.slots = slots
        self.max_positions = max_positions
        self.vocabulary_size = len(tokeniser_definition()["model"]["vocab"])
        self.prefills = 0
        self.mean_tokens = mean_tokens
        self._table = np.random.default_rng(0).normal(size=(self.vocabulary_size, WIDTH)).astype(np.float32)
        self._cache = np.full((slots, max_positions, WIDTH), np.nan, np.float32)

    @property
    def cache(self) -> "FakeLLM":
        return self

    def embed(self, tokens: Sequence[int]) -> Float32:
        return self._table[list(tokens)]

    def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        self.prefills += len(rows)
        for row in rows:
            Trouble.PREFILL_RAISES.check(row.embeddings)
        return [self._write(row.slot, row.position, row.embeddings, Trouble.PREFILL_NAN)[-row.wanted :] for row in rows]

    def decode(self, rows: Sequence[DecodeRow]) -> list[Float32]:
        if [row.slot for row in rows] != list(range(len(rows))):
            raise BackendError("rows must cover the first slots in order")
        for row in rows:
            Trouble.DECODE_RAISES.check(self._cache[row.slot, : row.position])
        return [self._write(row.slot, row.position, self.embed(row.tokens), Trouble.DECODE_NAN) for row in rows]

    def move(self, source: int, target: int, length: int) -> None:
        moved = self._cache[source, :length].copy()
        self._cache[[source, target]] = np.nan
        Trouble.MOVE_RAISES.check(moved)
        self._cache[target, :length] = moved

    def read(self, slot: int, length: int) -> SlotState:
        content = self._cache[slot, :length].copy()
        return SlotState(length, content.nbytes, content)

    def write(self, slot: int, state: SlotState) -> None:
        self._cache[slot] = np.nan
        self._cache[slot, : state.length] = state.content

    def _write(self, slot: int, position: int, values: Float32, nan: Trouble) -> Float32:
        """Logits after each of the values [len(values), vocabulary_size]."""
        self._cache[slot, position : position + len(values)] = values
        self._cache[slot, position + len(values) :] = np.nan
        return np.stack([self._logits(self._cache[slot, : position + count + 1], nan) for count in range(len(values))])

    def _logits(self, held: Float32, nan: Trouble) -> Float32:
        if np.isnan(held).any() or nan.is_in(held):
            return np.full(self.vocabulary_size, np.nan, np.float32)
        checksum = zlib.crc32(held.tobytes())
        logits = np.random.default_rng(checksum).normal(0, 3, self.vocabulary_size).astype(np.float32)
        logits[list(USUAL_TOKENS)] += 10
        logits[[0, END_TOKEN]] = -100
        if checksum % self.mean_tokens == 0:
            logits[END_TOKEN] = 100
        return logits


def fake_models(llm: LLM, encoder: FakeEncoder | None = None) -> Models:
    return Models(
        fake_features,
        encoder or FakeEncoder(),
        FakeProjector(),
        llm,
        tiny_tokeniser(),
        tiny_template(),
        FakeVoiceDetector(),
        tiny_word_timer(),
    )
