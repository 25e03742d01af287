"""What crosses between the edge and the engine: plain data, and exactly one terminal event per request."""

import dataclasses
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from server.errors import ServeError

FinishReason = Literal["stop", "length", "no_speech"]
DraftPolicy = Literal["exact", "relaxed", "off"]
ConstraintKind = Literal["json_schema", "regex", "choice"]


class Priority(IntEnum):
    """Lower runs first. `PARTIAL` is for what shows a speaker that he is heard; `LIVE` for what he waits for."""

    LIVE = 0
    PARTIAL = 1
    INTERACTIVE = 2
    BATCH = 3


@dataclass(frozen=True)
class Constraint:
    """What an answer has to match: a `json_schema` or a `choice` (a JSON array of strings), both as JSON, or a `regex`."""

    kind: ConstraintKind
    grammar: str


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen, in the order of the fields: penalties, temperature, top-k, top-p.

    `temperature` 0 is greedy; `seed` makes sampled text repeatable whatever else runs. `top_k` 0 means all. The answer ends
    before the first of the `stop` strings. `logprobs` n asks for each token's log-probability and the n best (None: for none).
    Only tokens that a `constraint` allows are chosen from.
    """

    max_tokens: int = 256
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    seed: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True)
class InstructRequest:
    """Mono float32 audio at the model's sample rate and the instruction about it.

    `client` is whose share the work counts against, and the only one who meets what was cached of the audio. An answer later than
    `deadline_s` after submission is worthless. `draft` says whether the CTC draft may speed up the answer, and how strictly.
    `word_times` asks for `Done.words`; it makes sense for transcripts only.
    """

    id: str
    audio: npt.NDArray[np.float32]
    instruction: str
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    client: str = ""
    priority: Priority = Priority.INTERACTIVE
    deadline_s: float | None = None
    draft: DraftPolicy = "exact"
    word_times: bool = False


@dataclass(frozen=True)
class Word:
    """One word of an answer, with the punctuation that it is written with, and when it is spoken."""

    text: str
    start_s: float
    end_s: float


Alternative = tuple[bytes, float]
"""A token's bytes and its natural log-probability."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer with its natural log-probability under the model (before penalties and temperature), and the best
    ones in its place, as pairs of bytes and log-probability, best first."""

    bytes: bytes
    logprob: float
    top: tuple[Alternative, ...] = ()


@dataclass
class StageTimes:
    """Seconds spent per stage of one request; `queue_s` is waiting of any kind inside the engine."""

    audio_decode_s: float = 0.0
    features_s: float = 0.0
    queue_s: float = 0.0
    encode_s: float = 0.0
    adapter_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    detokenise_s: float = 0.0
    total_s: float = 0.0

    def as_milliseconds(self) -> dict[str, float]:
        """The same times keyed `<stage>_ms`, rounded to a microsecond."""
        return {name.removesuffix("_s") + "_ms": round(value * 1000, 3) for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Usage:
    """Prompt positions by kind, how many of them came from the prefix cache, and generated tokens."""

    audio_frames: int
    text_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Speculation:
    """What the draft brought to one request: tokens proposed and accepted, and LLM passes (prefill and decode) in all."""

    drafted: int = 0
    accepted: int = 0
    llm_passes: int = 0


@dataclass(frozen=True)
class Delta:
    """A further piece of text, which never splits a character, and the tokens that completed it (where asked for)."""

    request_id: str
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Done:
    """Terminal: the whole text. Concatenated deltas equal `text`; so do their logprobs equal `logprobs`."""

    request_id: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    times: StageTimes
    speculation: Speculation = Speculation()
    logprobs: tuple[TokenLogprob, ...] | None = None
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True)
class Failed:
    """Terminal: the request ended without an answer."""

    request_id: str
    error: ServeError


Event = Delta | Done | Failed
